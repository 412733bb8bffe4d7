from __future__ import annotations

import pytest

from perdure.config import Settings
from perdure.inflow import ShardInflow, StreamInflow, inflow_of
from perdure.memory import ingest, open_memory
from perdure.records import Interaction
from perdure.registry import Shards
from perdure.stream import MemoryStream


@pytest.fixture
def settings(tmp_path):
    return Settings().with_values(
        {
            "registry.url": str(tmp_path / "registry"),
            "memory.path": str(tmp_path / "memory"),
            "memory.pending_labels_below": 1,
        }
    )


@pytest.fixture
def snapshot(settings, tmp_path):
    """Publishes a snapshot of partition 0 with so many interactions."""
    shards = Shards(settings.registry.url, settings.stream.topic)
    held = []

    def make(count):
        number = len(held)
        stream = MemoryStream()
        stream.append([Interaction(time=float(row), id=f"row-{row}", text=f"text {row}") for row in range(count)])
        with open_memory(settings.with_values({"memory.path": str(tmp_path / f"shard-{number}")})) as memory:
            # One shard is one memory, whoever holds it: the same name for all snapshots.
            memory._store.set_state(identity="shard")
            ingest(stream, memory)
            memory.snapshot(tmp_path / f"copy-{number}")
            files = {"memory.db": tmp_path / f"copy-{number}" / "memory.db"}
            held.append(shards.publish(held[-1] if held else shards.claim(0, "one"), files, memory.offset()))

    return make


def test_the_stream_is_read_unless_others_read_it(settings):
    stream = MemoryStream()
    assert isinstance(inflow_of(settings, stream), StreamInflow)
    assert isinstance(inflow_of(settings.with_values({"ingest.shards": True}), stream), ShardInflow)


def test_memory_follows_the_snapshots(settings, snapshot):
    inflow = ShardInflow(settings)
    with open_memory(settings) as memory:
        assert inflow.end() == {}
        assert inflow.bring(memory, lambda: True).interactions == 0
        snapshot(3)
        assert inflow.end() != dict(memory.offset())
        assert inflow.bring(memory, lambda: True).interactions == 3
        assert inflow.end() == dict(memory.offset())
        assert inflow.bring(memory, lambda: True).interactions == 0
        snapshot(5)
        assert inflow.bring(memory, lambda: True).interactions == 2
        assert memory.counts().joinable == 5


def test_a_turn_under_way_keeps_its_rows(settings, snapshot):
    inflow = ShardInflow(settings)
    with open_memory(settings) as memory:
        snapshot(2)
        inflow.bring(memory, lambda: True)
        memory.freeze(champion=None, promotion=1)
        snapshot(4)
        assert inflow.bring(memory, lambda: True).interactions == 0
        memory.finish("{}")
        assert inflow.bring(memory, lambda: True).interactions == 2


def test_it_can_be_told_to_stop(settings, snapshot):
    snapshot(2)
    with open_memory(settings) as memory:
        assert ShardInflow(settings).bring(memory, lambda: False).interactions == 0
        assert not memory.offset()
