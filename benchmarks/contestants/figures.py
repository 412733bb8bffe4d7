"""What is reported of a run. Everything is a fraction, unless its name says otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from perdure.records import Float
from perdure.scores import session_scores

Flags = NDArray[np.bool_]
ECE_BINS = 15


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one run; None where the contestant does not tell."""

    acc: float
    """Over all evaluation rows after the last session."""
    aaa: float | None
    """Mean over sessions of the accuracy on what has been seen."""
    bwt: float | None
    forgetting: float | None
    learning_acc: float | None
    lowest: float | None
    """Lowest accuracy of any session after any session from its own on."""
    ece: float | None
    aurc: float | None
    negative_flips: float | None
    cpu_seconds: float
    """Of learning, in all."""
    cpu_seconds_per_session: float
    bytes_kept: int
    samples_kept: int


@dataclass(frozen=True, slots=True)
class Answers:
    """What a contestant answered on the n rows of the sessions seen so far, in the order of the sessions."""

    right: Flags
    """n."""
    confidence: Float
    """n: probability of the answer."""


@dataclass(frozen=True, slots=True)
class SessionFigures:
    """After one session."""

    session: int
    acc_seen: float
    accuracies: tuple[float, ...]
    """Of each session so far."""
    cpu_seconds: float
    wall_seconds: float


def accuracies(right: Flags, sizes: Sequence[int]) -> tuple[float, ...]:
    """Share of right rows in each session; the first session's `sizes[0]` rows come first."""
    ends = np.cumsum(sizes)
    return tuple(float(part.mean()) for part in np.split(right, ends[:-1]))


def figures(
    sessions: Sequence[SessionFigures], answers: Sequence[Answers], *, bytes_kept: int, samples_kept: int
) -> Figures:
    """The figures of a whole run.

    Args:
        sessions: one after each session; with fewer sessions than there were, only what can be said of them is.
        answers: the same, row by row; none where the contestant does not tell them.
    """
    rows = [one.accuracies for one in sessions]
    whole = all(len(row) == index + 1 for index, row in enumerate(rows))
    scores = session_scores(rows) if whole else None
    cpu = sum(one.cpu_seconds for one in sessions)
    last = answers[-1] if answers else None
    return Figures(
        acc=sessions[-1].acc_seen,
        aaa=float(np.mean([one.acc_seen for one in sessions])) if whole else None,
        bwt=scores.bwt if scores else None,
        forgetting=scores.forgetting if scores else None,
        learning_acc=scores.learning_acc if scores else None,
        lowest=min(min(row) for row in rows) if whole else None,
        ece=calibration_error(last.confidence, last.right) if last else None,
        aurc=risk_coverage_area(last.confidence, last.right) if last else None,
        negative_flips=negative_flips([one.right for one in answers]) if answers and whole else None,
        cpu_seconds=cpu,
        cpu_seconds_per_session=cpu / len(sessions),
        bytes_kept=bytes_kept,
        samples_kept=samples_kept,
    )


def calibration_error(confidence: Float, right: Flags, bins: int = ECE_BINS) -> float:
    """Expected calibration error over equal bins (k/bins, (k+1)/bins]: Σ share · |accuracy − mean confidence|.

    Guo et al., "On Calibration of Modern Neural Networks", ICML 2017.
    """
    # Ratios that should stand on an edge miss it by the last bit in float32.
    of = np.clip(np.ceil(confidence.astype(np.float64) * bins - 1e-6).astype(int) - 1, 0, bins - 1)
    total = 0.0
    for one in range(bins):
        inside = of == one
        if inside.any():
            total += abs(float(right[inside].mean()) - float(confidence[inside].mean())) * float(inside.mean())
    return total


def risk_coverage_area(confidence: Float, right: Flags) -> float:
    """Area under the risk–coverage curve: mean over k of the share of errors among the k most confident rows.

    Rows of equal confidence count as if each had the mean error of them, so their order does not matter. Geifman and
    El-Yaniv, "Selective Classification for Deep Neural Networks", NIPS 2017.
    """
    _, group = np.unique(confidence, return_inverse=True)
    risk = np.bincount(group, weights=~right) / np.bincount(group)
    ranked = risk[group][np.argsort(-confidence, kind="stable")]
    return float(np.mean(np.cumsum(ranked) / np.arange(1, len(ranked) + 1)))


def negative_flips(right: Sequence[Flags]) -> float:
    """Mean over sessions i < T of the share of rows seen by i that are right after i and wrong after i + 1.

    Yan et al., "Positive-Congruent Training", CVPR 2021. 0 with one session.

    Args:
        right: after each session, of the rows seen so far; those of earlier sessions come first.
    """
    shares = [float((before & ~after[: len(before)]).mean()) for before, after in pairwise(right)]
    return float(np.mean(shares)) if shares else 0.0
