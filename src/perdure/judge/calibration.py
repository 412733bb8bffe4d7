"""Whether a confidence of 80 % is right in 80 % of cases."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from perdure.model.base import Scores

BINS = 10
ROWS_PER_BIN = 10


@dataclass(frozen=True, slots=True)
class Bin:
    """Rows of similar confidence."""

    rows: int
    confidence: float
    """Mean confidence."""
    accuracy: float
    """Share that was right."""


def bins(confidence: NDArray[np.float32], right: NDArray[np.bool_]) -> tuple[Bin, ...]:
    """Rows sorted by confidence and cut into bins of equal mass; fewer than `BINS` where rows are few.

    Equal mass, because confidences crowd near 1 and bins of equal width would be nearly empty: Nguyen and O'Connor,
    "Posterior calibration and exploratory analysis for natural language processing models", EMNLP 2015.

    Args:
        confidence: n probabilities of the answers given.
        right: n, whether each answer was right.
    """
    if len(confidence) == 0:
        return ()
    # Rows of equal confidence share what they had right: how they were ordered must not matter.
    _, group, sizes = np.unique(confidence, return_inverse=True, return_counts=True)
    share = (np.bincount(group, weights=right) / sizes)[group]
    order = np.argsort(confidence, kind="stable")
    count = min(BINS, max(1, len(order) // ROWS_PER_BIN))
    return tuple(
        Bin(len(part), float(confidence[part].mean(dtype=np.float64)), float(share[part].mean()))
        for part in np.array_split(order, count)
    )


def expected_error(confidence: NDArray[np.float32], right: NDArray[np.bool_]) -> float:
    """Mean over rows of |confidence − accuracy| of their bin, from 0 to 1.

    Raises:
        ValueError: no rows.
    """
    parts = bins(confidence, right)
    if not parts:
        raise ValueError("no rows: calibration of nothing is not defined")
    return sum(part.rows * abs(part.confidence - part.accuracy) for part in parts) / len(confidence)


def brier_score(scores: Scores, truth: Sequence[str]) -> float:
    """Mean over n rows of Σ (p − y)², from 0 to 2; a label that the scores do not know has p = 0.

    Brier, "Verification of forecasts expressed in terms of probability", Monthly Weather Review 1950.

    Raises:
        ValueError: no rows.
    """
    if not truth:
        raise ValueError("no rows: the Brier score of nothing is not defined")
    column = {label: index for index, label in enumerate(scores.labels)}
    probabilities = scores.probabilities.astype(np.float64)
    right = [probabilities[row, column[label]] if label in column else 0.0 for row, label in enumerate(truth)]
    return float(((probabilities**2).sum(axis=1) - 2 * np.asarray(right) + 1).mean())
