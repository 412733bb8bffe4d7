"""How sure scores are: factors that are chosen on rows which a head has not seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.optimize import minimize_scalar

from perdure.judge.evidence import traffic_weights
from perdure.model.head import Double
from perdure.records import Float

EXPONENTS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
"""Of the balance between frequent and rare labels, to choose from; 0 leaves scores as they are."""


def fit_temperature(scores: Float, truth: Sequence[str], labels: Sequence[str], weights: Double | None = None) -> float:
    """The factor t for which softmax(t·scores) gives n unseen rows, and one error more, the highest likelihood.

    Guo et al., "On Calibration of Modern Neural Networks", ICML 2017. The error more is a row like the average one,
    with its runner-up for a label (Laplace's rule of succession): otherwise a few rows that are all right would make
    every answer certain, and the gate believe it.

    Args:
        scores: n × C.
        truth: n labels; rows of labels not among `labels` do not count.
        labels: C labels.
        weights: how much each of the n rows counts; by default all count the same.

    Returns:
        1 where there is no row, or nothing to tell apart.
    """
    return _fit(scores, truth, labels, weights)[0]


def fit_balance(scores: Float, truth: Sequence[str], labels: Sequence[str], counts: Mapping[str, int]) -> Float:
    """Factors (mean count / count of the label)^τ for the scores of C labels.

    Ridge regression shrinks the scores of a label with few rows more than those of one with many, so that the many win
    where both are near. τ is chosen, out of `EXPONENTS`, by the log score of unseen rows, each label counting as often
    as it has come: so that what it gives to the rare is not taken from traffic as it is. (Kang et al., "Decoupling
    Representation and Classifier for Long-Tailed Recognition", ICLR 2020, scale a classifier's rows by a power too.)

    Args:
        scores: n × C, unseen.
        truth: n labels; rows of labels not among `labels` do not count.
        labels: C labels.
        counts: rows that each label has had.

    Returns:
        C factors; all 1 where labels have come equally often, or no row is there to choose by.
    """
    had = np.asarray([max(counts.get(label, 0), 1) for label in labels], dtype=np.float64)
    ratio = had.mean() / had
    if len(set(had.tolist())) < 2 or not truth:
        return np.ones(len(labels), dtype=np.float32)
    weights = traffic_weights(truth, counts)
    best = min(EXPONENTS, key=lambda power: _fit(scores * ratio**power, truth, labels, weights)[1])
    result: Float = (ratio**best).astype(np.float32)
    return result


def _fit(scores: Float, truth: Sequence[str], labels: Sequence[str], weights: Double | None) -> tuple[float, float]:
    """The temperature, and the mean loss with it."""
    column = {label: index for index, label in enumerate(labels)}
    rows = [row for row, label in enumerate(truth) if label in column]
    if not rows or len(labels) < 2:
        return 1.0, 0.0
    share = np.ones(len(rows)) if weights is None else weights[rows]
    share = share / share.sum()
    picked = scores[rows].astype(np.float64)
    answers = np.asarray([column[truth[row]] for row in rows])
    others = picked.copy()
    others[np.arange(len(rows)), answers] = -np.inf
    runners_up = others.argmax(axis=1)

    def loss(logarithm: float) -> float:
        logits = picked * np.exp(logarithm)
        top = logits.max(axis=1, keepdims=True)
        normal = top[:, 0] + np.log(np.exp(logits - top).sum(axis=1))
        right, wrong = (normal - logits[np.arange(len(rows)), columns] for columns in (answers, runners_up))
        return float(share @ right + share @ wrong / len(rows))

    # Below 1/e⁴ all is uniform, above e⁶ all is certain.
    found = minimize_scalar(loss, bounds=(-4.0, 6.0), method="bounded")
    return float(np.exp(found.x)), float(found.fun)
