"""Several processes that write one stream on this machine."""

from __future__ import annotations

import fcntl
import subprocess
import sys
import threading
import time

import pytest

from perdure.config import Settings
from perdure.records import Erasure
from perdure.stream import MemoryStream, SqliteStream
from perdure_services.fleet.hello import Hello
from perdure_services.serving import worker
from perdure_services.serving.spool.spooled_stream import SpooledStream
from perdure_services.serving.taking_turns import TakingTurns

HOLD = """
import fcntl, sys, time
file = open(sys.argv[1], "a")
fcntl.flock(file, fcntl.LOCK_EX)
print("mine", flush=True)
time.sleep(60)
"""


@pytest.fixture
def stream(tmp_path):
    with TakingTurns(MemoryStream(), tmp_path / "turns") as opened:
        yield opened


def erasure(subject="ann"):
    return Erasure(time=1.0, subject=subject)


@pytest.mark.parametrize("write", ["append", "forget"])
def test_who_writes_waits_for_whose_turn_it_is(stream, tmp_path, write):
    done = threading.Event()

    def go():
        if write == "append":
            stream.append([erasure()])
        else:
            stream.forget("ann", 2.0)
        done.set()

    with (tmp_path / "turns").open("a") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        writing = threading.Thread(target=go)
        writing.start()
        assert not done.wait(0.2)
        # Who only reads need not wait.
        assert stream.read({}, 10).entries == ()
        fcntl.flock(other, fcntl.LOCK_UN)
        assert done.wait(5)
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    writing.join(5)


def test_the_turn_of_who_dies_is_over(stream, tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "turns")], stdout=subprocess.PIPE)
    assert holder.stdout.readline() == b"mine\n"
    threading.Timer(0.2, holder.kill).start()
    begin = time.monotonic()
    stream.append([erasure()])
    assert 0.1 < time.monotonic() - begin < 5
    holder.stdout.close()
    holder.wait(5)


def test_a_turn_ends_though_the_write_fails(stream, tmp_path):
    stream._inner.fail_with(OSError("the disk is full"))
    with pytest.raises(OSError, match="full"):
        stream.append([erasure()])
    with (tmp_path / "turns").open("a") as other:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


class Away(MemoryStream):
    remote = True


def test_workers_write_by_turns_what_is_here_and_spool_what_is_not(tmp_path, monkeypatch):
    settings = Settings().with_values({"stream.url": f"sqlite:{tmp_path}/s.db", "spool.path": f"{tmp_path}/spool"})
    hello = Hello(1, 2, 0, str(tmp_path), {})
    with worker._stream(settings, hello) as stream:
        assert isinstance(stream, TakingTurns)
        assert isinstance(stream._inner, SqliteStream)
    monkeypatch.setattr(worker, "open_stream", lambda settings: Away())
    with worker._stream(settings, hello) as stream:
        assert isinstance(stream, SpooledStream)
        assert stream.spool.folder == tmp_path / "spool" / "process-1"
