from __future__ import annotations

import sys
import threading

import pytest

from perdure.errors import StreamError
from perdure.records import Erasure
from perdure.stream import MemoryStream

ANN = Erasure(subject="ann", time=1.0)


def test_appends_fail_until_the_stream_is_healed() -> None:
    stream = MemoryStream()
    stream.append([ANN])
    stream.fail_with(StreamError("no broker"))
    for _ in range(2):
        with pytest.raises(StreamError, match="no broker"):
            stream.append([ANN])
    assert len(stream.read({}, 10).entries) == 1
    stream.heal()
    stream.append([ANN])
    assert len(stream.read({}, 10).entries) == 2


def test_a_closed_stream_says_so() -> None:
    stream = MemoryStream()
    stream.close()
    for use in (
        lambda: stream.append([ANN]),
        lambda: stream.read({}, 1),
        stream.end,
        lambda: stream.forget("ann", 1.0),
    ):
        with pytest.raises(StreamError, match="closed"):
            use()


def test_a_reader_of_another_stream_is_not_left_waiting_for_ever() -> None:
    stream = MemoryStream()
    stream.append([ANN])
    with pytest.raises(StreamError, match=r"at position 7, but the stream in memory ends at 2"):
        stream.read({"0": 7}, 10)


def test_positions_stay_unique_however_often_threads_are_switched() -> None:
    stream = MemoryStream()
    interval = sys.getswitchinterval()

    def append() -> None:
        for _ in range(60):
            stream.append([ANN] * 40)

    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=append) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    positions = [entry.position for entry in stream.read({}, 100_000).entries]
    assert positions == list(range(1, 4 * 60 * 40 + 1))
