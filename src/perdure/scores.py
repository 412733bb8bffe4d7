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


def session_scores(accuracies: Sequence[Sequence[float]]) -> SessionScores:
    """The figures for T rows of accuracies; row i has at least i + 1 entries.

    Lopez-Paz and Ranzato, "Gradient Episodic Memory", NIPS 2017 (backward transfer); Chaudhry et al., "Riemannian
    Walk", ECCV 2018 (forgetting).
    """
    count = len(accuracies)
    last = accuracies[-1]
    earlier = range(count - 1)
    return SessionScores(
        learning_acc=float(np.mean([accuracies[j][j] for j in range(count)])),
        bwt=float(np.mean([last[j] - accuracies[j][j] for j in earlier])) if count > 1 else 0.0,
        forgetting=float(np.mean([max(accuracies[i][j] for i in range(j, count - 1)) - last[j] for j in earlier]))
        if count > 1
        else 0.0,
    )
