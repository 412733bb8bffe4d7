"""Batches that mix what is new with what must not be forgotten."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np


def balanced_order(labels: Sequence[str], rng: np.random.Generator) -> list[int]:
    """A permutation of n rows in which every prefix is spread over the labels as evenly as it can be.

    Each label's rows are shuffled and laid out at even distances with a random start; a label with few rows appears as
    early, on average, as one with many.
    """
    rows: dict[str, list[int]] = defaultdict(list)
    for row, label in enumerate(labels):
        rows[label].append(row)
    place = np.zeros(len(labels))
    for label in sorted(rows):
        mine = rng.permutation(rows[label])
        place[mine] = (np.arange(len(mine)) + rng.random()) / len(mine)
    return [int(row) for row in np.argsort(place, kind="stable")]


def mixed_batches(
    fresh: Sequence[str],
    replay: Sequence[str],
    *,
    batch: int,
    lengths: Sequence[int],
    rng: np.random.Generator,
    pool: int = 16,
) -> Iterator[list[int]]:
    """One epoch over n_f fresh and n_r replayed rows, in batches that hold both in the same proportion.

    The shorter of the two sides is repeated until the longer one has been seen once, at most four times; so the
    proportion is one to one where the sides are not too unequal. Batches are cut out of pools of a few batches in which
    each side is sorted by length, so that little is padded.

    Args:
        fresh: labels of the fresh rows; rows 0 … n_f−1.
        replay: labels of the replayed rows; rows n_f … n_f+n_r−1.
        batch: rows in a batch.
        lengths: tokens of all n_f + n_r rows.
        rng: where the order comes from.
        pool: batches in a pool.
    """
    order = _interleave(_rows(fresh, 0, len(replay), rng), _rows(replay, len(fresh), len(fresh), rng))
    batches: list[list[int]] = []
    for start in range(0, len(order), batch * pool):
        part = sorted(order[start : start + batch * pool], key=lambda row: lengths[row])
        part = _interleave([row for row in part if row < len(fresh)], [row for row in part if row >= len(fresh)])
        batches.extend(part[cut : cut + batch] for cut in range(0, len(part), batch))
    for index in rng.permutation(len(batches)):
        yield batches[index]


def _rows(labels: Sequence[str], start: int, other: int, rng: np.random.Generator) -> list[int]:
    """The rows of one side, repeated until they are as many as the other's, at most four times."""
    if not labels:
        return []
    wanted = min(max(len(labels), other), 4 * len(labels))
    rows: list[int] = []
    while len(rows) < wanted:
        rows.extend(start + row for row in balanced_order(labels, rng))
    return rows[:wanted]


def _interleave(first: Sequence[int], second: Sequence[int]) -> list[int]:
    places = [
        ((rank + 0.5) / len(side), which, row)
        for which, side in enumerate((first, second))
        for rank, row in enumerate(side)
    ]
    return [row for _, _, row in sorted(places)]
