from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from perdure.learn.batches import balanced_order, mixed_batches


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def batches_of(
    fresh: list[str],
    replay: list[str],
    *,
    batch: int = 8,
    seed: int = 0,
    lengths: list[int] | None = None,
    pool: int = 8,
) -> list[list[int]]:
    lengths = lengths or [5 + row % 7 for row in range(len(fresh) + len(replay))]
    return list(mixed_batches(fresh, replay, batch=batch, lengths=lengths, rng=rng(seed), pool=pool))


@pytest.mark.parametrize("seed", range(5))
def test_every_prefix_is_spread_over_labels_as_they_are_frequent(seed: int) -> None:
    labels = ["many"] * 60 + ["some"] * 30 + ["few"] * 10
    order = balanced_order(labels, rng(seed))
    assert sorted(order) == list(range(100))
    for prefix in range(1, 101):
        counts = Counter(labels[row] for row in order[:prefix])
        for label, share in (("many", 0.6), ("some", 0.3), ("few", 0.1)):
            assert abs(counts[label] - share * prefix) <= 2


def test_rows_of_a_label_are_shuffled() -> None:
    order = balanced_order(["a"] * 30, rng())
    assert order != sorted(order)


def test_orders_follow_from_the_seed() -> None:
    labels = ["a", "b", "c"] * 10
    assert balanced_order(labels, rng(1)) == balanced_order(labels, rng(1)) != balanced_order(labels, rng(2))
    assert (
        batches_of(labels, labels, seed=1) == batches_of(labels, labels, seed=1) != batches_of(labels, labels, seed=2)
    )


@pytest.mark.parametrize(("fresh", "replay"), [(24, 24), (10, 35), (35, 10), (7, 0), (0, 7), (3, 100)])
def test_every_row_of_both_sides_appears(fresh: int, replay: int) -> None:
    rows = Counter(row for batch in batches_of(["a", "b"] * fresh, ["c", "d"] * replay) for row in batch)
    assert set(rows) == set(range(2 * fresh + 2 * replay))


@pytest.mark.parametrize("lengths", ["mixed", "fresh is longer"])
def test_batches_hold_both_sides_in_equal_parts(lengths: str) -> None:
    sizes = [40 if row < 64 and lengths == "fresh is longer" else 5 + row % 5 for row in range(128)]
    for batch in batches_of(["a", "b"] * 32, ["c", "d"] * 32, lengths=sizes):
        assert sum(row < 64 for row in batch) == len(batch) / 2 == 4


def test_the_shorter_side_is_repeated_until_the_longer_was_seen_once() -> None:
    rows = Counter(row for batch in batches_of(["a"] * 10, ["b"] * 30) for row in batch)
    assert {rows[row] for row in range(10)} == {3}
    assert {rows[row] for row in range(10, 40)} == {1}


def test_the_shorter_side_is_repeated_at_most_four_times() -> None:
    rows = Counter(row for batch in batches_of(["a"] * 5, ["b"] * 100) for row in batch)
    assert {rows[row] for row in range(5)} == {4}
    assert {rows[row] for row in range(5, 105)} == {1}


def test_no_batch_is_larger_than_asked_and_only_the_last_is_smaller() -> None:
    sizes = sorted(len(batch) for batch in batches_of(["a"] * 21, ["b"] * 21, batch=8))
    assert sizes == [2, 8, 8, 8, 8, 8]


def test_batches_gather_rows_of_similar_length() -> None:
    lengths = [int(value) for value in rng(3).integers(3, 60, 256)]
    found = batches_of(["a"] * 128, ["b"] * 128, lengths=lengths, batch=16, pool=16)
    padding = sum(len(batch) * max(lengths[row] for row in batch) for batch in found) / sum(lengths)
    assert padding < 1.15


def test_batches_do_not_come_in_the_order_of_their_length() -> None:
    lengths = list(range(128))
    longest = [max(batch) for batch in batches_of(["a"] * 128, [], lengths=lengths, pool=16)]
    assert longest != sorted(longest)
