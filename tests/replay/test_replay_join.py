"""Joining, waiting, expiry, quarantine and counts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from perdure.memory import IngestCounts, Quarantined
from perdure.records import Record, encode
from perdure_replay import ReplayMemory

Open = Callable[..., ReplayMemory]
HOUR = 3600.0


def test_feedback_joins_early_and_late(world: Any, opened: Open) -> None:
    memory = opened()
    early = memory.ingest(world.page([world.feedback("1", "a")]))
    assert (early.feedback, early.joined, early.waiting) == (1, 0, 1)
    assert memory.counts().waiting_feedback == 1
    assert memory.samples() == ()
    joined = memory.ingest(world.page([world.interaction("1", "one"), world.interaction("2", "two")], start=1))
    assert (joined.interactions, joined.joined, joined.waiting) == (2, 1, 0)
    late = memory.ingest(world.page([world.feedback("2", "b")], start=3))
    assert (late.feedback, late.joined) == (1, 1)
    assert [(sample.text, sample.label) for sample in memory.samples()] == [("one", "a"), ("two", "b")]
    assert memory.offset() == {"p": 4}
    assert memory.counts().totals == IngestCounts(interactions=2, feedback=2, joined=2)


def test_what_is_known_changes_nothing(world: Any, opened: Open) -> None:
    records = [*world.labelled("1", "one", "a"), world.feedback("9", "a")]
    memory = opened(records)
    before = memory.digest(), memory.samples(), world.net(memory)
    again = memory.ingest(world.page(records))
    assert (again.interactions, again.joined, again.corrected, again.repeated) == (0, 0, 0, 3)
    assert (memory.digest(), memory.samples(), world.net(memory)) == before
    assert memory.counts().waiting_feedback == 1


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize(
    ("one", "two"),
    [
        (("a", 1.0, "u"), ("b", 2.0, "u")),
        (("a", 1.0, "u"), ("b", 1.0, "v")),
        (("a", 1.0, "u"), ("b", 1.0, "u")),
        (("b", 1.0, "u"), ("a", 1.0, "v")),
    ],
)
def test_the_last_feedback_wins_by_time_source_and_label(
    world: Any, opened: Open, one: tuple[str, float, str], two: tuple[str, float, str], backwards: bool
) -> None:
    said = [world.feedback("1", *one), world.feedback("1", *two)]
    memory = opened([world.interaction("1", "one"), *(said[::-1] if backwards else said)])
    assert [sample.label for sample in memory.samples()] == [two[0]]
    assert memory.counts().totals.corrected == int(not backwards)
    assert world.net(memory) == {("one", two[0]): 1}


def test_waiting_ends_with_the_time_limit(world: Any, opened: Open) -> None:
    memory = opened([world.feedback("1", "a"), world.interaction("2", "two")], join_ttl_hours=1.0)
    later = memory.ingest(world.page([world.interaction("3", "three", at=2 * HOUR)], start=2))
    assert later.expired == 2
    counts = memory.counts()
    assert (counts.waiting_feedback, counts.joinable) == (0, 1)
    too_late = memory.ingest(world.page([world.interaction("1", "one"), world.feedback("2", "a")], start=3))
    assert (too_late.expired, too_late.interactions, too_late.joined) == (2, 0, 0)
    assert memory.counts().totals.expired == 4


def test_the_time_limit_does_not_depend_on_page_borders(world: Any, opened: Open) -> None:
    records = [
        world.interaction("1", "one"),
        world.interaction("3", "three", at=2 * HOUR),
        world.feedback("1", "a", at=2 * HOUR),
        world.feedback("3", "a", at=2 * HOUR),
    ]
    whole = opened(records, name="whole", join_ttl_hours=1.0)
    cut = opened(name="cut", join_ttl_hours=1.0)
    for place, record in enumerate(records):
        cut.ingest(world.page([record], start=place))
    assert [sample.text for sample in whole.samples()] == ["three"]
    assert whole.digest() == cut.digest()


def test_a_partition_that_is_read_ahead_makes_no_other_late(world: Any, opened: Open) -> None:
    """History that is older than the time limit is read partition after partition."""
    old, new = world.labelled("1", "one", "a"), world.labelled("2", "two", "b", at=40 * HOUR)
    memory = world.fed(opened(join_ttl_hours=1.0, clock=lambda: world.now + 99 * HOUR), ("0", new), ("1", old))
    assert {sample.text for sample in memory.samples()} == {"one", "two"}
    assert memory.counts().totals.expired == 0
    # An erasure goes to every partition; its copy in one tells nothing of the time in another.
    world.fed(memory, ("0", [world.erasure("ann", at=90 * HOUR)]), ("1", world.labelled("3", "three", "a", at=HOUR)))
    world.fed(memory, ("1", [world.interaction("4", "of ann", at=2 * HOUR, subject="ann"), world.feedback("4", "a")]))
    assert {sample.text for sample in memory.samples()} == {"one", "two", "three"}


def test_the_bound_on_rows_is_one_of_each_partition(world: Any, opened: Open) -> None:
    old, new = (
        [record for number in range(3) for record in world.labelled(f"{name}{number}", f"{name} {number}", name, at=at)]
        for name, at in (("a", 0), ("b", 60))
    )
    memory = world.fed(opened(join_rows=3), ("0", new), ("1", old))
    assert len(memory.samples()) == 6
    assert memory.counts().joinable == 6


def test_an_erasure_stands_until_time_has_passed_in_every_partition(world: Any, opened: Open) -> None:
    memory = opened(join_ttl_hours=1.0, clock=lambda: world.now + 99 * HOUR)
    world.fed(memory, ("0", [world.erasure("ann", at=2 * HOUR)]), ("1", [world.erasure("ann", at=2 * HOUR)]))
    world.fed(memory, ("0", world.labelled("1", "one", "a", at=90 * HOUR)))
    late = [world.interaction("2", "of ann", at=1.5 * HOUR, subject="ann"), world.feedback("2", "a", at=1.6 * HOUR)]
    world.fed(memory, ("1", late))
    assert {sample.text for sample in memory.samples()} == {"one"}


def test_the_bound_on_waiting_labels_is_one_of_each_partition(world: Any, opened: Open) -> None:
    first, second = ([world.feedback(f"{name}{number}", "x") for number in range(3)] for name in "ab")
    memory = world.fed(opened(join_rows=3), ("0", first), ("1", second))
    assert memory.counts().waiting_feedback == 6


def test_the_oldest_interactions_leave_and_never_count_twice(world: Any, opened: Open) -> None:
    records = [record for number in range(5) for record in world.labelled(f"{number}", f"t{number}", "a", at=number)]
    memory = opened(records, join_rows=2)
    assert memory.counts().joinable == 2
    before = world.net(memory)
    assert sum(before.values()) == 5
    again = memory.ingest(world.page(records))
    assert (again.interactions, again.joined, again.expired) == (0, 0, 4)  # and one of three that wait in vain
    assert world.net(memory) == before
    assert memory.counts().joinable == 2
    assert memory.counts().waiting_feedback == 2  # bounded too


def test_unreadable_records_are_quarantined_with_their_reason(world: Any, opened: Open) -> None:
    payloads: list[Record | bytes] = [
        b"\xff\xfe",
        b"{",
        b'{"kind": "interaction", "id": "1", "time": 1700000000, "text": " ", "subject": "ann"}',
        *world.labelled("1", "one", "a"),
        world.interaction("2", "two", at=2 * 86_400.0),
        world.interaction("1", "another text"),
    ]
    memory = opened()
    counts = memory.ingest(world.page(payloads))
    assert (counts.quarantined, counts.interactions) == (5, 1)
    found = {row.id: row.reason for row in memory.quarantined()}
    assert set(found) == {"p:0", "p:1", "p:2", "p:5", "p:6"}
    assert "not UTF-8" in found["p:0"]
    assert "not JSON" in found["p:1"]
    assert "text is empty" in found["p:2"]
    assert "ahead of this machine's clock" in found["p:5"]
    assert "another text has this id" in found["p:6"]
    again = memory.ingest(world.page(payloads))
    assert (again.quarantined, again.repeated) == (0, 7)
    assert memory.forget("ann", world.now).quarantined == 1


def test_an_absurd_time_does_not_expire_everything_else(world: Any, opened: Open) -> None:
    memory = opened(world.labelled("1", "one", "a"), join_ttl_hours=1.0)
    memory.ingest(world.page([world.interaction("2", "two", at=1e9)], start=2))
    assert memory.ingest(world.page([world.feedback("1", "b", at=5)], start=3)).corrected == 1


def test_quarantine_is_bounded_and_repeats_nothing(world: Any, opened: Open) -> None:
    memory = opened(quarantine_rows=2)
    rows = [Quarantined(id=f"{n}", reason="doubt", text="t", label="a", time=float(n)) for n in range(4)]
    memory.quarantine(rows[:2])
    memory.quarantine(rows[:2])
    assert memory.quarantined() == tuple(rows[:2])
    memory.quarantine(rows)
    assert memory.quarantined() == tuple(rows[2:])
    assert memory.quarantine_dropped == 2
    assert memory.counts().quarantined == 2


def test_counts_tell_what_is_kept(world: Any, opened: Open) -> None:
    records = [record for number in range(4) for record in world.labelled(f"{number}", f"t{number}", "a")]
    memory = opened([*records, *world.labelled("x", "tx", "b"), world.interaction("y", "ty")])
    counts = memory.counts()
    assert (counts.samples, counts.labels, counts.pending) == (5, {"a": 4}, {"b": 1})
    assert (counts.joinable, counts.fresh, counts.tombstones) == (6, 5, 0)
    assert counts.memory_bytes > 0


def test_bytes_count_the_rows_and_the_head_and_fall_when_they_go(world: Any, opened: Open) -> None:
    text = "long " * 20_000
    memory = opened([world.interaction("1", text, subject="ann"), world.feedback("1", "a")])
    full = memory.counts().memory_bytes
    assert full > 2 * len(text)
    (through,) = [delta.sequence for delta in memory.deltas(10)]
    (Path(memory.folder) / "head-1").write_bytes(bytes(500_000))
    memory.set_statistics("head-1", through=through)
    assert memory.counts().memory_bytes > full - len(text) - 20_000 + 500_000
    memory.forget("ann", world.now + 1)
    assert memory.counts().memory_bytes < 500_000 + 300_000


def test_an_empty_page_only_moves_the_offset(world: Any, opened: Open) -> None:
    memory = opened()
    assert memory.ingest(world.page([], start=5)) == IngestCounts()
    assert memory.offset() == {"p": 5}


def test_a_text_of_a_megabyte_and_odd_characters_come_back_as_they_were(world: Any, opened: Open) -> None:
    odd = "nul \0, emoji 🎉, Straße, ﬁ"
    memory = opened([*world.labelled("1", "ß" * 400_000, "a"), *world.labelled("2", odd, "label\0b")])
    assert {sample.text for sample in memory.samples()} == {"ß" * 400_000, odd}
    half = encode(world.interaction("3", "x")).replace(b'"3"', b'"\\uD800"')
    pair = encode(world.interaction("4", "x")).replace(b'"x"', b'"\\ud83c\\udf89"')
    counts = memory.ingest(world.page([half, pair], start=4))
    assert (counts.quarantined, counts.interactions) == (1, 1)
    assert "unicode" in memory.quarantined()[0].reason
