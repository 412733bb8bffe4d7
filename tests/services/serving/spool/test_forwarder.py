from __future__ import annotations

import logging
import math
import threading
import time

import pytest

from perdure.errors import RecordError, StreamError
from perdure.stream import MemoryStream
from perdure.stream.payload import Payload
from perdure_services.serving.metrics import Metrics
from perdure_services.serving.spool import forwarder as module
from perdure_services.serving.spool import refused
from perdure_services.serving.spool.forwarder import Forwarder
from perdure_services.serving.spool.spool import Spool


class RemoteStream(MemoryStream):
    """Waits at its gate, refuses what it is told to, and notes how many appends are under way."""

    remote = True

    def __init__(self):
        super().__init__()
        self.gate = threading.Event()
        self.gate.set()
        self.poison = set()
        self.attempts = []
        self.under_way = self.most = 0
        self._counting = threading.Lock()

    def _append(self, added):
        with self._counting:
            self.under_way += 1
            self.most = max(self.most, self.under_way)
            self.attempts.append([one.interaction for one in added])
        try:
            assert self.gate.wait(10)
            if any(one.interaction in self.poison for one in added):
                raise RecordError("too large for ever")
            super()._append(added)
        finally:
            with self._counting:
                self.under_way -= 1

    def ids(self):
        return [payload.interaction for _, payload in self._entries]


def some(first, count, subject="ann"):
    return [Payload(b"x" * 20, float(number), f"i{number}", subject) for number in range(first, first + count)]


def names(first, count):
    return [f"i{number}" for number in range(first, first + count)]


@pytest.fixture
def remote():
    return RemoteStream()


@pytest.fixture
def open_spool(tmp_path):
    opened = []

    def make():
        spool = Spool(tmp_path / "spool", max_bytes=1_000_000, fsync="never", fsync_seconds=1, segment_bytes=1000)
        opened.append(spool)
        return spool

    yield make
    for spool in opened:
        spool.close()


@pytest.fixture
def spool(open_spool):
    return open_spool()


@pytest.fixture
def start(monkeypatch):
    monkeypatch.setattr(module, "FIRST_RETRY_SECONDS", 0.002)
    monkeypatch.setattr(module, "MAX_RETRY_SECONDS", 0.02)
    monkeypatch.setattr(module, "BATCH_RECORDS", 4)
    started = []

    def begin(spool, stream):
        forwarder = Forwarder(spool, stream, Metrics())
        forwarder.start()
        started.append((forwarder, stream))
        return forwarder

    yield begin
    for forwarder, stream in started:
        stream.gate.set()
        stream.heal()
        forwarder.close(0.0)


def metric(forwarder, name, **labels):
    return forwarder._metrics.registry.get_sample_value(f"perdure_{name}", labels) or 0.0


def test_everything_arrives_once_and_is_released(spool, remote, start, until):
    spool.append(some(0, 30))
    forwarder = start(spool, remote)
    assert forwarder.alive
    for first in range(30, 60, 3):
        spool.append(some(first, 3))
    until(lambda: spool.records == 0)
    assert sorted(remote.ids()) == sorted(names(0, 60))
    assert max(len(attempt) for attempt in remote.attempts) == 4
    assert metric(forwarder, "stream_acknowledged_total") == 60
    assert metric(forwarder, "stream_resent_total") == 0
    assert forwarder.close(1) == 0
    assert not forwarder.alive
    assert list(spool.folder.glob("*.log")) in ([], [max(spool.folder.glob("*.log"), default=None)])


def test_two_batches_are_under_way_and_nothing_is_released_before_it_arrived(spool, remote, start, until):
    remote.gate.clear()
    spool.append(some(0, 20))
    forwarder = start(spool, remote)
    until(lambda: remote.under_way == 2)
    time.sleep(0.03)
    assert sorted(remote.attempts) == [names(0, 4), names(4, 4)]
    assert spool.records == 20
    assert metric(forwarder, "spool_records") == 20
    assert metric(forwarder, "spool_bytes") == spool.bytes > 0
    assert metric(forwarder, "spool_oldest_seconds") > 0
    remote.gate.set()
    until(lambda: spool.records == 0)
    assert remote.most == 2


def test_a_batch_that_overtakes_another_waits_for_its_release(open_spool, start, until):
    shut, spool = threading.Event(), open_spool()

    class FirstIsSlow(RemoteStream):
        def _append(self, added):
            if added[0].interaction == "i0":
                assert shut.wait(10)
            super()._append(added)

    remote = FirstIsSlow()
    spool.append(some(0, 12))
    forwarder = start(spool, remote)
    until(lambda: len(remote.ids()) == 8)
    time.sleep(0.02)
    assert spool.records == 12, "a crash now would lose the first batch"
    shut.set()
    until(lambda: spool.records == 0)
    assert metric(forwarder, "stream_acknowledged_total") == 12


def test_an_outage_is_waited_out_logged_once_and_counted(spool, remote, start, until, caplog):
    caplog.set_level(logging.INFO, logger=module.__name__)
    remote.fail_with(StreamError("the broker is away"))
    spool.append(some(0, 10))
    forwarder = start(spool, remote)
    until(lambda: metric(forwarder, "stream_resent_total") >= 24)
    assert forwarder.failing
    assert forwarder.alive
    assert (spool.records, remote.ids()) == (10, [])
    remote.heal()
    until(lambda: spool.records == 0)
    assert sorted(remote.ids()) == sorted(names(0, 10))
    until(lambda: not forwarder.failing)
    assert [record.levelname for record in caplog.records] == ["ERROR", "INFO"]
    assert "the broker is away" in caplog.messages[0]


def test_an_outage_is_asked_after_less_and_less_often(spool, remote, start, monkeypatch):
    monkeypatch.setattr(module, "LINGER_SECONDS", 0.0)
    monkeypatch.setattr(module, "FIRST_RETRY_SECONDS", 0.01)
    monkeypatch.setattr(module, "MAX_RETRY_SECONDS", 5.0)
    remote.fail_with(StreamError("away"))
    spool.append(some(0, 1))
    start(spool, remote)
    time.sleep(0.4)
    assert 3 <= len(remote.attempts) <= 7


def test_trouble_of_the_network_that_slips_through_is_an_outage_too(spool, remote, start, until):
    troubles = [ConnectionResetError("reset"), TimeoutError("slow")]
    append = remote._append

    def troubled(added):
        if troubles:
            raise troubles.pop()
        append(added)

    remote._append = troubled
    spool.append(some(0, 3))
    forwarder = start(spool, remote)
    until(lambda: spool.records == 0)
    assert remote.ids() == names(0, 3)
    assert metric(forwarder, "records_total", outcome="dropped") == 0
    assert metric(forwarder, "stream_resent_total") == 6


def test_a_record_refused_for_good_is_kept_aside_and_holds_nobody_up(spool, remote, start, until, caplog):
    remote.poison = {"i2", "i9"}
    spool.append(some(0, 12))
    forwarder = start(spool, remote)
    until(lambda: spool.records == 0)
    assert sorted(remote.ids()) == sorted(set(names(0, 12)) - remote.poison)
    assert metric(forwarder, "records_total", outcome="dropped") == 2
    assert metric(forwarder, "stream_acknowledged_total") == 10
    assert metric(forwarder, "stream_resent_total") == 0
    kept = b"".join(path.read_bytes() for path in spool.folder.glob("*.refused"))
    assert (b"i2" in kept, b"i9" in kept, b"i3" in kept) == (True, True, False)
    assert caplog.text.count("for good") == 2
    assert "too large for ever" in caplog.text


def test_refused_records_are_bounded(spool, remote, start, until, monkeypatch, caplog):
    monkeypatch.setattr(refused, "MAX_REFUSED_BYTES", 100)
    remote.poison = set(names(0, 4))
    spool.append(some(0, 5))
    forwarder = start(spool, remote)
    until(lambda: spool.records == 0)
    assert remote.ids() == ["i4"]
    assert sum(path.stat().st_size for path in spool.folder.glob("*.refused")) <= 100
    assert metric(forwarder, "records_total", outcome="dropped") == 4
    assert "refused records already" in caplog.text


def test_what_is_forgotten_during_an_outage_is_not_sent_after_it(spool, remote, start, until):
    remote.fail_with(StreamError("away"))
    spool.append(some(0, 3, "ann") + some(3, 3, "bob") + some(6, 2, "ann"))
    start(spool, remote)
    until(lambda: len(remote.attempts) >= 4)
    assert spool.forget("ann", 100.0) == 5
    before = len(remote.attempts)
    until(lambda: len(remote.attempts) >= before + 4)
    remote.heal()
    until(lambda: spool.start >= spool.read(spool.start).end and not spool.records)
    assert sorted(remote.ids()) == names(3, 3)


def test_closing_sends_what_is_left(spool, remote, start, until):
    remote.gate.clear()
    spool.append(some(0, 20))
    forwarder = start(spool, remote)
    until(lambda: remote.under_way == 2)
    threading.Timer(0.05, remote.gate.set).start()
    assert forwarder.close(5) == 0
    assert len(remote.ids()) == 20


def test_closing_in_an_outage_ends_in_time_and_the_next_start_sends(spool, open_spool, remote, start, until, caplog):
    remote.fail_with(StreamError("away"))
    spool.append(some(0, 9))
    forwarder = start(spool, remote)
    until(lambda: forwarder.failing)
    begin = time.monotonic()
    assert forwarder.close(0.1) == 9
    assert time.monotonic() - begin < 1
    assert not forwarder.alive
    assert "9 records stay in the spool" in caplog.text
    spool.close()
    remote.heal()
    again = open_spool()
    start(again, remote)
    until(lambda: again.records == 0)
    assert sorted(remote.ids()) == sorted(names(0, 9))


def test_a_stream_that_hangs_is_left_behind_and_cannot_release_later(
    spool, open_spool, remote, start, until, monkeypatch
):
    monkeypatch.setattr(module, "GRACE_SECONDS", 0.05)
    remote.gate.clear()
    spool.append(some(0, 3))
    forwarder = start(spool, remote)
    until(lambda: remote.under_way == 1)
    assert forwarder.close(0.05) == 3
    remote.gate.set()
    until(lambda: not any(thread.is_alive() for thread in forwarder._threads))
    assert remote.ids() == names(0, 3)
    assert spool.records == 3, "it said that they stay"


def test_a_spool_that_cannot_be_read_is_tried_again(spool, remote, start, until, monkeypatch):
    troubles = [OSError(5, "broken"), OSError(5, "broken")]
    read = spool.read

    def troubled(*given, **named):
        if troubles:
            raise troubles.pop()
        return read(*given, **named)

    monkeypatch.setattr(spool, "read", troubled)
    spool.append(some(0, 3))
    forwarder = start(spool, remote)
    until(lambda: spool.records == 0)
    assert forwarder.alive
    assert remote.ids() == names(0, 3)
    troubles.append(OSError(5, "broken"))
    assert math.isnan(metric(forwarder, "spool_oldest_seconds")), "and all else can still be asked for"
