"""What is joined, counted, kept and forgotten when a memory is assembled from shards."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase
from hypothesis import strategies as st

from perdure.errors import UsageError
from perdure.memory import Quarantined
from perdure.model.head import Statistics
from perdure_replay import ReplayMemory

NOW = 1_700_000_000.0
TEXTS = ("Where is my card?", "where is  MY card?", "Card lost", "card LOST", "Hello", "hello", "x", "y", "z")
IDS = tuple(f"i{number}" for number in range(9))
SUBJECTS = (None, "ann", "bob")
TIMES = st.integers(-40, 40).map(lambda time: NOW + time)
PHASES = (Phase.explicit, Phase.generate)
SPACE = "abc.safetensors"

Net = Counter[tuple[str, str]]
Open = Callable[..., ReplayMemory]


def test_what_was_joined_across_shards_stays_when_they_let_go(world: Any, opened: Open, tmp_path: Path) -> None:
    options = {"join_ttl_hours": 1.0}
    here = world.fed(
        opened(name="here", **options), ("0", [world.interaction("1", "one"), world.feedback("1", "a", 1)])
    )
    there = world.fed(
        opened(name="there", **options), ("1", [world.feedback("1", "b", 2), world.feedback("2", "b", 2)])
    )
    one = world.fed(opened(name="one", **options), ("0", [world.interaction("1", "one"), world.feedback("1", "a", 1)]))
    world.fed(one, ("1", [world.feedback("1", "b", 2), world.feedback("2", "b", 2)]))
    trainer = opened(name="trainer", **options)
    shards = [tmp_path / "here", tmp_path / "there"]
    found = trainer.assemble(shards)
    assert (found.shards, found.samples, found.split, found.erasures, found.expired) == (2, 1, 1, 0, 0)
    assert world.held(trainer) == world.held(one)
    # Each in turn sees a later time and lets go; at last the label is known by the trainer alone.
    for shard, partition, moment in ((there, "1", 4000), (here, "0", 8000), (there, "1", 8001)):
        world.absorb(shard)
        event = world.interaction(f"at {moment}", "later", moment)
        for memory in (shard, one):
            world.fed(memory, (partition, [event]))
        trainer.assemble(shards)
        assert world.held(trainer) == world.held(one)
        assert world.sums(trainer) == {("one", "b"): 1}
        assert [(sample.text, sample.label) for sample in trainer.samples()] == [("one", "b")]
    assert here.counts().joinable == 1
    assert there.counts().waiting_feedback == 0
    # Forgetting reaches what the trainer alone knows, and a shard that begins anew has counted nothing.
    trainer.assemble(shards)
    with world.open(tmp_path / "anew", **options) as anew:
        world.fed(anew, ("0", [world.interaction("3", "three", 8000)]))
    trainer.assemble([tmp_path / "anew", tmp_path / "there"])
    assert trainer.samples() == ()
    assert world.sums(trainer) == {}


def test_forgetting_reaches_split_interactions(world: Any, opened: Open, tmp_path: Path) -> None:
    here = world.fed(
        opened(name="here", join_ttl_hours=1.0),
        ("0", [world.interaction("1", "secret", subject="ann"), world.feedback("1", "a", 1)]),
    )
    there = world.fed(opened(name="there", join_ttl_hours=1.0), ("1", [world.feedback("1", "b", 2)]))
    shards = [tmp_path / "here", tmp_path / "there"]
    trainer = opened(name="trainer", join_ttl_hours=1.0)
    trainer.assemble(shards)
    assert world.sums(trainer) == {("secret", "b"): 1}
    trainer.forget("ann", world.now)
    assert world.sums(trainer) == {}
    assert trainer.samples() == ()
    # No shard has heard of it, but the trainer remembers.
    for _ in range(2):
        assert trainer.assemble(shards).erasures == 1
        assert trainer.samples() == ()
        assert world.sums(trainer) == {}
        assert b"secret" not in (tmp_path / "trainer" / "memory.db").read_bytes()
    world.fed(here, ("0", [world.erasure("ann", 5)]))
    world.fed(there, ("1", [world.erasure("ann", 5)]))
    assert trainer.assemble(shards).erasures == 1
    assert trainer.assemble(shards).erasures == 0
    assert trainer.samples() == ()
    assert world.sums(trainer) == {}
    assert trainer.counts().tombstones == 2


def test_an_erasure_that_a_shard_cannot_take_out_of_its_sums_asks_for_a_rebuild(
    world: Any, opened: Open, tmp_path: Path
) -> None:
    options = {"join_rows": 1}
    left = world.fed(opened(name="left", **options), ("0", world.labelled("1", "mine", "a", subject="ann")))
    world.fed(left, ("0", world.labelled("2", "other", "a", at=10)))
    world.absorb(left)
    right = world.fed(opened(name="right", **options), ("1", [world.interaction("3", "x", 11)]))
    shards = [tmp_path / "left", tmp_path / "right"]
    trainer = opened(name="trainer")
    trainer.assemble(shards)
    assert not trainer.rebuild_due
    world.fed(right, ("1", [world.erasure("ann", 20)]))
    trainer.assemble(shards)
    assert trainer.rebuild_due
    assert [sample.text for sample in trainer.samples()] == ["other"]
    trainer.rebuild_statistics()
    assert trainer.statistics_parts() == ()
    assert world.sums(trainer) == {("other", "a"): 1}
    # Its own ingester hears of it, and then rebuilds: the trainer owes nothing more.
    world.fed(left, ("0", [world.erasure("ann", 20)]))
    trainer.assemble(shards)
    assert trainer.rebuild_due
    left.rebuild_statistics()
    world.absorb(left)
    trainer.assemble(shards)
    assert not trainer.rebuild_due
    assert world.sums(trainer) == {("other", "a"): 1}


def test_a_rebuild_of_a_shard_leaves_no_label_counted_less_than_nothing(
    world: Any, opened: Open, tmp_path: Path
) -> None:
    options = {"per_class": 1, "join_ttl_hours": 1.0}
    texts = [f"text {number}" for number in range(6)]
    here = opened(name="here", **options)
    for number, text in enumerate(texts):
        world.fed(here, ("0", world.labelled(str(number), text, "a")))
    world.fed(
        opened(name="there", **options),
        ("1", [world.feedback(str(number), "b", 2) for number in range(6)]),
    )
    trainer, shards = opened(name="trainer", **options), [tmp_path / "here", tmp_path / "there"]
    world.absorb(here)
    trainer.assemble(shards)
    assert world.sums(trainer) == {(text, "b"): 1 for text in texts}
    world.fed(here, ("0", [world.interaction("late", "x", 5000)]))
    trainer.assemble(shards)
    assert world.sums(trainer) == {(text, "b"): 1 for text in texts}
    here.rebuild_statistics()
    world.absorb(here)
    trainer.assemble(shards)
    assert world.sums(trainer) == {(text, "b"): 1 for text in texts}
    trainer.assemble(shards)
    assert world.sums(trainer) == {(text, "b"): 1 for text in texts}


def test_of_two_texts_under_one_id_the_earlier_stays(world: Any, opened: Open, tmp_path: Path) -> None:
    world.fed(opened(name="left"), ("0", world.labelled("1", "impostor", "a", at=10)))
    world.fed(opened(name="right"), ("1", world.labelled("1", "genuine", "b", at=0)))
    for name, order in (("trainer", ("left", "right")), ("again", ("right", "left"))):
        trainer = opened(name=name)
        trainer.assemble([tmp_path / shard for shard in order])
        assert [(sample.text, sample.label) for sample in trainer.samples()] == [("genuine", "a")]
        assert world.sums(trainer) == {("genuine", "a"): 1}
        assert [(row.id, row.text) for row in trainer.quarantined()] == [("1", "impostor")]
        totals = trainer.counts().totals
        assert (totals.interactions, totals.joined, totals.quarantined) == (1, 1, 1)


def test_what_a_turn_knows_stays(world: Any, opened: Open, tmp_path: Path) -> None:
    shard = world.fed(
        opened(name="shard"), ("0", world.labelled("1", "Card", "a")), ("0", world.labelled("2", "no", "b"))
    )
    world.fed(shard, ("0", [world.interaction("0", "card", 1), world.interaction("3", "nothing", 1)]))
    trainer = opened(name="trainer", pending_labels_below=1)
    trainer.assemble([tmp_path / "shard"])
    keys = [sample.key for sample in trainer.samples()]
    trainer.embed("v", keys, [[1.0, 0.0], [0.0, 1.0]])  # type: ignore[arg-type]
    trainer.quarantine([Quarantined("2", "doubtful", "no", "b", world.now)])
    trainer.freeze(champion="c", promotion=4)
    before = trainer.rows(), trainer.turn()
    world.fed(shard, ("0", [world.feedback("2", "c", 5)]), ("0", world.labelled("4", "new", "a", at=3)))
    with pytest.raises(UsageError, match="turn 1 is frozen: finish it"):
        trainer.assemble([tmp_path / "shard"])
    assert (trainer.rows(), trainer.turn()) == before
    assert trainer.embedded("v") == set(keys)
    trainer.finish('"done"')
    trainer.assemble([tmp_path / "shard"])
    assert trainer.turn().number == 2
    assert trainer.history(5) == ('"done"',)
    assert trainer.classes() == {"a": 1, "b": 1}
    assert [row.id for row in trainer.quarantined()] == ["2"]
    assert trainer.embedded("v") == {keys[0]}
    assert trainer.counts().fresh == 2
    trainer.freeze(champion="c", promotion=5)
    assert [(row.id, row.label) for row in trainer.rows()] == [("2", "c"), ("4", "a")]
    trainer.finish("{}")
    # Back to the label that an earlier turn saw is a change once another was seen; the same again is none.
    world.fed(shard, ("0", [world.feedback("2", "b", 6), world.feedback("4", "a", 7)]))
    trainer.assemble([tmp_path / "shard"])
    trainer.freeze(champion="c", promotion=6)
    assert [(row.id, row.label) for row in trainer.rows()] == [("2", "b")]


def test_an_embedding_goes_when_its_place_shows_another_text(world: Any, opened: Open, tmp_path: Path) -> None:
    texts = {"1": "Card", "2": "CARD", "3": "card"}
    whole = opened([event for key, text in texts.items() for event in world.labelled(key, text, "a")], name="whole")
    shown = whole.samples()[0].text
    last = next(key for key, text in texts.items() if text == shown)
    shard = opened(name="shard")
    for key, text in texts.items():
        if key != last:
            world.fed(shard, ("0", world.labelled(key, text, "a")))
    trainer = opened(name="trainer")
    trainer.assemble([tmp_path / "shard"])
    trainer.embed("v", [sample.key for sample in trainer.samples()], [[1.0, 0.0]])  # type: ignore[arg-type]
    trainer.assemble([tmp_path / "shard"])
    assert len(trainer.embedded("v")) == 1
    world.fed(shard, ("0", world.labelled(last, shown, "a")))
    trainer.assemble([tmp_path / "shard"])
    assert [sample.text for sample in trainer.samples()] == [shown]
    assert trainer.embedded("v") == frozenset()


def test_quarantine_stays_bounded_and_counts_what_it_dropped(world: Any, opened: Open, tmp_path: Path) -> None:
    options = {"quarantine_rows": 3}
    bad = [json.dumps({"time": NOW + number}).encode() for number in range(8)]
    world.fed(opened(name="left", **options), ("0", bad[::2]))
    world.fed(opened(name="right", **options), ("1", bad[1::2]))
    trainer = opened(name="trainer", **options)
    own = [Quarantined("x", "odd", "", None, NOW - 1), Quarantined("y", "odd", "", None, NOW + 100)]
    for turn in range(3):
        trainer.assemble([tmp_path / "left", tmp_path / "right"])
        dropped = 5 if not turn else 7
        assert trainer.quarantine_dropped == dropped
        assert [row.id for row in trainer.quarantined()] == (["1:2", "0:3", "1:3"] if not turn else ["0:3", "1:3", "y"])
        if not turn:
            trainer.quarantine(own)
            assert trainer.quarantine_dropped == 7


def test_the_sums_of_shards_are_brought_and_let_go(world: Any, opened: Open, tmp_path: Path) -> None:
    left = world.fed(opened(name="left"), ("0", world.labelled("1", "one", "a")))
    right = world.fed(opened(name="right"), ("1", world.labelled("2", "two", "a")))
    world.absorb(left)
    world.absorb(right)
    world.fed(right, ("1", world.labelled("3", "three", "b")), ("1", world.labelled("4", "four", "b")))
    shards = [tmp_path / "left", tmp_path / "right"]
    trainer = opened(name="trainer")
    trainer.assemble(shards)
    assert trainer.statistics() is None
    parts = trainer.statistics_parts()
    assert len(parts) == 2
    assert all(name.startswith("part-") and name.endswith(f"-{SPACE}") for name in parts)
    assert sorted(path.name for path in Path(trainer.folder).iterdir()) == sorted(parts)
    assert world.read_sums(trainer.folder, parts) == {("one", "a"): 1, ("two", "a"): 1}
    assert world.net(trainer) == {("three", "b"): 1, ("four", "b"): 1}
    size = trainer.counts().memory_bytes
    assert size - sum((Path(trainer.folder) / name).stat().st_size for name in parts) == trainer._store.bytes_used()
    # The ingesters go on, and remove their old files; the trainer's are its own.
    world.absorb(right)
    assert world.read_sums(trainer.folder, parts) == {("one", "a"): 1, ("two", "a"): 1}
    world.absorb(trainer)
    assert trainer.statistics_parts() == ()
    assert [path.name for path in Path(trainer.folder).iterdir()] == [trainer.statistics()]
    old = trainer.statistics()
    trainer.assemble(shards)
    assert trainer.statistics() is None
    assert len(list(Path(trainer.folder).iterdir())) == 2
    assert world.sums(trainer) == {("one", "a"): 1, ("two", "a"): 1, ("three", "b"): 1, ("four", "b"): 1}
    # A file that was begun before is too old to be pointed to.
    (Path(trainer.folder) / str(old)).write_text("[]", encoding="utf-8")
    with pytest.raises(UsageError, match="make it anew"):
        trainer.set_statistics(str(old), through=1)


def test_cost_depends_on_what_is_kept(world: Any, opened: Open, tmp_path: Path) -> None:
    """Counted in steps of the database's machine: a shard with ten times the history takes no more of them."""
    options = {"per_class": 5, "join_rows": 50}
    steps = {}
    for name, size in (("short", 200), ("long", 2000)):
        shard = opened(name=name, **options)
        for start in range(0, size, 200):
            rows = range(start, start + 200)
            world.fed(
                shard, ("0", [event for n in rows for event in world.labelled(str(n), f"text {n}", "ab"[n % 2], at=n)])
            )
        world.absorb(shard)
        trainer = opened(name=f"trainer {name}", **options)
        count = 0

        def tick() -> int:
            nonlocal count
            count += 1
            return 0

        trainer._store._connection.set_progress_handler(tick, 100)
        trainer.assemble([tmp_path / name])
        trainer._store._connection.set_progress_handler(None, 0)
        steps[name] = count
    assert steps["short"] > 10
    assert steps["long"] < 1.3 * steps["short"]


def test_an_interaction_that_two_shards_have_is_one(world: Any, opened: Open, tmp_path: Path) -> None:
    world.fed(opened(name="left"), ("0", [world.interaction("1", "one")]))
    world.fed(opened(name="right"), ("1", [world.interaction("1", "one"), world.interaction("2", "two")]))
    trainer = opened(name="trainer")
    assert trainer.assemble([tmp_path / "left", tmp_path / "right"]).split == 1
    counts = trainer.counts()
    assert (counts.joinable, counts.totals.interactions, counts.totals.repeated) == (2, 2, 1)


def test_what_a_rebuild_left_out_stays_out(world: Any, opened: Open, tmp_path: Path) -> None:
    left = world.fed(
        opened(name="left"), ("0", world.labelled("1", "one", "a")), ("0", world.labelled("2", "one", "a"))
    )
    world.fed(opened(name="right"), ("1", [world.feedback("1", "a", 2), world.feedback("2", "a", 2)]))
    world.absorb(left)
    trainer = opened(name="trainer")
    trainer.assemble([tmp_path / "left", tmp_path / "right"])
    assert world.sums(trainer) == {("one", "a"): 2}
    left.rebuild_statistics()
    trainer.assemble([tmp_path / "left", tmp_path / "right"])
    assert world.sums(trainer) == world.sums(left) == {("one", "a"): 1}


def test_sums_of_parts_are_the_whole_to_the_last_bit(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    features = (rng.integers(-64, 65, (60, 7)) / 64).astype(np.float32)
    labels = [str(label) for label in rng.integers(0, 4, 60)]
    whole, total = Statistics(7), Statistics(7)
    whole.update(features, labels, [1] * 60)
    for part in (slice(40, 60), slice(0, 15), slice(15, 40)):
        one = Statistics(7)
        one.update(features[part], labels[part], [1] * len(labels[part]))
        total.add(one)
    assert np.array_equal(total.gram, whole.gram)
    assert total.counts == whole.counts
    assert all(np.array_equal(total.sums[label], whole.sums[label]) for label in whole.sums)
    back = Statistics(7)
    back.update(features, labels, [-1] * 60)
    total.add(back)
    assert (total.counts, total.sums, float(np.abs(total.gram).sum())) == ({}, {}, 0.0)
    with pytest.raises(ValueError, match="8 features"):
        total.add(Statistics(8))
