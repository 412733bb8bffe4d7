from __future__ import annotations

import threading

import pytest

from perdure.errors import StoreFull
from perdure.stream.payload import Payload
from perdure_services.serving.spool import segment
from perdure_services.serving.spool.spool import Spool


def of(subject, number, at=1.0):
    return Payload(f"text of {subject} {number}".encode(), at, f"{subject}-{number}", subject)


def on(interaction, at=1.0):
    return Payload(f"feedback on {interaction}".encode(), at, interaction, None)


ERASURE = Payload(b'{"kind":"erasure"}', 9.0, None, None)


@pytest.fixture
def open_spool(tmp_path):
    opened = []

    def make(segment_bytes=200):
        spool = Spool(
            tmp_path / "spool", max_bytes=1_000_000, fsync="never", fsync_seconds=1, segment_bytes=segment_bytes
        )
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


def on_disk(spool):
    return b"".join(path.read_bytes() for path in sorted(spool.folder.iterdir()))


def test_a_subject_and_feedback_on_it_go_and_nobody_else(open_spool):
    spool = open_spool()
    early = on("ann-1")
    kept = [of("bob", 0), on("bob-0"), of("anna", 2), of("ann", 3, at=6.0), on("ann-3"), on("stranger"), ERASURE]
    spool.append([early, kept[0], of("ann", 1)])
    spool.append(kept[1:4])
    spool.append([on("ann-1", at=8.0), *kept[4:], of("ann", 4, at=5.0)])
    assert spool.forget("ann", 5.0) == 4
    assert waiting(spool) == kept
    assert spool.records == len(kept)
    assert b"ann 1" not in on_disk(spool)
    assert b"on ann-1" not in on_disk(spool)
    assert spool.forget("ann", 5.0) == 0
    spool.close()
    again = open_spool()
    assert (waiting(again), again.records, again.damaged) == (kept, len(kept), 0)


def test_what_was_sent_is_blanked_too_but_not_counted(open_spool):
    spool = open_spool(segment_bytes=100_000)
    spool.append([of("ann", 0), of("bob", 0), on("ann-0"), of("bob", 1)])
    spool.release(spool.read(spool.start, max_records=2).end)
    assert spool.forget("ann", 5.0) == 1
    assert waiting(spool) == [of("bob", 1)]
    assert b"of ann" not in on_disk(spool)


def test_cursors_stay_true_while_others_forget(open_spool):
    spool = open_spool(segment_bytes=100_000)
    spool.append([of("ann" if number % 2 else "bob", number) for number in range(20)])
    batch = spool.read(spool.start, max_records=5)
    assert spool.again(batch) is batch
    assert spool.forget("ann", 5.0) == 10
    fresh = spool.again(batch)
    assert [one.interaction for one in fresh.payloads] == ["bob-0", "bob-2", "bob-4"]
    assert (fresh.start, fresh.end) == (batch.start, batch.end)
    assert spool.again(fresh) is fresh
    assert [one.interaction for one in spool.read(batch.end).payloads] == [f"bob-{n}" for n in range(6, 20, 2)]
    spool.release(batch.end)
    assert spool.records == 7


def test_a_batch_of_which_nothing_is_left_is_still_passed_over(open_spool):
    spool = open_spool(segment_bytes=100_000)
    spool.append([of("ann", number) for number in range(4)])
    spool.append([of("bob", 0)])
    spool.forget("ann", 5.0)
    assert spool.oldest_seconds() > 0
    first = spool.read(spool.start, max_bytes=100)
    assert first.payloads == ()
    assert first.end > first.start
    assert waiting(spool) == [of("bob", 0)]


def test_forgetting_beside_readers_and_writers_loses_nothing_of_others(open_spool):
    spool = open_spool(segment_bytes=500)
    total, sent, failures = 600, [], []

    def write():
        for number in range(total):
            spool.append([of("ann" if number % 3 == 0 else "bob", number)])

    def send():
        cursor = spool.start
        try:
            while len(sent) < total * 2 // 3:
                batch = spool.again(spool.read(cursor, max_records=7))
                sent.extend(one.interaction for one in batch.payloads if one.subject == "bob")
                spool.release(batch.end)
                cursor = batch.end
        except Exception as error:  # noqa: BLE001
            failures.append(error)

    threads = [threading.Thread(target=write), threading.Thread(target=send)]
    for thread in threads:
        thread.start()
    while threads[0].is_alive():
        spool.forget("ann", 5.0)
    for thread in threads:
        thread.join(10)
    assert failures == []
    assert sent == [f"bob-{number}" for number in range(total) if number % 3]
    assert spool.damaged == 0


def test_a_disk_without_room_for_the_rewriting_is_said_and_leaves_all_whole(open_spool, monkeypatch):
    spool = open_spool()
    spool.append([of("ann", 0), of("bob", 0)])

    def fail(file):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(segment.os, "fsync", fail)
        with pytest.raises(StoreFull, match="forget again"):
            spool.forget("ann", 5.0)
    assert list(spool.folder.glob("*.tmp")) == []
    assert waiting(spool) == [of("ann", 0), of("bob", 0)]
    assert spool.forget("ann", 5.0) == 1


def test_what_a_kill_left_of_a_rewriting_is_removed(open_spool):
    spool = open_spool()
    spool.append([of("bob", 0)])
    spool.close()
    (spool.folder / "000000000001.log.tmp").write_bytes(b"half")
    assert waiting(open_spool()) == [of("bob", 0)]
    assert list(spool.folder.glob("*.tmp")) == []


def test_refused_records_are_forgotten_and_damaged_files_named(open_spool, caplog):
    spool = open_spool()
    assert spool.refuse(of("ann", 0), 1)
    assert spool.refuse(of("bob", 0), 1)
    (spool.folder / "000000000009.damaged").write_bytes(b"ann?")
    assert spool.forget("ann", 5.0) == 1
    refused = (spool.folder / "000000000001.refused").read_bytes()
    assert b"of ann" not in refused
    assert b"of bob" in refused
    assert "000000000009.damaged cannot be searched" in caplog.text
