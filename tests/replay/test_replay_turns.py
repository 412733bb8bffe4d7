"""Turns, classes and the head's statistics."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from perdure.errors import UsageError
from perdure.memory import Memory
from perdure.records import Record
from perdure_replay import ReplayMemory
from perdure_replay.priority import Priorities, key_from_seed

Open = Callable[..., ReplayMemory]


def write_head(memory: ReplayMemory, name: str) -> None:
    (Path(memory.folder) / name).write_bytes(b"head")


def test_it_is_a_memory(opened: Open) -> None:
    memory: Memory = opened()
    assert memory.turn().number == 1


def test_a_frozen_turn_stays_as_it_is(world: Any, opened: Open) -> None:
    memory = opened(
        [
            world.interaction("2", "two", label="b", confidence=0.25, version="7"),
            world.feedback("2", "a"),
            world.interaction("1", "one"),
        ]
    )
    assert memory.rows() == ()
    state = memory.freeze(champion="v1", promotion=4)
    assert (state.number, state.stage, state.champion, state.promotion, state.offset) == (
        1,
        "frozen",
        "v1",
        4,
        {"p": 3},
    )
    rows = memory.rows()
    assert [(row.id, row.text, row.label, row.predicted, row.confidence, row.version, row.time) for row in rows] == [
        ("1", "one", None, None, 0.0, None, world.now),
        ("2", "two", "a", "b", 0.25, "7", world.now),
    ]
    memory.ingest(world.page([world.feedback("2", "c", at=9), *world.labelled("3", "three", "a")], start=3))
    assert memory.freeze(champion="v2", promotion=5) == state
    memory.close()
    memory = opened()
    assert memory.turn() == state
    assert memory.rows() == rows
    memory.finish("{}")
    assert (memory.turn().number, memory.turn().stage, memory.turn().offset) == (2, "open", {"p": 6})
    assert memory.counts().fresh == 2
    memory.freeze(champion="v2", promotion=5)
    assert [(row.id, row.label) for row in memory.rows()] == [("2", "c"), ("3", "a")]


def test_a_row_is_fresh_once_for_each_label(world: Any, opened: Open) -> None:
    memory = opened([world.interaction("1", "one")])
    seen = []
    for place, said in enumerate([None, ("a", 1), ("a", 2), ("b", 3), ("a", 0.5), None]):
        if said is not None:
            memory.ingest(world.page([world.interaction("1", "one"), world.feedback("1", *said)], start=place))
        memory.freeze(champion=None, promotion=1)
        seen.append([row.label for row in memory.rows()])
        memory.finish("{}")
    assert seen == [[None], ["a"], [], ["b"], [], []]


def test_an_open_turn_cannot_be_finished(opened: Open) -> None:
    with pytest.raises(UsageError, match="freeze it first"):
        opened().finish("{}")


def test_summaries_of_turns_are_kept(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("perdure_replay.turns.HISTORY", 3)
    memory = opened()
    assert memory.turn().promotion == 0
    for number in range(1, 6):
        memory.freeze(champion=None, promotion=number)
        memory.finish(f"{number}")
    assert memory.history(2) == ("4", "5")
    assert memory.history(9) == ("3", "4", "5")
    assert memory.turn().promotion == 0
    with pytest.raises(UsageError, match="at least 1"):
        memory.history(0)


def test_fresh_rows_are_bounded_by_the_keyed_hash_of_their_ids(world: Any, opened: Open) -> None:
    ranked = sorted((f"{number}" for number in range(30)), key=Priorities(key_from_seed(0), 0).interaction)
    few = set(ranked[20:24])
    records: list[Record] = []
    for name in ranked[:20] + sorted(few):
        records += world.labelled(name, f"t{name}", "a") if name in few else [world.interaction(name, f"t{name}")]
    memory = opened(records, fresh_rows=12)
    memory.freeze(champion=None, promotion=1)
    assert {row.id for row in memory.rows() if row.label is None} == set(ranked[:6])
    assert {row.id for row in memory.rows() if row.label is not None} == few
    memory.finish("{}")
    memory.ingest(world.page([world.feedback(name, "b", at=5) for name in ranked[:24]], start=100))
    memory.freeze(champion=None, promotion=1)
    assert {row.id for row in memory.rows()} == set(ranked[:12])
    assert memory.counts().fresh == 0


def test_a_label_becomes_a_class_with_enough_examples_and_stays_one(world: Any, opened: Open) -> None:
    memory = opened(
        [*world.labelled("1", "one", "b"), *world.labelled("2", "ONE", "b"), *world.labelled("3", "two", "b")]
    )
    memory.freeze(champion=None, promotion=1)
    memory.finish("{}")
    assert memory.classes() == {}
    assert memory.counts().pending == {"b": 2}
    memory.ingest(world.page(world.labelled("4", "three", "b"), start=6))
    memory.freeze(champion=None, promotion=1)
    memory.finish("{}")
    memory.ingest(world.page([world.feedback(name, "a", at=9) for name in "1234"], start=8))
    memory.freeze(champion=None, promotion=1)
    memory.finish("{}")
    assert memory.classes() == {"a": 3, "b": 2}
    assert list(memory.classes()) == ["a", "b"]
    assert memory.counts().labels == {"a": 3, "b": 0}


def test_statistics_are_a_pointer_that_moves_with_its_deltas(world: Any, opened: Open) -> None:
    memory = opened([*world.labelled("1", "one", "a"), *world.labelled("2", "two", "a")])
    assert memory.statistics() is None
    first, second = memory.deltas(10)
    assert memory.deltas(1) == (first,)
    assert (first.sign, second.sign, first.sequence < second.sequence) == (1, 1, True)
    write_head(memory, "head-1")
    write_head(memory, "head-orphan")
    (Path(memory.folder) / "note.txt").write_text("kept", encoding="utf-8")
    memory.set_statistics("head-1", through=first.sequence)
    assert memory.statistics() == "head-1"
    assert memory.deltas(10) == (second,)
    write_head(memory, "head-2")
    memory.set_statistics("head-2", through=second.sequence)
    assert sorted(file.name for file in Path(memory.folder).iterdir()) == ["head-2", "note.txt"]
    memory.close()
    assert opened().statistics() == "head-2"


def test_a_wrong_pointer_is_refused(world: Any, opened: Open) -> None:
    memory = opened(world.labelled("1", "one", "a"))
    with pytest.raises(UsageError, match="no file"):
        memory.set_statistics("head-1", through=0)
    write_head(memory, "head-1")
    with pytest.raises(UsageError, match="bare name"):
        memory.set_statistics("../heads/head-1", through=0)
    with pytest.raises(UsageError, match="read them first"):
        memory.set_statistics("head-1", through=1)
    assert (memory.statistics(), len(memory.deltas(9))) == (None, 1)
    memory.rebuild_statistics()
    write_head(memory, "head-1")
    with pytest.raises(UsageError, match="before the rebuild"):
        memory.set_statistics("head-1", through=0)


def test_a_correction_takes_out_what_was_put_in(world: Any, opened: Open) -> None:
    memory = opened(world.labelled("1", "one", "a"))
    memory.ingest(world.page([world.feedback("1", "b", at=5)], start=2))
    assert [(delta.label, delta.sign) for delta in memory.deltas(9)] == [("b", 1)]
    # This one has been seen: it may be in a file that is being made.
    memory.ingest(world.page([world.feedback("1", "c", at=6)], start=3))
    assert [(delta.label, delta.sign) for delta in memory.deltas(9)] == [("b", 1), ("b", -1), ("c", 1)]


def test_a_rebuild_puts_in_each_sample_once_and_corrections_stay_exact(world: Any, opened: Open) -> None:
    records = [record for number in range(6) for record in world.labelled(f"{number}", f"t{number}", "a")]
    memory = opened([*records, *world.labelled("dup", "t0", "a")], per_class=4)
    write_head(memory, "head-1")
    memory.set_statistics("head-1", through=memory.deltas(99)[-1].sequence)
    memory.rebuild_statistics()
    assert memory.statistics() is None
    assert list(Path(memory.folder).iterdir()) == []
    kept = {sample.text for sample in memory.samples()}
    assert world.net(memory) == {(text, "a"): 1 for text in kept}
    everyone = [f"{number}" for number in range(6)] + ["dup"]
    memory.ingest(world.page([world.feedback(name, "b", at=9) for name in everyone], start=20))
    net = world.net(memory)
    assert all(label == "b" and count > 0 for (_, label), count in net.items())
    assert sum(net.values()) == 7
