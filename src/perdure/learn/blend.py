"""The weight of the adapted head in the pool of both: chosen on rows that neither was trained on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import compress

import numpy as np
from numpy.typing import NDArray

from perdure.judge.comparison import LEAST_PROBABILITY
from perdure.learn.temperature import fit_temperature
from perdure.model.base import Scores
from perdure.model.classifier import AdaptedHead, AnalyticClassifier
from perdure.model.head import Double
from perdure.model.heads import log_softmax
from perdure.records import Float

HALVES_FROM = 40
"""Rows from which they are split in halves; half of fewer would choose by chance."""


@dataclass(frozen=True, slots=True)
class Unseen:
    """n rows that neither head was trained on."""

    scores: Float
    """Of the frozen head, n × C, as if it had not seen the rows."""
    embeddings: Float
    """Of the adapter, n × d."""
    truth: tuple[str, ...]
    """n labels."""
    weights: Double
    """How much each row counts, n."""

    def __len__(self) -> int:
        return len(self.truth)

    def where(self, keep: NDArray[np.bool_]) -> Unseen:
        """The rows for which `keep` is true."""
        truth = tuple(compress(self.truth, keep))
        return Unseen(self.scores[keep], self.embeddings[keep], truth, self.weights[keep])


def fit_blend(champion: AnalyticClassifier, adapted: AdaptedHead, rows: Unseen, shares: Sequence[float]) -> AdaptedHead:
    """`adapted` with a temperature, a share and a sharpness that give unseen rows a good mean log score.

    The share is the mean of `shares`, each weighted by the probability that it gives the rows, which are as many as
    their weights leave them to be: the posterior mean where all shares are as likely before. So few rows move it little
    from the middle, and many take it to the best, without a jump where two are about as good.
    (Kish, "Survey Sampling", 1965: n weighted rows say as much as (Σw)² / Σw² that count the same.)

    Args:
        champion: whose frozen head is the other one.
        adapted: the head to be pooled with it.
        rows: what is chosen by.
        shares: weights of the adapted head to choose from.
    """
    factor = fit_temperature(adapted.logits(rows.embeddings), rows.truth, adapted.labels, rows.weights)
    adapted = replace(adapted, temperature=adapted.temperature * factor)
    weights, columns = _known(champion, rows)
    heads = [_sharpened(champion, replace(adapted, share=share, sharpness=1.0), rows) for share in shares]
    scores = np.asarray([weights @ _log_scores(_blended(champion, head, rows), columns) for head in heads])
    given = np.exp(_count(weights) * (scores - scores.max()))
    share = float(given @ np.asarray(shares) / given.sum())
    return _sharpened(champion, replace(adapted, share=share, sharpness=1.0), rows)


def unseen_blend(champion: AnalyticClassifier, adapted: AdaptedHead, rows: Unseen, shares: Sequence[float]) -> Scores:
    """What the blend says of n rows where each half of them is blended as the other half advises.

    So the rows that a candidate is judged by have not chosen how it speaks. Arguments are those of `fit_blend`.
    """
    return _by_halves(
        rows, lambda advice, asked: _blended(champion, fit_blend(champion, adapted, advice, shares), asked)
    )


def unseen_sharpened(champion: AnalyticClassifier, embeddings: Float | None, rows: Unseen) -> Scores:
    """What the champion says of n rows where each half of them is as sure as the other half advises.

    A blend that is fitted to rows is as sure of them as it ought to be. Beside it the champion gets the same chance, so
    that the difference is what the adapter knows: where the world has changed, a head that only doubts itself more has
    a better log score than the champion, and knows nothing.

    Args:
        champion: what is served.
        embeddings: of its own adapter, n × d; None where it has none.
        rows: what is asked; the embeddings in it are another's.
    """
    said = champion.combine(rows.scores, embeddings)
    logarithms = np.log(np.maximum(said.probabilities, LEAST_PROBABILITY))
    logits = replace(rows, scores=logarithms)

    def sharpened(advice: Unseen, asked: Unseen) -> Scores:
        factor = fit_temperature(advice.scores, advice.truth, said.labels, advice.weights)
        return Scores(said.labels, np.exp(log_softmax(np.float32(factor) * asked.scores)))

    return _by_halves(logits, sharpened)


def _by_halves(rows: Unseen, answers: Callable[[Unseen, Unseen], Scores]) -> Scores:
    """`answers(advice, asked)` of each half of the rows, as the other half advises; of few rows, as they advise."""
    if len(rows) < HALVES_FROM:
        return answers(rows, rows)
    half: NDArray[np.bool_] = np.arange(len(rows)) % 2 == 0
    parts = [answers(rows.where(~mine), rows.where(mine)) for mine in (half, ~half)]
    probabilities = np.zeros((len(rows), len(parts[0].labels)), dtype=np.float32)
    probabilities[half], probabilities[~half] = (part.probabilities for part in parts)
    return Scores(parts[0].labels, probabilities)


def _blended(champion: AnalyticClassifier, head: AdaptedHead, rows: Unseen) -> Scores:
    return champion.with_adapted(champion.version, head).combine(rows.scores, rows.embeddings)


def _sharpened(champion: AnalyticClassifier, head: AdaptedHead, rows: Unseen) -> AdaptedHead:
    """`head` with the sharpness that suits it: among the labels that it knows, as others are not touched by it."""
    pooled = _blended(champion, head, rows)
    shared = [column for column, label in enumerate(pooled.labels) if label in frozenset(head.labels)]
    logarithms = np.log(np.maximum(pooled.probabilities[:, shared], LEAST_PROBABILITY))
    labels = [pooled.labels[column] for column in shared]
    return replace(head, sharpness=fit_temperature(logarithms, rows.truth, labels, rows.weights))


def _known(champion: AnalyticClassifier, rows: Unseen) -> tuple[Double, list[int | None]]:
    """Weights of the rows, which sum to 1 over those whose label is known, and the columns of their labels."""
    column = {label: index for index, label in enumerate(champion.labels)}
    columns = [column.get(label) for label in rows.truth]
    weights = rows.weights * [place is not None for place in columns]
    return weights / max(weights.sum(), np.finfo(np.float64).tiny), columns


def _log_scores(scores: Scores, columns: Sequence[int | None]) -> Double:
    """Log probability of the true label of each row; 0 where it is not known."""
    given = [1.0 if place is None else scores.probabilities[row, place] for row, place in enumerate(columns)]
    return np.log(np.maximum(np.asarray(given, dtype=np.float64), LEAST_PROBABILITY))


def _count(weights: Double) -> float:
    """How many rows of equal weight say as much; weights sum to 1, or are all 0."""
    return 1.0 / float(weights @ weights) if weights.any() else 0.0
