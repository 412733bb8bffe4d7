"""Forgetting a subject: everywhere, for good, whatever the order."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from perdure.errors import UsageError
from perdure.memory import Quarantined
from perdure_replay import ReplayMemory

Open = Callable[..., ReplayMemory]
SECRET = "my secret is four and twenty"


def everywhere(folder: Path) -> bytes:
    return b"".join(file.read_bytes() for file in folder.rglob("*") if file.is_file())


def test_nothing_of_a_subject_is_left_on_disk(world: Any, opened: Open, tmp_path: Path) -> None:
    memory = opened(
        [
            *world.labelled("1", SECRET, "a", subject="ann-the-subject"),
            *world.labelled("2", "harmless", "a", subject="bob"),
            world.interaction("3", SECRET + "!", subject="ann-the-subject"),
            b'{"kind": "interaction", "text": "my secret is four and twenty", "subject": "ann-the-subject", "time": 1',
        ]
    )
    memory.freeze(champion=None, promotion=1)
    memory.embed("v", [sample.key for sample in memory.samples()], [[1.0, 0.0], [0.0, 1.0]])  # type: ignore[arg-type]
    memory.quarantine([Quarantined(id="1", reason="doubt", text=SECRET, label="a", time=world.now)])
    assert SECRET.encode() in everywhere(tmp_path)
    told = memory.forget("ann-the-subject", world.now + 5)
    assert (told.subject, told.interactions, told.samples, told.quarantined, told.deltas, told.rebuild_head) == (
        "ann-the-subject", 2, 1, 2, 0, False,
    )  # fmt: skip
    assert SECRET.encode() not in everywhere(tmp_path)
    assert b"ann-the-subject" not in everywhere(tmp_path)
    assert [row.id for row in memory.rows()] == ["2"]
    assert [sample.text for sample in memory.samples()] == ["harmless"]
    assert world.net(memory) == {("harmless", "a"): 1}
    counts = memory.counts()
    assert (counts.tombstones, counts.joinable, counts.quarantined) == (1, 1, 0)
    memory.quarantine([Quarantined(id="1", reason="doubt", text=SECRET, label="a", time=world.now)])
    assert memory.quarantined() == ()
    again = memory.forget("ann-the-subject", world.now + 5)
    assert (again.interactions, again.samples, again.deltas) == (0, 0, 0)


def test_an_erasure_in_the_stream_cleans_the_disk_too(world: Any, opened: Open, tmp_path: Path) -> None:
    memory = opened(world.labelled("1", SECRET, "a", subject="ann-the-subject"))
    assert SECRET.encode() in everywhere(tmp_path)
    memory.ingest(world.page([world.erasure("ann-the-subject")], start=2))
    assert SECRET.encode() not in everywhere(tmp_path)


def test_the_order_of_an_erasure_does_not_matter(world: Any, opened: Open) -> None:
    events = [
        world.interaction("1", SECRET, subject="ann"),
        world.feedback("1", "a"),
        world.feedback("1", "b", at=3),
        world.erasure("ann"),
        world.interaction("2", "after", at=101, subject="ann"),
        world.feedback("2", "b", at=102),
    ]
    outcomes = set()
    for number, order in enumerate(itertools.permutations(events)):
        if number % 29:
            continue
        memory = opened(order, name=f"m{number}", per_class=1)
        outcomes.add((memory.digest(), memory.samples(), tuple(world.net(memory).items())))
        assert memory.counts().totals.erasures == 1
        memory.close()
    ((_, samples, _),) = outcomes
    assert [sample.text for sample in samples] in ([], ["after"])


def test_what_comes_again_or_late_is_ignored_and_counted(world: Any, opened: Open) -> None:
    events = world.labelled("1", SECRET, "a", subject="ann")
    memory = opened([*events, world.erasure("ann")])
    memory.ingest(world.page([*events, *world.labelled("2", "late", "a", at=50, subject="ann")], start=3))
    assert memory.samples() == ()
    assert world.net(memory) == {}
    assert memory.counts().totals.expired == 1
    memory.ingest(world.page(world.labelled("3", "new", "a", at=150, subject="ann"), start=7))
    assert [sample.text for sample in memory.samples()] == ["new"]


def test_a_text_that_others_support_stays_in_their_words(world: Any, opened: Open) -> None:
    names = [f"{number}" for number in range(8)]
    records = []
    for number, name in enumerate(names):
        records += world.labelled(name, "hello" + " " * number, "a", subject=f"s{number}")
    memory = opened(records)
    shown = memory.samples()[0].text
    owner = len(shown) - len("hello")
    told = memory.forget(f"s{owner}", world.now + 1)
    assert told.samples == 0
    (sample,) = memory.samples()
    assert sample.text != shown
    assert str(owner) not in sample.provenance
    assert len(sample.provenance) == 7
    for number in range(8):
        memory.forget(f"s{number}", world.now + 1)
    assert memory.samples() == ()
    assert memory.counts().tombstones == 1


def test_labels_already_in_the_statistics_are_given_back(world: Any, opened: Open) -> None:
    memory = opened([*world.labelled("1", "one", "a", subject="ann"), *world.labelled("2", "two", "a", subject="ann")])
    first, _ = memory.deltas(2)
    (Path(memory.folder) / "head-1").write_bytes(b"x")
    memory.set_statistics("head-1", through=first.sequence)
    told = memory.forget("ann", world.now + 1)
    assert (told.deltas, told.rebuild_head) == (2, False)
    # The second was handed out, and may be in a file that is being made: its +1 stays, with a −1 after it.
    assert world.net(memory) == {("one", "a"): -1}
    assert memory.forget("ann", world.now + 1).deltas == 0
    assert world.net(memory) == {("one", "a"): -1}


def test_what_left_the_join_state_asks_for_a_rebuild(world: Any, opened: Open) -> None:
    memory = opened(
        [
            *world.labelled("1", SECRET, "a", subject="ann"),
            *world.labelled("2", "harmless", "a", at=5),
            *world.labelled("3", "other", "a", at=6),
        ],
        join_rows=1,
    )
    memory.deltas(1)
    told = memory.forget("ann", world.now + 1)
    assert (told.samples, told.deltas, told.rebuild_head, memory.rebuild_due) == (1, 1, True, True)
    assert world.net(memory) == {("harmless", "a"): 1, ("other", "a"): 1}
    memory.rebuild_statistics()
    assert not memory.rebuild_due
    assert world.net(memory) == {("harmless", "a"): 1, ("other", "a"): 1}
    assert not memory.forget("ann", world.now + 1).rebuild_head


def test_an_erasure_in_the_stream_says_that_a_rebuild_is_due(world: Any, opened: Open) -> None:
    memory = opened(
        [*world.labelled("1", SECRET, "a", subject="ann"), world.interaction("2", "two", at=5)], join_rows=1
    )
    memory.rebuild_statistics()  # its one sample belongs to no interaction that could still take it back
    assert not memory.rebuild_due
    memory.ingest(world.page([world.erasure("ann")], start=3))
    assert memory.rebuild_due
    memory.rebuild_statistics()
    assert not memory.rebuild_due
    assert world.net(memory) == {}


def test_subject_tombstones_go_with_the_time_limit(world: Any, opened: Open) -> None:
    memory = opened([world.erasure("ann", at=0)], join_ttl_hours=1.0)
    memory.ingest(world.page([world.interaction("1", "late", at=-5, subject="ann")], start=1))
    assert memory.counts().joinable == 0
    memory.ingest(world.page([world.interaction("2", "later", at=7200)], start=2))
    memory.ingest(world.page([world.interaction("3", "late", at=0, subject="ann")], start=3))
    assert memory.counts().joinable == 1  # refused by its age now
    assert memory._store.value("SELECT count(*) FROM erasures") == 0


@pytest.mark.parametrize("until", [float("inf"), float("nan"), 1e12])
def test_a_time_that_would_block_the_future_is_refused(opened: Open, until: float) -> None:
    with pytest.raises(UsageError, match="not later than now"):
        opened().forget("ann", until)
