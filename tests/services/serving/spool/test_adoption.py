"""Fewer processes than before: what waited in the spools of the others is sent all the same."""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
from collections import Counter

import pytest

from perdure.config import SpoolSettings
from perdure.errors import SpoolFull, StoreBusy
from perdure.stream import MemoryStream
from perdure.stream.payload import Payload
from perdure_services.serving.spool.adoption import folder_of
from perdure_services.serving.spool.position import Cursor
from perdure_services.serving.spool.spool import Spool
from perdure_services.serving.spool.spooled_stream import SpooledStream, with_spool


class Away(MemoryStream):
    remote = True


@pytest.fixture
def started(tmp_path, monkeypatch):
    """Opens the spools of so many processes, or of one place of them; they are closed again."""
    monkeypatch.setitem(Spool.__init__.__kwdefaults__, "segment_bytes", 300)
    opened = []

    def begin(count, *places, **values):
        settings = SpoolSettings(path=str(tmp_path / "spool"), fsync="never", **{"max_bytes": 10_000, **values})
        found = [with_spool(Away(), settings, place=place, processes=count) for place in places or range(count)]
        opened.extend(found)
        return found if len(found) > 1 else found[0]

    yield begin
    for stream in opened:
        stream.close()


def some(name, count, subject="ann"):
    return [Payload(f"{name}{number}".encode() + b"x" * 20, 1.0, f"{name}{number}", subject) for number in range(count)]


def fill(stream, name, count, **named):
    """One after the other, so that there are several files."""
    for payload in some(name, count, **named):
        stream.append_payloads([payload])


def waiting(stream):
    found, cursor = [], stream.spool.start
    while (batch := stream.spool.read(cursor)).end > cursor:
        found.extend(payload.interaction for payload in batch.payloads)
        cursor = batch.end
    return found


def end(streams):
    for stream in streams:
        stream.close()


def test_each_process_has_a_folder_and_its_share_of_the_bytes(started, tmp_path):
    streams = started(2, max_bytes=2000)
    assert [stream.spool.folder for stream in streams] == [tmp_path / "spool", tmp_path / "spool" / "process-1"]
    for stream in streams:
        with pytest.raises(SpoolFull, match="over the 1000 of"):
            fill(stream, "a", 100)
    end(streams)
    # One process has all of it, where it always was.
    alone = started(1, max_bytes=2000)
    assert alone.spool.folder == tmp_path / "spool"


def test_a_stream_on_this_machine_has_no_spool():
    stream = MemoryStream()
    assert with_spool(stream, SpoolSettings(), place=1, processes=2) is stream
    stream.close()


@pytest.mark.parametrize("fewer", [1, 2])
def test_what_waited_is_taken_over_by_the_first(started, fewer):
    streams = started(4)
    for place, stream in enumerate(streams):
        fill(stream, f"p{place}-", 20)
    end(streams)
    first = started(fewer, 0)
    kept = {f"p{place}-{number}" for place in range(4) if place == 0 or place >= fewer for number in range(20)}
    assert Counter(waiting(first)) == dict.fromkeys(kept, 1)
    # What it does next is not mixed up with it.
    fill(first, "new", 5)
    assert waiting(first)[-5:] == [f"new{number}" for number in range(5)]
    first.spool.release(Cursor(first.spool._segments[-1].number, first.spool._segments[-1].end))
    first.close()
    again = started(fewer, 0)
    assert waiting(again) == []
    again.close()
    # More again: the folders can be used as before, and nothing comes back.
    for place, stream in enumerate(started(4)):
        assert waiting(stream) == ([f"p{place}-{number}" for number in range(20)] if 0 < place < fewer else [])
        fill(stream, "later", 1)
        assert waiting(stream)[-1] == "later0"


def test_what_was_sent_is_not_sent_again_but_for_one_file(started):
    streams = started(2)
    fill(streams[1], "a", 40)
    batch = streams[1].spool.read(streams[1].spool.start)
    batch = streams[1].spool.read(batch.end)
    half = streams[1].spool.read(batch.end, max_records=2)
    streams[1].spool.release(half.end)
    end(streams)
    left = waiting(started(1))
    sent = 2 * len(batch.payloads)
    assert left == [f"a{number}" for number in range(sent, 40)]


def test_a_file_that_a_killed_process_had_sent_to_its_end_is_removed(started, tmp_path):
    streams = started(2)
    fill(streams[1], "a", 3)
    batch = streams[1].spool.read(streams[1].spool.start)
    streams[1].spool.release(batch.end)
    # As it lies there now: the file that is being written stays until another is begun.
    shutil.copytree(tmp_path / "spool" / "process-1", tmp_path / "spool" / "process-2")
    assert list((tmp_path / "spool" / "process-2").glob("*.log"))
    streams[0].close()
    assert waiting(started(2, 0)) == []
    assert not list((tmp_path / "spool" / "process-2").glob("*.log"))


def test_a_frame_that_was_cut_off_is_no_damage_and_loses_nothing_else(started, tmp_path, caplog):
    streams = started(2)
    for place, stream in enumerate(streams):
        fill(stream, f"p{place}-", 5)
    end(streams)
    for place in (0, 1):
        last = sorted(folder_of(tmp_path / "spool", place).glob("*.log"))[-1]
        with last.open("ab") as file:
            file.write(last.read_bytes()[:15])
    caplog.set_level(logging.INFO)
    stream = started(1)
    assert Counter(waiting(stream)) == {f"p{place}-{number}": 1 for place in (0, 1) for number in range(5)}
    assert stream.spool.damaged == 0
    assert f"5 records that waited in {tmp_path / 'spool' / 'process-1'} are sent from" in caplog.text


def test_what_was_taken_over_can_be_forgotten_refused_records_too(started):
    streams = started(2)
    fill(streams[1], "a", 10)
    fill(streams[1], "b", 3, subject="bob")
    streams[1].spool.refuse(some("r", 1)[0], 1)
    streams[0].spool.refuse(some("q", 1)[0], 1)
    end(streams)
    stream = started(1)
    assert isinstance(stream, SpooledStream)
    refused = sorted(stream.spool.folder.glob("*.refused"))
    assert len(refused) == 2, "neither has overwritten the other"
    assert stream.spool.forget("ann", 2.0) == 12
    assert waiting(stream) == ["b0", "b1", "b2"]


def test_who_still_runs_keeps_what_it_has(started, tmp_path, caplog):
    streams = started(3)
    for place in (1, 2):
        fill(streams[place], f"p{place}-", 3)
    streams[0].close()
    streams[2].close()
    stream = started(1)
    assert sorted(waiting(stream)) == ["p2-0", "p2-1", "p2-2"]
    assert f"the spool {tmp_path / 'spool' / 'process-1'} belongs to process" in caplog.text
    assert waiting(streams[1]) == ["p1-0", "p1-1", "p1-2"]


def test_a_server_that_runs_is_not_robbed(started, tmp_path):
    streams = started(2)
    fill(streams[1], "a", 3)
    streams[1].close()
    with pytest.raises(StoreBusy, match="belongs to process"):
        started(1)
    assert list((tmp_path / "spool" / "process-1").glob("*.log"))


KILLED = """
import os, sys
from pathlib import Path
from perdure_services.serving.spool import adoption

rename, done = Path.rename, []

def killed(self, target):
    if len(done) == 2:
        os.kill(os.getpid(), 9)
    done.append(rename(self, target))

Path.rename = killed
adoption.adopt(Path(sys.argv[1]), 1)
"""


def test_a_kill_in_the_midst_loses_nothing_and_doubles_nothing(started, tmp_path):
    streams = started(3)
    for place, stream in enumerate(streams):
        fill(stream, f"p{place}-", 20)
    end(streams)
    ran = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "spool")], timeout=30)
    assert ran.returncode == -9
    assert Counter(waiting(started(1))) == {f"p{place}-{number}": 1 for place in range(3) for number in range(20)}
