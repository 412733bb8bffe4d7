"""How well a model learned and kept over sessions, from one matrix of accuracies.

a[i, j] is the accuracy on session j's evaluation rows after session i, for j ≤ i.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class SessionScores:
    """Figures over T sessions; with one session the last three have nothing to say and are 0."""

    learning_acc: float
    """Mean of a[j, j]: how well each session was learned when it came."""
    bwt: float
    """Mean over j < T of a[T, j] − a[j, j]: what later sessions did to earlier ones."""
    forgetting: float
    """Mean over j < T of (max over i < T of a[i, j]) − a[T, j]."""


def session_scores(accuracies: Sequence[Sequence[float]], came: Sequence[int] | None = None) -> SessionScores:
    """The figures for T rows of accuracies.

    Lopez-Paz and Ranzato, "Gradient Episodic Memory", NIPS 2017 (backward transfer); Chaudhry et al., "Riemannian
    Walk", ECCV 2018 (forgetting).

    Args:
        accuracies: row i is after the i-th session, and has an entry for each session of evaluation rows up to then.
        came: for each column j the row after which it was first evaluated; row j where none is given.
    """
    last = accuracies[-1]
    came = range(len(accuracies)) if came is None else came
    first = [accuracies[row][column] for column, row in enumerate(came)]
    earlier = [column for column, row in enumerate(came) if row < len(accuracies) - 1]
    if not earlier:
        return SessionScores(learning_acc=float(np.mean(first)), bwt=0.0, forgetting=0.0)
    best = [max(row[column] for row in accuracies[came[column] : -1]) for column in earlier]
    return SessionScores(
        learning_acc=float(np.mean(first)),
        bwt=float(np.mean([last[column] - first[column] for column in earlier])),
        forgetting=float(np.mean([top - last[column] for top, column in zip(best, earlier, strict=True)])),
    )
