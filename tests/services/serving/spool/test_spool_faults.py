from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
import time

import pytest

from perdure.errors import StoreFull
from perdure.stream.payload import Payload
from perdure_services.serving.spool import tail
from perdure_services.serving.spool.frame import HEADER, encode_frame
from perdure_services.serving.spool.spool import Spool


def payload(number, size=20):
    return Payload(f"{number}:".encode() + b"x" * size, float(number), f"i{number}", "ann")


def some(first, count, size=20):
    return [payload(number, size) for number in range(first, first + count)]


@pytest.fixture
def open_spool(tmp_path):
    opened = []

    def make(**named):
        named = {"max_bytes": 10_000_000, "fsync": "always", "fsync_seconds": 1, "segment_bytes": 100_000, **named}
        spool = Spool(tmp_path / "spool", **named)
        opened.append(spool)
        return spool

    yield make
    for spool in opened:
        spool.close()


def waiting(spool):
    found, cursor = [], spool.start
    while (batch := spool.read(cursor)).end > cursor:
        found.extend(batch.payloads)
        cursor = batch.end
    return found


def log_of(spool):
    return sorted(spool.folder.glob("*.log"))[-1]


@pytest.mark.parametrize("cut", [1, HEADER.size - 1, HEADER.size, HEADER.size + 3, 40])
def test_a_torn_tail_is_cut_off(open_spool, cut, caplog):
    spool = open_spool()
    spool.append(some(0, 5))
    spool.close()
    whole = log_of(spool).read_bytes()
    log_of(spool).write_bytes(whole + encode_frame(payload(5))[:cut])
    again = open_spool()
    assert waiting(again) == some(0, 5)
    assert f"{cut} bytes" in caplog.text
    assert log_of(again).read_bytes() == whole
    assert again.damaged == 0
    again.append(some(6, 2))
    again.close()
    assert waiting(open_spool()) == some(0, 5) + some(6, 2)


def test_zeros_that_a_power_cut_left_are_cut_off(open_spool):
    spool = open_spool()
    spool.append(some(0, 5))
    spool.close()
    with log_of(spool).open("ab") as file:
        file.write(bytes(4096))
    again = open_spool()
    assert (waiting(again), again.damaged) == (some(0, 5), 0)


@pytest.mark.parametrize("where", ["length", "complement", "sum", "content"])
@pytest.mark.parametrize("last", [True, False])
def test_what_came_before_a_damaged_frame_is_sent_and_the_file_set_aside(open_spool, where, last, caplog):
    spool = open_spool(segment_bytes=400)
    for first in range(0, 30, 10):
        spool.append(some(first, 10))
    spool.close()
    path = sorted(spool.folder.glob("*.log"))[2 if last else 1]
    data = bytearray(path.read_bytes())
    start = sum(len(encode_frame(one)) for one in some(20 if last else 10, 4))
    data[start + {"length": 2, "complement": 6, "sum": 9, "content": 30}[where]] ^= 0x40
    path.write_bytes(data)
    again = open_spool(segment_bytes=400)
    expected = some(0, 24) if last else some(0, 14) + some(20, 10)
    assert again.damaged == 1
    assert again.records == len(expected)
    assert waiting(again) == expected
    assert "is damaged" in caplog.text
    assert "The 4 records before it are sent" in caplog.text
    again.append(some(40, 1))
    assert waiting(again) == [*expected, payload(40)]
    cursor = again.start
    while (batch := again.read(cursor)).end > cursor:
        again.release(batch.end)
        cursor = batch.end
    aside = path.with_suffix(".damaged")
    assert aside.read_bytes() == data, "nothing of it is lost to whoever looks at it"
    assert not path.exists()
    assert again.records == again.bytes == 0


def test_a_frame_cut_off_in_a_file_that_was_finished_is_damage(open_spool):
    spool = open_spool(segment_bytes=400)
    spool.append(some(0, 10))
    spool.append(some(10, 10))
    spool.close()
    first = min(spool.folder.glob("*.log"))
    first.write_bytes(first.read_bytes()[:-3])
    again = open_spool()
    assert again.damaged == 1
    assert waiting(again) == some(0, 9) + some(10, 10)


@pytest.mark.parametrize("how", ["altered", "cut", "removed"])
def test_damage_while_the_process_runs_is_found_when_it_is_read(open_spool, how, caplog):
    spool = open_spool()
    spool.append(some(0, 10))
    path = log_of(spool)
    cursor = spool.read(spool.start, max_records=4).end
    if how == "removed":
        path.unlink()
    else:
        data = bytearray(path.read_bytes())
        data[cursor.position + 30] ^= 1
        path.write_bytes(data if how == "altered" else data[: cursor.position + 30])
    spool.append(some(10, 1))
    assert spool.read(cursor).payloads == ()
    assert spool.damaged == 1
    assert caplog.text.count("is damaged") == 1
    spool.append(some(11, 2))
    batch = spool.read(cursor)
    assert batch.payloads == tuple(some(11, 2))
    spool.release(batch.end)
    assert spool.records == spool.bytes == 0
    assert path.with_suffix(".damaged").exists() == (how != "removed")


class FullDisk:
    """Takes so many more bytes, then fails as a full disk does."""

    def __init__(self, monkeypatch, room):
        self.room = room
        real = os.pwrite

        def pwrite(file, data, at):
            if len(data) > self.room:
                if not self.room:
                    raise OSError(errno.ENOSPC, "No space left on device")
                data, self.room = data[: self.room], 0
            else:
                self.room -= len(data)
            return real(file, data, at)

        monkeypatch.setattr(tail.os, "pwrite", pwrite)


def test_a_full_disk_refuses_the_whole_group_and_cuts_off_what_was_written(open_spool, monkeypatch):
    spool = open_spool()
    spool.append(some(0, 5))
    before = log_of(spool).read_bytes()
    disk = FullDisk(monkeypatch, room=len(encode_frame(payload(5))) + 10)
    for _ in range(3):
        with pytest.raises(StoreFull, match="No space left"):
            spool.append(some(5, 3))
    assert log_of(spool).read_bytes() == before
    assert (waiting(spool), spool.records) == (some(0, 5), 5)
    disk.room = 1_000_000
    spool.append(some(8, 2))
    assert waiting(spool) == some(0, 5) + some(8, 2)
    spool.close()
    again = open_spool()
    assert (waiting(again), again.damaged) == (some(0, 5) + some(8, 2), 0)


def test_a_group_that_cannot_be_forced_is_taken_back(open_spool, monkeypatch):
    spool = open_spool()
    spool.append(some(0, 2))
    real = os.fsync
    monkeypatch.setattr(tail.os, "fsync", lambda file: (_ for _ in ()).throw(OSError(errno.EIO, "broken")))
    with pytest.raises(StoreFull, match="broken"):
        spool.append(some(2, 2))
    monkeypatch.setattr(tail.os, "fsync", real)
    spool.append(some(4, 1))
    assert waiting(spool) == [*some(0, 2), payload(4)]


def test_what_cannot_be_cut_off_is_left_behind_in_a_file_of_its_own(open_spool, monkeypatch, caplog):
    spool = open_spool()
    spool.append(some(0, 2))
    disk = FullDisk(monkeypatch, room=30)
    real = os.ftruncate
    monkeypatch.setattr(tail.os, "ftruncate", lambda *given: (_ for _ in ()).throw(OSError(errno.EIO, "broken")))
    with pytest.raises(StoreFull):
        spool.append(some(2, 2))
    assert "cannot be cut off" in caplog.text
    monkeypatch.setattr(tail.os, "ftruncate", real)
    disk.room = 1_000_000
    spool.append(some(4, 1))
    assert waiting(spool) == [*some(0, 2), payload(4)]
    spool.close()
    assert waiting(open_spool()) == [*some(0, 2), payload(4)]


def test_a_name_that_cannot_be_forced_is_no_new_file(open_spool, monkeypatch):
    spool = open_spool()
    real = os.fsync
    monkeypatch.setattr(tail.os, "fsync", lambda file: (_ for _ in ()).throw(OSError(errno.EIO, "broken")))
    with pytest.raises(StoreFull):
        spool.append(some(0, 2))
    assert list(spool.folder.glob("*.log")) == []
    monkeypatch.setattr(tail.os, "fsync", real)
    spool.append(some(0, 2))
    assert waiting(spool) == some(0, 2)


def test_on_a_full_disk_a_file_that_was_sent_makes_room(open_spool, monkeypatch):
    spool = open_spool()
    spool.append(some(0, 10))
    spool.release(spool.read(spool.start).end)
    first = log_of(spool)
    disk = FullDisk(monkeypatch, room=0)
    unlink = os.unlink

    def freeing(path, **named):
        disk.room += 10_000
        unlink(path, **named)

    monkeypatch.setattr(os, "unlink", freeing)
    spool.append(some(10, 3))
    assert not first.exists()
    assert waiting(spool) == some(10, 3)


LIMITED = """
import resource, sys
from perdure.errors import StoreFull
from perdure.stream.payload import Payload
from perdure_services.serving.spool.spool import Spool
spool = Spool(sys.argv[1], max_bytes=10**9, fsync="always", fsync_seconds=1, segment_bytes=10**9)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
kept = 0
for number in range(100):
    try:
        spool.append([Payload(b"x" * 900, 1.0, f"{number}-{part}", None) for part in range(3)])
    except StoreFull as error:
        print(kept, error)
        break
    kept += 3
assert spool.records == kept
spool.release(spool.read(spool.start).end)
spool.append([Payload(b"y" * 900, 1.0, "later", None)])
print(spool.records)
"""


def test_a_file_that_the_system_lets_grow_no_further(tmp_path, open_spool):
    child = [sys.executable, "-c", LIMITED, str(tmp_path / "spool")]
    first, second = subprocess.run(child, capture_output=True, text=True, check=True).stdout.splitlines()
    kept = int(first.split()[0])
    assert 40 < kept < 55
    assert "File too large" in first
    assert second == "1"
    assert [one.interaction for one in waiting(open_spool())] == ["later"]


def test_a_disk_of_one_megabyte(tmp_path):
    """The real thing, where this process may mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    try:
        mounted = subprocess.run(mount, capture_output=True).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("this process may not mount a disk")
    spool = Spool(disk / "spool", max_bytes=10**9, fsync="always", fsync_seconds=1, segment_bytes=200_000)
    try:
        kept, refused = 0, ""
        while not refused and kept < 2000:
            try:
                spool.append(some(kept, 10, size=1000))
                kept += 10
            except StoreFull as error:
                refused = str(error)
        assert "No space left" in refused
        assert 700 < kept < 1050
        assert spool.records == kept
        with pytest.raises(StoreFull):
            spool.append(some(kept, 10, size=1000))
        with pytest.raises(StoreFull, match="forget again"):
            spool.forget("ann", 1e9)
        sent = 0
        while sent < 400:
            batch = spool.read(spool.start, max_records=90)
            sent += len(batch.payloads)
            spool.release(batch.end)
        spool.append(some(kept, 10, size=1000))
        spool.close()
        spool = Spool(disk / "spool", max_bytes=10**9, fsync="always", fsync_seconds=1)
        assert waiting(spool) == some(sent, kept + 10 - sent, size=1000)
        assert spool.forget("ann", 1e9) == kept + 10 - sent
        assert spool.records == 0
    finally:
        spool.close()
        subprocess.run(["umount", str(disk)], check=True)


WRITER = """
import sys
from perdure.stream.payload import Payload
from perdure_services.serving.spool.spool import Spool
spool = Spool(sys.argv[1], max_bytes=10**9, fsync="never", fsync_seconds=1, segment_bytes=3000)
number, size = int(sys.argv[2]), 1
while True:
    group = [Payload(b"x" * (number % 97), 1.0, str(number + part), "ann") for part in range(size)]
    spool.append(group)
    number += size
    size = size % 7 + 1
    print(number, flush=True)
    if number % 5 == 0:
        batch = spool.read(spool.start, max_records=3)
        # Written before the release: what was sent at most.
        print("sent", int(batch.payloads[-1].interaction) + 1, flush=True)
        spool.release(batch.end)
    if number % 50 == 0:
        spool.forget("nobody", 2.0)
"""


def test_kill_loses_nothing_that_was_acknowledged_and_keeps_the_order(tmp_path, open_spool):
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
    begin = sent = 0
    for lifetime in (0.02, 0.05, 0.11, 0.17, 0.0):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path / "spool"), str(begin)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout.readline()
        time.sleep(lifetime)
        process.send_signal(signal.SIGKILL)
        lines = process.stdout.read().split("\n")[:-1]
        process.stdout.close()
        process.wait(10)
        acknowledged = max([int(line) for line in lines if not line.startswith("sent")], default=begin + 1)
        sent = max([int(line.split()[1]) for line in lines if line.startswith("sent")], default=sent)
        spool = open_spool(fsync="never", segment_bytes=3000)
        found = [int(one.interaction) for one in waiting(spool)]
        assert found == list(range(found[0], found[-1] + 1)), "in order, each once"
        assert found[0] <= sent or not sent
        assert found[-1] + 1 >= acknowledged
        assert spool.damaged == 0
        spool.close()
        begin = found[-1] + 1
    assert begin > 100
