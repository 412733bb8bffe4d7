"""Herding: the few points whose mean follows the mean of all."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from perdure.errors import UsageError


def herding(features: ArrayLike, k: int) -> NDArray[np.intp]:
    """Indices of min(k, n) rows of `features` (n × d, or n numbers), in the order in which they are picked.

    Each pick is the row that brings the mean of those picked nearest to the mean of all (Welling 2009; as in iCaRL,
    Rebuffi et al. 2017, algorithm 4, without repetition). Ties go to the smaller index.

    Raises:
        UsageError: `features` has more than two dimensions, or k is negative.
    """
    rows = np.asarray(features, dtype=np.float64)
    if rows.ndim == 1:
        rows = rows[:, None]
    if rows.ndim != 2 or k < 0:
        raise UsageError(f"herding needs n × d features and k ≥ 0, but got shape {rows.shape} and k = {k}")
    picks = np.empty(min(k, len(rows)), dtype=np.intp)
    if not len(picks):
        return picks
    target = rows.mean(axis=0)
    total = np.zeros_like(target)
    free = np.ones(len(rows), dtype=np.bool_)
    for count in range(len(picks)):
        gaps = np.square(target - (total + rows) / (count + 1)).sum(axis=1)
        gaps[~free] = np.inf
        pick = int(gaps.argmin())
        picks[count] = pick
        free[pick] = False
        total += rows[pick]
    return picks
