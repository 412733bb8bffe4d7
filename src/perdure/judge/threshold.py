"""The confidence from which a version's answers may be relied on; below it, it may abstain.

A classifier that answers only where its confidence is at least θ is a selective classifier, and the share of its
answers that are wrong is its selective risk (Geifman and El-Yaniv, Selective Classification for Deep Neural Networks,
NeurIPS 2017). θ is chosen on n rows that the version was not trained on, so that the risk is at most a target with a
probability of at least 1 − δ over these rows. For each of J shares of them that are fixed beforehand, θ is the
confidence that this share reaches; with k errors among the m rows at or above it, the risk is at most Clopper and
Pearson's exact bound at δ/J (Biometrika 26, 1934), and by the union bound all J hold together. The smallest θ whose
bound is within the target is taken. (Geifman and El-Yaniv search by bisection instead, where what is looked at next
depends on the rows.)

It holds for texts that come as these rows did: where the traffic has other labels, or in other shares, it may not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from perdure.config import JudgeSettings
from perdure.judge.evidence import Evidence
from perdure.judge.interval import clopper_pearson

SHARES = 20
"""J: shares of the rows that may be answered, 1/J to 1."""

BELOW = "abstain_below"
"""The metric on a version's card that is its θ."""


@dataclass(frozen=True, slots=True)
class Threshold:
    """θ, and what is known of the answers at or above it."""

    confidence: float
    """θ."""
    coverage: float
    """Share of the rows at or above it."""
    risk: float
    """What share of them may be wrong at most, in all likelihood."""

    def metrics(self) -> dict[str, float]:
        """For a version's card."""
        return {BELOW: self.confidence, "abstain_coverage": self.coverage, "abstain_risk": self.risk}


def threshold_of(evidence: Evidence, settings: JudgeSettings) -> Threshold | None:
    """θ of the candidate that `evidence` speaks of; None where its rows are too few, or too often wrong, for any.

    By what was asked of it as it would be served: its adapter halfway was as sure as another model.
    """
    evidence = evidence.finished()
    if not len(evidence):
        return None
    best = evidence.candidate.best()
    confidence = evidence.candidate.probabilities[np.arange(len(best)), best]
    right = np.asarray(evidence.candidate.names(), dtype=object) == np.asarray(evidence.truth, dtype=object)
    return threshold(confidence, right, precision=settings.abstain_precision, confident=settings.confidence)


def threshold(
    confidence: NDArray[np.floating], right: NDArray[np.bool_], *, precision: float, confident: float
) -> Threshold | None:
    """The smallest θ whose answers are right with a share of at least `precision`.

    Args:
        confidence: of the answers to n rows, n.
        right: whether they are, n.
        precision: least share of right answers, below 1.
        confident: 1 − δ.
    """
    count = len(confidence)
    order = np.sort(confidence)[::-1]
    places = sorted(
        {math.ceil(count * share / SHARES) for share in range(1, SHARES + 1)} if count else (), reverse=True
    )
    for place in places:
        least = order[place - 1]
        chosen = confidence >= least
        rows = int(chosen.sum())
        risk = clopper_pearson(rows - int(right[chosen].sum()), rows, (1 - confident) / SHARES).upper
        if risk <= 1 - precision:
            return Threshold(float(least), rows / count, risk)
    return None
