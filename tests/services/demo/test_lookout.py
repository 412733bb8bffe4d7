from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from perdure.config import Settings
from perdure.errors import UsageError
from perdure.memory import Quarantined, open_memory
from perdure.records import Feedback, Interaction
from perdure.registry import Card, Registry
from perdure.registry.card import EncoderCard
from perdure.stream import open_stream
from perdure_services.demo.lookout import Lookout


@pytest.fixture
def settings(tmp_path):
    return Settings().with_values(
        {
            "stream.url": f"sqlite:{tmp_path / 'stream.db'}",
            "memory.path": str(tmp_path / "memory"),
            "registry.url": str(tmp_path / "registry"),
            "trainer.min_new_labels": 2,
        }
    )


@pytest.fixture
def record(settings):
    def append(*names):
        with open_stream(settings.stream) as stream:
            for name in names:
                stream.append([Interaction(time=time.time(), id=name, text=name)])
                stream.append([Feedback(time=time.time(), interaction=name, label="order")])

    return append


def ingest(settings):
    with open_memory(settings) as memory, open_stream(settings.stream) as stream:
        memory.ingest(stream.read(memory.offset(), 1000))


def test_what_is_recorded_must_be_read_before_things_are_settled(settings, record):
    ingest(settings)
    lookout = Lookout(settings)
    assert lookout.look().settled
    record("a")
    assert not lookout.look().settled
    ingest(settings)
    # One label waits, which is not enough for a turn before its time.
    assert (lookout.look().waiting, lookout.look().settled) == (1, True)
    record("b")
    ingest(settings)
    assert (lookout.look().waiting, lookout.look().settled) == (2, False)


def test_a_turn_is_seen_while_it_is_under_way_and_afterwards(settings, record, turn_result):
    record("a", "b", "c")
    ingest(settings)
    lookout = Lookout(settings)
    with open_memory(settings) as memory:
        memory.freeze(champion=None, promotion=1)
        through = memory.deltas(100)[-1].sequence
        (Path(memory.folder) / "head").write_bytes(b"sums")
        memory.set_statistics("head", through=through)
        # The turn's process holds the memory: looking does not disturb it.
        sight = lookout.look()
        assert (sight.learning, sight.settled, sight.waiting) == (True, False, 0)
        memory.finish(json.dumps(turn_result(1).to_json()))
    sight = lookout.look()
    assert (sight.learning, sight.settled, sight.waiting) == (False, True, 0)
    assert sight.turns == (turn_result(1),)


def test_promotions(settings):
    ingest(settings)
    registry = Registry(settings.registry.url)
    for name in ("v1", "v2"):
        registry.write(
            Card(name=name, kind="first", encoder=EncoderCard(name="double", fingerprint="0"), labels=("a",)), {}
        )
        registry.promote(name, reason="better", by="judge")
    assert [entry.version for entry in Lookout(settings).look().promotions] == ["v1", "v2"]


def test_quarantine(settings):
    row = Quarantined("id", "why", "text", "label", 1.0)
    with open_memory(settings) as memory:
        memory.quarantine([row])
    assert Lookout(settings).quarantined() == (row,)


def test_a_memory_that_is_not_there_is_told(settings):
    with pytest.raises(UsageError, match="no memory"):
        Lookout(settings).look()
