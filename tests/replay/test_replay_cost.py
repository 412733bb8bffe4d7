"""What a page and a question cost depends on what they bring, not on what memory holds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from perdure.records import Float, Record
from perdure_replay import ReplayMemory

Open = Callable[..., ReplayMemory]
GRAIN = 10


def steps(memory: ReplayMemory, work: Callable[[], object]) -> int:
    """Steps of SQLite's machine, in tens, that `work` takes: the same on every computer."""
    taken = 0

    def count() -> int:
        nonlocal taken
        taken += 1
        return 0

    memory._store._connection.set_progress_handler(count, GRAIN)
    work()
    memory._store._connection.set_progress_handler(None, 0)
    return taken


def stream(world: Any, first: int, size: int) -> list[Record]:
    return [
        record
        for number in range(first, first + size)
        for record in world.labelled(f"{number:06d}", f"text {number}", "ab"[number % 2], at=number)
    ]


def filled(world: Any, opened: Open, size: int, **options: Any) -> ReplayMemory:
    return opened(stream(world, 0, size), name=f"of-{size}", per_class=size // 4, join_rows=size, **options)


def test_a_page_costs_what_it_brings(world: Any, opened: Open) -> None:
    costs = []
    for size in (400, 4000):
        memory = filled(world, opened, size)
        page = world.page(stream(world, size, 100), start=2 * size)
        costs.append(steps(memory, lambda memory=memory, page=page: memory.ingest(page)))  # type: ignore[misc]
        assert memory.counts().joinable == size  # the bound has let the oldest go
        assert memory.counts().samples + memory.counts().tombstones == 2 * (size // 4)
    assert costs[1] < 1.3 * costs[0]


def test_a_full_label_refuses_only_what_would_not_stay(world: Any, opened: Open) -> None:
    records = stream(world, 0, 60)
    whole = opened(records, name="whole", per_class=4)
    parts = opened(name="parts", per_class=4)
    for start in range(0, len(records), 6):
        parts.ingest(world.page(records[start : start + 6], start=start))
    assert (parts.digest(), parts.samples()) == (whole.digest(), whole.samples())


def circle(count: int) -> Float:
    angles = np.linspace(0, 2 * np.pi, count, endpoint=False)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def test_a_question_reads_what_it_finds(world: Any, opened: Open) -> None:
    costs = []
    for size in (400, 4000):
        memory = filled(world, opened, size, near_duplicate=1.0)
        keys = [sample.key for sample in memory.samples()]
        memory.embed("v", keys, circle(len(keys)))
        memory.neighbours(circle(1), 3)
        costs.append(steps(memory, lambda memory=memory: memory.neighbours(circle(3), 3)))  # type: ignore[misc]
    assert costs[1] <= costs[0] + 1


def test_a_reader_derives_views_anew_only_after_a_change(
    world: Any, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = filled(world, opened, 40)
    keys = [sample.key for sample in memory.samples()]
    memory.embed("v", keys[:-1], circle(len(keys) - 1))
    reader = opened(name="of-40", read_only=True)
    first = reader.neighbours(circle(1), 99)
    table = reader._views._table
    assert reader.neighbours(circle(1), 99) == first
    assert reader._views._table is table is not None
    memory.embed("v", keys[-1:], circle(1))
    assert len(reader.neighbours(circle(1), 99).samples[0]) == len(keys) == len(first.samples[0]) + 1


@pytest.mark.parametrize("queries", [1, 7])
def test_neighbours_are_those_of_all_that_were_compared(
    world: Any, opened: Open, monkeypatch: pytest.MonkeyPatch, queries: int
) -> None:
    monkeypatch.setattr("perdure_replay.views.QUERIES", 3)
    memory = filled(world, opened, 300)
    samples = memory.samples()
    chance = np.random.default_rng(0)
    vectors = chance.standard_normal((len(samples), 16)).astype(np.float32)
    memory.embed("v", [sample.key for sample in samples], vectors)
    asked = chance.standard_normal((queries, 16)).astype(np.float32)
    found = memory.neighbours(asked, 5)
    kept = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype("<f2").astype(np.float32)
    kept /= np.linalg.norm(kept, axis=1, keepdims=True)
    cosines = asked @ kept.T / np.linalg.norm(asked, axis=1, keepdims=True)
    for row, similarities, right in zip(found.samples, found.similarities, cosines, strict=True):
        order = np.argsort(-right)[:5]
        assert [sample.key for sample in row] == [samples[place].key for place in order]
        assert similarities == pytest.approx(right[order], abs=1e-6)


def test_a_re_embedding_that_is_half_done_goes_on(world: Any, opened: Open) -> None:
    memory = filled(world, opened, 40, near_duplicate=0.999)
    keys = [sample.key for sample in memory.samples()]
    memory.embed("old", keys, circle(len(keys)))
    new = circle(1).repeat(len(keys), axis=0)
    memory.embed("new", keys[:6], new[:6])
    # Two spaces never mix: until it is done, views have what is embedded anew, and nothing else.
    assert memory.embedded("old") == frozenset()
    assert {sample.key for sample in memory.neighbours(circle(1), 99).samples[0]} == set(keys[:6])
    assert {sample.weight for sample in memory.samples()} == {1 / 6, 1.0}
    memory.close()
    memory = opened(name="of-40", per_class=10, join_rows=40, near_duplicate=0.999)
    missing = [key for key in keys if key not in memory.embedded("new")]
    assert missing == keys[6:]
    memory.embed("new", missing, new[6:])
    assert memory.embedded("new") == frozenset(keys)
    assert {sample.weight for sample in memory.samples()} == {1 / 10}
