"""How much each of two opinions counts: chosen on rows that neither has seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from perdure.judge.comparison import LEAST_PROBABILITY
from perdure.learn.temperature import fit_temperature
from perdure.model.base import Scores
from perdure.model.classifier import AdaptedHead, AnalyticClassifier
from perdure.records import Float

HALVES_FROM = 40
"""Rows from which they are split in halves; half of fewer would choose by chance."""


def fit_blend(
    champion: AnalyticClassifier,
    adapted: AdaptedHead,
    scores: Float,
    embeddings: Float,
    truth: Sequence[str],
    shares: Sequence[float],
) -> AdaptedHead:
    """`adapted` with the temperature, the share and the sharpness that give n unseen rows the best mean log score.

    Args:
        champion: whose frozen head is the other opinion.
        adapted: the opinion to be blended in.
        scores: of the frozen head, n × C, as if it had not seen the rows.
        embeddings: of the adapter, n × d.
        truth: n labels.
        shares: weights of the adapted head to choose from.
    """
    temperature = adapted.temperature * fit_temperature(adapted.logits(embeddings), truth, adapted.labels)
    adapted = replace(adapted, temperature=temperature)
    best: tuple[float, AdaptedHead] | None = None
    for share in shares:
        plain = replace(adapted, share=share, sharpness=1.0)
        pooled = champion.with_adapted(champion.version, plain).combine(scores, embeddings)
        sharpness = fit_temperature(np.log(np.maximum(pooled.probabilities, LEAST_PROBABILITY)), truth, pooled.labels)
        head = replace(plain, sharpness=sharpness)
        score = _log_score(champion.with_adapted(champion.version, head).combine(scores, embeddings), truth)
        if best is None or score > best[0]:
            best = (score, head)
    assert best is not None
    return best[1]


def unseen_blend(
    champion: AnalyticClassifier,
    adapted: AdaptedHead,
    scores: Float,
    embeddings: Float,
    truth: Sequence[str],
    shares: Sequence[float],
) -> Scores:
    """What the blend says of n rows where each half of them is blended as the other half advises.

    So the rows that a candidate is judged by have not chosen how it speaks. Arguments are those of `fit_blend`.
    """
    half: NDArray[np.bool_] = np.arange(len(truth)) % 2 == 0
    if len(truth) < HALVES_FROM:
        head = fit_blend(champion, adapted, scores, embeddings, truth, shares)
        return champion.with_adapted(champion.version, head).combine(scores, embeddings)
    parts = []
    for mine in (half, ~half):
        others = [label for label, here in zip(truth, mine, strict=True) if not here]
        head = fit_blend(champion, adapted, scores[~mine], embeddings[~mine], others, shares)
        parts.append(champion.with_adapted(champion.version, head).combine(scores[mine], embeddings[mine]))
    probabilities = np.zeros((len(truth), len(parts[0].labels)), dtype=np.float32)
    probabilities[half], probabilities[~half] = (part.probabilities for part in parts)
    return Scores(parts[0].labels, probabilities)


def _log_score(scores: Scores, truth: Sequence[str]) -> float:
    """Mean log probability of the true label over the rows whose label is known; 0 where there is none."""
    column = {label: index for index, label in enumerate(scores.labels)}
    known = [(row, column[label]) for row, label in enumerate(truth) if label in column]
    if not known:
        return 0.0
    rows, columns = zip(*known, strict=True)
    return float(np.log(np.maximum(scores.probabilities[list(rows), list(columns)], LEAST_PROBABILITY)).mean())
