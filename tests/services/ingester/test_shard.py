from __future__ import annotations

import pytest

from perdure.config import Settings
from perdure.errors import StaleShard, StreamError
from perdure.inflow import ShardInflow
from perdure.memory import open_memory
from perdure.records import Feedback, Interaction
from perdure.registry import Shards
from perdure.stream import MemoryStream
from perdure_services.ingester.shard import Shard


@pytest.fixture
def settings(tmp_path):
    return Settings().with_values(
        {
            "registry.url": str(tmp_path / "registry"),
            "memory.path": str(tmp_path / "memory"),
            "memory.pending_labels_below": 1,
            "ingest.shards": True,
            "ingest.snapshot_seconds": 1e-9,
        }
    )


@pytest.fixture
def shards(settings):
    return Shards(settings.registry.url, settings.stream.topic)


class Remaining(MemoryStream):
    """One partition, which outlives the shard that reads it."""

    def close(self):
        pass


@pytest.fixture
def stream():
    return Remaining()


@pytest.fixture
def take(settings, shards, stream, tmp_path):
    opened = []

    def make(owner, values=None):
        opened.append(
            Shard(
                settings.with_values(values or {}),
                shards=shards,
                partition=0,
                owner=owner,
                folder=tmp_path / owner,
                stream=stream,
                absorb=lambda memory: memory.deltas(1000),
            )
        )
        return opened[-1]

    yield make
    for shard in opened:
        shard.close()


def said(first, last):
    records = []
    for number in range(first, last):
        records.append(Interaction(time=float(number), id=f"row-{number}", text=f"text {number}"))
        records.append(Feedback(time=number + 0.5, interaction=f"row-{number}", label="ab"[number % 2]))
    return records


def always():
    return True


def test_the_next_owner_goes_on_where_the_last_snapshot_ends(take, stream, settings, shards):
    first = take("one")
    stream.append(said(0, 10))
    assert first.read(always).interactions == 10
    first.publish()
    stream.append(said(10, 14))
    # Read, but never published: it is read again.
    first.read(lambda: not first.due or True)
    second = take("two")
    counts = second.read(always)
    assert (counts.interactions, counts.repeated) == (4, 0)
    second.publish()
    with open_memory(settings) as memory:
        ShardInflow(settings).bring(memory, always)
        assert memory.counts().joinable == 14
        assert len(memory.deltas(1000)) == 14


def test_who_was_taken_over_cannot_publish(take, stream, shards):
    first = take("one")
    stream.append(said(0, 3))
    first.read(always)
    take("two")
    with pytest.raises(StaleShard):
        first.publish()
    assert shards.newest(0).offset == {}


def test_nothing_new_is_no_snapshot(take, stream, shards):
    shard = take("one")
    assert not shard.due
    shard.publish()
    assert shards.newest(0).number == 1
    stream.append(said(0, 1))
    shard.read(always)
    assert shard.due
    shard.publish()
    assert shards.newest(0).number == 2
    assert not shard.due
    shard.publish()
    assert shards.newest(0).number == 2


def test_reading_stops_when_a_snapshot_is_due(take, stream, monkeypatch):
    monkeypatch.setattr("perdure.memory.PAGE", 5)
    stream.append(said(0, 20))
    shard = take("one")
    assert shard.read(always).interactions < 20
    assert shard.due
    patient = take("two", {"ingest.snapshot_seconds": 1000.0})
    assert patient.read(always).interactions == 20
    assert not patient.due


def test_a_snapshot_leaves_nothing_behind_and_holds_no_write_ahead_log(take, stream, shards, tmp_path):
    shard = take("one")
    stream.append(said(0, 3))
    shard.read(always)
    shard.publish()
    assert set(shards.newest(0).files) == {"memory.db"}
    assert not list((tmp_path / "one").glob("snapshot-*"))


def test_a_stream_that_fails_keeps_what_was_read(take, stream, monkeypatch):
    monkeypatch.setattr("perdure.memory.PAGE", 4)
    stream.append(said(0, 10))
    shard = take("one", {"ingest.snapshot_seconds": 1000.0})
    real, pages = stream.read, []

    def fail(offset, limit):
        pages.append(offset)
        if len(pages) == 3:
            raise StreamError("gone")
        return real(offset, limit)

    monkeypatch.setattr(stream, "read", fail)
    with pytest.raises(StreamError):
        shard.read(always)
    assert shard.read(always).interactions == 6
