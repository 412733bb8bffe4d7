"""The Jensen-Shannon distance of two samples, and how large chance alone makes it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from perdure.judge.columns import Column

FEW_VALUES = 20
"""Numbers with at most so many different values in the reference are taken as names, as Evidently does."""

DRAWS = 4000
"""Splits that make the distribution under no drift."""

FALSE_ALARMS = 0.01
"""Share of drift reports that may raise an alarm where nothing has drifted."""


@dataclass(frozen=True, slots=True)
class Histogram:
    """Rows in each of k bins."""

    reference: NDArray[np.int64]
    current: NDArray[np.int64]

    def distance(self) -> float:
        """Jensen-Shannon distance (natural logarithm), from 0 to √ln 2 ≈ 0.83."""
        return float(_distances(self.reference[None], self.current[None])[0])

    def chance(self, level: float, seed: int = 0) -> float:
        """The distance that samples of one distribution exceed with probability `level`.

        With rows dealt at random to the two sides, the bins of one side are multivariate hypergeometric: an exact
        permutation test, whatever the number of rows. Small samples differ by chance, and the distance cannot be
        negative, so without this few rows or many labels would look like drift.
        """
        pooled = self.reference + self.current
        random = np.random.default_rng(seed)
        dealt = random.multivariate_hypergeometric(pooled, int(self.reference.sum()), DRAWS, method="marginals")
        return float(np.quantile(_distances(dealt, pooled - dealt), 1 - level, method="higher"))


def histogram(column: Column) -> Histogram:
    """Counts in the bins that Evidently's `jensenshannon` makes: Sturges' over both sides, or one for each value."""
    reference, current = np.asarray(column.reference), np.asarray(column.current)
    both = np.concatenate([reference, current])
    if reference.dtype.kind == "f" and len(np.unique(reference)) > FEW_VALUES:
        edges = np.histogram_bin_edges(both, bins="sturges")
        return Histogram(np.histogram(reference, edges)[0], np.histogram(current, edges)[0])
    values, codes = np.unique(both, return_inverse=True)
    return Histogram(
        np.bincount(codes[: len(reference)], minlength=len(values)),
        np.bincount(codes[len(reference) :], minlength=len(values)),
    )


def _distances(reference: NDArray[np.int64], current: NDArray[np.int64]) -> NDArray[np.float64]:
    """Row by row, of counts m × k."""
    p = reference / reference.sum(axis=1, keepdims=True)
    q = current / current.sum(axis=1, keepdims=True)
    middle = (p + q) / 2
    divergence = (_relative_entropy(p, middle) + _relative_entropy(q, middle)) / 2
    # Rounding can leave a divergence of equal rows just below 0.
    return np.asarray(np.sqrt(np.maximum(divergence, 0.0)), dtype=np.float64)


def _relative_entropy(p: NDArray[np.float64], q: NDArray[np.float64]) -> NDArray[np.float64]:
    ratio = np.divide(p, q, out=np.ones_like(p), where=p > 0)
    return np.asarray((p * np.log(ratio)).sum(axis=1), dtype=np.float64)
