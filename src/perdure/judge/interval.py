"""Confidence bounds that hold where evidence is scarce."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate between two bounds, each one-sided at the level that was asked for."""

    lower: float
    estimate: float
    upper: float


def paired_difference(gains: float, losses: float, rows: float, alpha: float) -> Interval:
    """Difference of two accuracies on the same rows, bounded by Tango's score interval.

    It keeps its level at small n, and stays wide where the two never disagree: with no gains and no losses the lower
    bound is −z²/(n + z²), about −2.7/n at 5 %.

    Tango, "Equivalence test and confidence interval for the difference in proportions for the paired-sample design",
    Statistics in Medicine 17 (1998).

    Args:
        gains: rows that only the candidate has right.
        losses: rows that only the champion has right.
        rows: all paired rows, n; of weighted rows all three are what they are worth (`Paired`).
        alpha: error probability of each bound.

    Raises:
        ValueError: no rows, more disagreements than rows, or alpha outside (0, 0.5).
    """
    if rows < 1 or gains < 0 or losses < 0 or gains + losses > rows * (1 + 1e-9):
        raise ValueError(f"{gains} gains and {losses} losses do not fit into {rows} rows")
    z = _normal(alpha)
    estimate = (gains - losses) / rows

    def score(delta: float) -> float:
        linear = (2 * rows - gains + losses) * delta - gains - losses
        constant = -losses * delta * (1 - delta)
        root = math.sqrt(max(linear * linear - 8 * rows * constant, 0.0))
        variance = rows * (2 * (root - linear) / (4 * rows) + delta * (1 - delta))
        distance = gains - losses - rows * delta
        if variance <= 0:
            return math.copysign(math.inf, distance) if distance else 0.0
        return distance / math.sqrt(variance)

    return Interval(
        lower=_crossing(lambda delta: score(delta) > z, -1.0, estimate),
        estimate=estimate,
        upper=_crossing(lambda delta: score(delta) > -z, estimate, 1.0),
    )


def mean(values: NDArray[np.float64], alpha: float, weights: NDArray[np.float64] | None = None) -> Interval:
    """Mean of n values with Student's bounds; infinitely wide where they are worth no more than one value.

    Args:
        values: n numbers.
        alpha: error probability of each bound.
        weights: how much each of them counts; by default all count the same.

    Raises:
        ValueError: no values, or alpha outside (0, 0.5).
    """
    if values.size == 0:
        raise ValueError("no values: the mean of nothing has no bounds")
    z = _normal(alpha)
    shares = np.full(values.size, 1 / values.size) if weights is None else weights / weights.sum()
    estimate, count = float(shares @ values), worth(shares)
    if count <= 1 + 1e-9:
        return Interval(-math.inf, estimate, math.inf)
    variance = float((shares**2) @ ((values - estimate) ** 2)) * count / (count - 1)
    reach = _student(z, count - 1) * math.sqrt(variance)
    return Interval(estimate - reach, estimate, estimate + reach)


def worth(weights: NDArray[np.float64]) -> float:
    """The number of equal rows that say at least as little as rows of these weights: Σw / max w; 0 of none.

    As if each counted as much as the heaviest: so bounds hold wherever the disagreements are. (Σw)² / Σw² would be
    more, and too much where it is the few heavy rows that vary.
    """
    return float(weights.sum() / weights.max()) if weights.size else 0.0


def clopper_pearson(count: int, rows: int, alpha: float) -> Interval:
    """A share of which `count` of `rows` were seen, with Clopper and Pearson's exact bounds (Biometrika 26, 1934).

    Args:
        count: k; at the upper bound P(X ≤ k) = alpha, at the lower one P(X ≥ k) = alpha.
        rows: n, at least 1.
        alpha: error probability of each bound.

    Raises:
        ValueError: no rows, or `count` is not among them.
    """
    if rows < 1 or not 0 <= count <= rows:
        raise ValueError(f"{count} of {rows} rows is no share")
    return Interval(1 - _binomial_upper(rows - count, rows, alpha), count / rows, _binomial_upper(count, rows, alpha))


def rows_needed(disagreement: float, margin: float, alpha: float, power: float = 0.8) -> int:
    """Rows that show non-inferiority of an equal candidate with probability `power`: (z_α + z_β)²·d/m².

    Args:
        disagreement: d, share of rows on which exactly one of the two is right.
        margin: m, loss that must be ruled out.
        alpha: error probability of the bound.
    """
    if margin <= 0:
        raise ValueError(f"margin must be above 0, got {margin}: no number of rows rules out every loss")
    return math.ceil((_normal(alpha) + _normal(1 - power)) ** 2 * disagreement / margin**2)


def _binomial_upper(count: int, rows: int, alpha: float) -> float:
    """The share at which P(X ≤ count) = alpha, for X of `rows` draws."""
    if count == rows:
        return 1.0
    logarithms = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, rows + 1)))])
    seen = np.arange(count + 1)
    ways = logarithms[rows] - logarithms[seen] - logarithms[rows - seen]

    def likely(share: float) -> bool:
        terms = ways + seen * math.log(share) + (rows - seen) * math.log1p(-share)
        return float(np.exp(terms).sum()) > alpha

    return _crossing(likely, 0.0, 1.0)


def _normal(alpha: float) -> float:
    if not 0 < alpha < 0.5:
        raise ValueError(f"alpha must lie between 0 and 0.5, got {alpha}")
    return NormalDist().inv_cdf(1 - alpha)


def _student(z: float, freedom: float) -> float:
    """Student's quantile from the normal one; Abramowitz and Stegun 26.7.5."""
    return (
        z
        + (z**3 + z) / (4 * freedom)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3)
    )


def _crossing(above: Callable[[float], bool], low: float, high: float) -> float:
    """Where `above`, true at the left and false at the right, changes; by bisection."""
    for _ in range(60):
        middle = (low + high) / 2
        if above(middle):
            low = middle
        else:
            high = middle
    return (low + high) / 2
