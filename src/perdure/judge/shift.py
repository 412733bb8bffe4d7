"""How far a candidate's answers on traffic move away from the champion's, beyond what labels explain."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from perdure.model.base import Scores


@dataclass(frozen=True, slots=True)
class Shift:
    """A total-variation distance between two distributions of predicted labels."""

    distance: float
    """From 0 (the same distribution) to 1; 0 where no row can be compared."""
    rows: int
    """Rows that were compared."""
    left_out: int
    """Rows answered with a label that is new to the champion."""


def prediction_shift(champion: Scores, candidate: Scores, truth: Sequence[str | None] | None = None) -> Shift:
    """Compares the answers of both on the same n rows of traffic, labelled or not.

    Labels explain two kinds of change, which do not count. A row that the candidate answers with a label the champion
    does not have is left out: the champion could not have said so (whether old labels suffer is seen on labelled
    rows). A row whose known truth the candidate answers counts as unchanged. Over the N rows that remain, with f and g
    the counts of champion's and candidate's answers, the distance is Σ|f − g| / 2N. Both answer the same rows, so it
    has no noise of sampling: equal models have distance 0.

    Args:
        champion: n rows over the champion's labels.
        candidate: n rows over the candidate's labels.
        truth: n labels, None for rows that have none; all None where not given.

    Raises:
        ValueError: the numbers of rows differ.
    """
    before, after = champion.names(), candidate.names()
    labels: Sequence[str | None] = [None] * len(after) if truth is None else truth
    if not len(before) == len(after) == len(labels):
        raise ValueError(
            f"champion, candidate and truth have {len(before)}, {len(after)} and {len(labels)} rows: "
            "give all of them the same rows"
        )
    known = frozenset(champion.labels)
    moved: Counter[str] = Counter()
    rows = 0
    for old, new, label in zip(before, after, labels, strict=True):
        if new not in known:
            continue
        rows += 1
        if new != label:
            moved[new] += 1
            moved[old] -= 1
    distance = sum(abs(count) for count in moved.values()) / (2 * rows) if rows else 0.0
    return Shift(distance, rows, len(after) - rows)
