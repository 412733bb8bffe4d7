"""How the frozen head and an adapted one make one answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from perdure.model.base import Scores
from perdure.records import Float


class SecondHead(Protocol):
    """A head that is blended into the frozen one."""

    @property
    def labels(self) -> tuple[str, ...]: ...

    @property
    def share(self) -> float:
        """Its weight in the mean of logarithms; the frozen head has the rest."""
        ...

    @property
    def sharpness(self) -> float:
        """What the mean of logarithms is multiplied by."""
        ...


def blend(
    labels: Sequence[str], scores: Float, factors: Float, second: SecondHead | None = None, logits: Float | None = None
) -> Scores:
    """p ∝ (p_frozen^(1−β) · p_adapted^β)^s over the labels that both heads know; the frozen head's p elsewhere.

    Args:
        labels: C labels of the frozen head.
        scores: n × C, of the frozen head.
        factors: C numbers that scores are multiplied by before the softmax.
        second: the adapted head; without it, or without its logits, the frozen head speaks alone.
        logits: n × C₂, of the adapted head over its own labels.
    """
    logarithms = log_softmax(scores * factors)
    place = {label: index for index, label in enumerate(second.labels)} if second else {}
    mine = [index for index, label in enumerate(labels) if label in place]
    if second is not None and logits is not None and mine:
        theirs = log_softmax(logits[:, [place[labels[index]] for index in mine]])
        share, sharpness = np.float32(second.share), np.float32(second.sharpness)
        # Both speak of the labels they share; within those the first head's share of probability is kept.
        inside = log_sum(logarithms[:, mine])
        blended = (1 - share) * logarithms[:, mine] + share * theirs
        logarithms[:, mine] = log_softmax(sharpness * blended) + inside
    probabilities = np.exp(logarithms)
    return Scores(tuple(labels), (probabilities / probabilities.sum(axis=1, keepdims=True)).astype(np.float32))


def log_sum(logarithms: Float) -> Float:
    """log Σ exp of each row, n × 1."""
    top = logarithms.max(axis=1, keepdims=True)
    result: Float = top + np.log(np.exp(logarithms - top).sum(axis=1, keepdims=True))
    return result


def log_softmax(logits: Float) -> Float:
    """Logarithms of each row's softmax."""
    result: Float = logits - log_sum(logits)
    return result
