from __future__ import annotations

import logging
import os
import random
import stat
import subprocess
import sys
import time

import pytest

from perdure.errors import SpoolFull, StoreBusy, StoreFull, StreamError
from perdure.records import Feedback, Interaction
from perdure.stream.payload import Payload, payloads
from perdure_services.serving.spool import tail
from perdure_services.serving.spool.frame import encode_frame
from perdure_services.serving.spool.position import Cursor
from perdure_services.serving.spool.spool import Spool


def payload(number, *, size=20, subject="ann", at=None):
    return Payload(f"{number}:".encode() + b"x" * size, float(number) if at is None else at, f"i{number}", subject)


def some(first, count, **named):
    return [payload(number, **named) for number in range(first, first + count)]


@pytest.fixture
def open_spool(tmp_path):
    opened = []

    def make(**named):
        named = {"max_bytes": 10_000_000, "fsync": "never", "fsync_seconds": 0.01, "segment_bytes": 300, **named}
        spool = Spool(tmp_path / "spool", **named)
        opened.append(spool)
        return spool

    yield make
    for spool in opened:
        spool.close()


def waiting(spool, **named):
    """All that is not released, as a forwarder would read it."""
    found, cursor = [], spool.start
    while (batch := spool.read(cursor, **named)).end > cursor:
        found.extend(batch.payloads)
        cursor = batch.end
    return found


def files(spool, suffix=".log"):
    return sorted(path.name for path in spool.folder.glob(f"*{suffix}"))


def test_what_is_appended_is_read_in_order_with_everything_it_has(open_spool):
    spool = open_spool(segment_bytes=4000)
    records = payloads(
        [
            Interaction(time=1.5, id="a", text="hällo\0", subject="Åsa"),
            Feedback(time=2.5, interaction="a", label="refund"),
            Interaction(time=3.5, id="b", text="x" * 10_000),
        ]
    )
    erasure = Payload(b"{}", 4.5, None, None)
    empty = Payload(b"", -1.0, "", "")
    spool.append(records)
    spool.append([erasure, empty])
    spool.append([])
    assert waiting(spool) == [*records, erasure, empty]
    assert waiting(spool, max_bytes=10) == [*records, erasure, empty], "a record longer than the limit is read alone"
    assert waiting(spool, max_records=1) == [*records, erasure, empty]
    assert spool.records == 5
    assert spool.bytes == sum(len(encode_frame(one)) for one in [*records, erasure, empty])


def test_a_batch_is_bounded_in_records_and_in_bytes(open_spool):
    spool = open_spool(segment_bytes=1_000_000)
    spool.append(some(0, 10, size=100))
    assert len(spool.read(spool.start, max_records=3).payloads) == 3
    frame = len(encode_frame(payload(0, size=100)))
    assert len(spool.read(spool.start, max_bytes=frame * 4 + frame // 2).payloads) == 4


def test_released_segments_are_removed_and_the_position_inside_one_is_kept(open_spool):
    spool = open_spool(segment_bytes=200)
    for first in range(0, 40, 4):
        spool.append(some(first, 4))
    assert len(files(spool)) == 10
    cursor = spool.start
    for _ in range(3):
        cursor = spool.read(cursor).end
    inside = spool.read(cursor, max_records=2).end
    spool.release(inside)
    assert files(spool)[0] == "000000000004.log"
    assert spool.records == 26
    spool.release(cursor)
    assert spool.start == inside, "a release never goes back"
    spool.close()
    again = open_spool()
    assert again.start == inside
    assert again.start.index == 2
    assert waiting(again) == some(14, 26)
    assert again.records == 26
    assert again.bytes == sum(len(encode_frame(one)) for one in some(14, 26))


def test_what_is_all_sent_leaves_no_file_behind(open_spool):
    spool = open_spool()
    spool.append(some(0, 20))
    spool.release(spool.read(spool.start).end)
    assert (spool.records, spool.bytes, len(files(spool))) == (0, 0, 1)
    spool.append(some(20, 1))
    assert files(spool) == ["000000000002.log"]
    spool.release(spool.read(spool.start).end)
    spool.close()
    assert files(spool) == []
    again = open_spool()
    again.append(some(21, 2))
    assert files(again) == ["000000000003.log"], "a number that was used is not used again"
    assert waiting(again) == some(21, 2)


def test_a_position_that_cannot_be_read_costs_a_resend_and_no_record(open_spool):
    spool = open_spool(segment_bytes=10_000)
    spool.append(some(0, 10))
    spool.release(spool.read(spool.start, max_records=4).end)
    spool.close()
    position = spool.folder / "position"
    saved = bytearray(position.read_bytes())
    saved[9] ^= 1
    for damaged in (bytes(saved), b"", b"short"):
        position.write_bytes(damaged)
        again = open_spool()
        assert waiting(again) == some(0, 10)
        again.close()


def test_the_age_is_that_of_the_oldest_record_not_released(open_spool):
    spool = open_spool(segment_bytes=100_000)
    assert spool.oldest_seconds() == 0
    spool.append([payload(0, at=time.time() - 60, size=9000), payload(1, at=time.time() - 30)])
    assert spool.oldest_seconds() == pytest.approx(60, abs=5)
    spool.release(spool.read(spool.start, max_records=1).end)
    assert spool.oldest_seconds() == pytest.approx(30, abs=5)
    spool.release(spool.read(spool.start).end)
    assert spool.oldest_seconds() == 0


def test_the_bound_refuses_whole_groups_until_there_is_room(open_spool):
    frame = len(encode_frame(payload(1)))
    spool = open_spool(max_bytes=10 * frame)
    spool.append(some(1, 8))
    with pytest.raises(SpoolFull, match=r"spool\.max_bytes") as refused:
        spool.append(some(9, 3))
    assert isinstance(refused.value, StoreFull)
    assert str(10 * frame) in str(refused.value)
    spool.append(some(1, 2))
    assert spool.bytes == 10 * frame
    spool.release(spool.read(spool.start, max_records=3).end)
    spool.append(some(1, 3))
    with pytest.raises(SpoolFull):
        spool.append(some(1, 1))
    assert [one.interaction for one in waiting(spool)] == ["i4", "i5", "i6", "i7", "i8", "i1", "i2", "i1", "i2", "i3"]


def test_a_small_bound_bounds_the_disk_too(open_spool):
    spool = open_spool(max_bytes=2000, segment_bytes=1_000_000)
    for first in range(200):
        spool.append(some(first, 10))
        spool.release(spool.read(spool.start).end)
        assert sum(path.stat().st_size for path in spool.folder.iterdir()) < 4100


def test_a_folder_belongs_to_one_process(open_spool):
    spool = open_spool()
    with pytest.raises(StoreBusy, match=rf"belongs to process {os.getpid()}\b.*spool\.path"):
        open_spool()
    program = (
        "import sys\nfrom perdure.errors import StoreBusy\nfrom perdure_services.serving.spool.spool import Spool\n"
        "try:\n    Spool(sys.argv[1], max_bytes=1000, fsync='never', fsync_seconds=1)\n"
        "except StoreBusy as error:\n    print(error)\n"
    )
    child = [sys.executable, "-c", program, str(spool.folder)]
    assert f"process {os.getpid()}" in subprocess.run(child, capture_output=True, text=True, check=True).stdout
    spool.close()
    assert subprocess.run(child, capture_output=True, text=True, check=True).stdout == ""
    open_spool()


def test_a_folder_that_cannot_be_made_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreFull, match=r"spool\.path"):
        Spool(tmp_path / "file" / "spool", max_bytes=1, fsync="never", fsync_seconds=1)


def test_a_closed_spool_takes_nothing_and_a_late_release_does_nothing(open_spool):
    spool = open_spool()
    spool.append(some(0, 2))
    end = spool.read(spool.start).end
    spool.close()
    spool.close()
    spool.release(end)
    with pytest.raises(StreamError, match="closed"):
        spool.append(some(2, 1))
    with pytest.raises(StreamError, match="closed"):
        spool.forget("ann", 1.0)
    assert waiting(open_spool()) == some(0, 2)


class Disk:
    """Counts forced writes, and says of what."""

    def __init__(self, monkeypatch):
        self.forced = []
        real = os.fsync

        def fsync(file):
            self.forced.append("folder" if stat.S_ISDIR(os.fstat(file).st_mode) else "file")
            real(file)

        monkeypatch.setattr(tail.os, "fsync", fsync)


def test_always_forces_each_group_once_and_each_new_name(open_spool, monkeypatch):
    disk = Disk(monkeypatch)
    spool = open_spool(fsync="always")
    spool.append(some(0, 10))
    assert disk.forced == ["folder", "file"]
    spool.append(some(10, 500))
    assert disk.forced == ["folder", "file"] * 2


def test_never_forces_nothing(open_spool, monkeypatch):
    disk = Disk(monkeypatch)
    spool = open_spool(fsync="never")
    for first in range(20):
        spool.append(some(first, 10))
    spool.close()
    assert disk.forced == []


def test_interval_forces_what_was_written_soon_and_then_rests(open_spool, monkeypatch, until):
    disk = Disk(monkeypatch)
    spool = open_spool(fsync="interval", fsync_seconds=0.02, segment_bytes=1_000_000)
    assert spool.alive
    for first in range(20):
        spool.append(some(first, 10))
    until(lambda: disk.forced.count("file") >= 1)
    time.sleep(0.1)
    assert disk.forced.count("file") <= 5, "not each append"
    resting = len(disk.forced)
    time.sleep(0.06)
    assert len(disk.forced) == resting
    spool.close()
    assert not spool.alive


def test_interval_forces_the_last_writes_at_the_end_and_before_the_next_file(open_spool, monkeypatch):
    disk = Disk(monkeypatch)
    spool = open_spool(fsync="interval", fsync_seconds=60)
    spool.append(some(0, 10))
    assert disk.forced == ["folder"]
    spool.append(some(10, 1))
    assert disk.forced == ["folder", "file", "folder"]
    spool.close()
    assert disk.forced == ["folder", "file", "folder", "file"]


def test_a_disk_that_cannot_be_forced_is_tried_again(open_spool, monkeypatch, until, caplog):
    troubles = [OSError(5, "broken"), OSError(5, "broken")]
    forced = []

    def fsync(file):
        if troubles:
            raise troubles.pop()
        forced.append(file)

    spool = open_spool(fsync="interval", fsync_seconds=0.01, segment_bytes=1_000_000)
    spool.append(some(0, 1))
    monkeypatch.setattr(tail.os, "fsync", fsync)
    spool.append(some(1, 1))
    until(lambda: forced)
    assert [record.levelno for record in caplog.records] == [logging.ERROR], "once"


@pytest.mark.parametrize("seed", range(6))
def test_any_walk_of_appends_reads_releases_erasures_and_restarts_equals_a_list(open_spool, seed):
    """Against a plain list of what was appended and neither released nor forgotten."""
    rng = random.Random(seed)
    spool = open_spool()
    expected, number, cursors = [], 0, []
    for _ in range(250):
        step = rng.random()
        if step < 0.45:
            count = rng.randint(1, 6)
            group = []
            for _ in range(count):
                number += 1
                name, whose = f"i{rng.randint(max(number - 5, 0), number)}", rng.choice(["ann", "bob", None])
                group.append(Payload(b"y" * rng.randint(0, 80), float(number), name, whose))
            spool.append(group)
            expected += group
        elif step < 0.75 and expected:
            batch = spool.read(spool.start, max_records=rng.randint(1, 5), max_bytes=rng.randint(1, 400))
            assert list(batch.payloads) == expected[: len(batch.payloads)]
            spool.release(batch.end)
            expected = expected[len(batch.payloads) :]
        elif step < 0.82:
            spool.close()
            spool = open_spool()
            cursors.clear()
        elif step < 0.86 and expected:
            before, subject, until = len(expected), rng.choice(["ann", "bob"]), float(number - rng.randint(0, 6))
            # What was sent but lies in a file still counts: its feedback goes too.
            kept = [
                one.interaction
                for path in sorted(spool.folder.glob("*.log"))
                for one in frames_of(path, subject, until)
            ]
            expected = [
                one
                for one in expected
                if not (one.subject == subject and one.time <= until)
                and not (one.subject is None and one.interaction in kept)
            ]
            assert spool.forget(subject, until) == before - len(expected)
        assert spool.records == len(expected)
        assert waiting(spool, max_records=rng.randint(1, 10)) == expected
    assert number > 200


def frames_of(path, subject, until):
    from perdure_services.serving.spool.frame import decode_frame, walk

    data = path.read_bytes()
    found = [decode_frame(data, start, stop) for start, stop in walk(data)]
    return [one for one in found if one is not None and one.subject == subject and one.time <= until]


def test_memory_does_not_grow_with_the_backlog(open_spool):
    import tracemalloc

    spool = open_spool(segment_bytes=100_000, max_bytes=100_000_000)
    group = some(0, 500, size=300)
    spool.append(group)
    tracemalloc.start()
    try:
        for _ in range(40):
            spool.append(group)
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert spool.bytes > 6_000_000
    assert kept < 50_000
    assert Cursor() < spool.read(spool.start).end
