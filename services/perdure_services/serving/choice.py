"""What a request gets of a version's probabilities: the labels it allows, the best of them, or an abstention."""

from __future__ import annotations

import difflib
import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from perdure.model.base import Prediction, Scores
from perdure_services.serving.refusal import Refusal

NEAREST = 10
"""Labels that are looked at closely where one is not known."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What is answered to one text."""

    prediction: Prediction
    """The best guess, also where the version abstains."""
    abstained: bool | None
    """Whether the version is too unsure to be relied on; None where it does not say."""


def check_labels(version: str, known: Sequence[str], allowed: Sequence[str]) -> None:
    """Refuses labels that a version cannot answer with.

    Raises:
        Refusal: 422, naming the first of `allowed` that is not among `known`, and the nearest that is.
    """
    there = frozenset(known)
    for place, label in enumerate(allowed):
        if label not in there:
            raise Refusal(
                422,
                f"labels.{place}: version {version} knows no label {label!r}: did you mean {_nearest(label, known)!r}?",
                value=label,
                do="send labels that the version knows, or leave labels out to allow them all",
            )


def among(version: str, scores: Scores, allowed: Sequence[str]) -> Scores:
    """`scores` over the labels `allowed` only, whose probabilities are made to sum to 1.

    That is the version's answer given that one of these labels is right. Where all of them have a probability of 0,
    each gets the same share.

    Raises:
        Refusal: 422 the version knows one of them not.
    """
    check_labels(version, scores.labels, allowed)
    wanted = frozenset(allowed)
    columns = [column for column, label in enumerate(scores.labels) if label in wanted]
    kept = scores.probabilities[:, columns].astype(np.float64)
    total = kept.sum(axis=1, keepdims=True)
    shares = np.divide(kept, total, out=np.full_like(kept, 1 / len(columns)), where=total > 0)
    return Scores(tuple(scores.labels[column] for column in columns), shares.astype(np.float32).clip(0, 1))


def choices(
    version: str,
    scores: Scores,
    first: Sequence[Prediction],
    *,
    top: int,
    allowed: Sequence[str] | None,
    threshold: float | None,
) -> tuple[Choice, ...]:
    """One answer for each text.

    Args:
        version: that computed them.
        scores: over all labels that it knows.
        first: the best of all labels for each text, `scores.predictions()`.
        top: how many of the most probable labels to give.
        allowed: labels that may be answered; None for all.
        threshold: the confidence below which the version abstains; None where that is not asked, or it has none. It
            speaks of answers among all labels: one that only the restriction to `allowed` makes the best, or the
            most confident, is an abstention.

    Raises:
        Refusal: 422 the version knows one of the labels not.
    """
    if allowed is not None:
        predictions: Sequence[Prediction] = among(version, scores, allowed).predictions(top)
    else:
        predictions = first if top == 1 else scores.predictions(top)
    if threshold is None:
        return tuple(Choice(prediction, None) for prediction in predictions)
    return tuple(
        Choice(prediction, not (best.confidence >= threshold and prediction.label == best.label))
        for prediction, best in zip(predictions, first, strict=True)
    )


def _nearest(label: str, known: Sequence[str]) -> str:
    # The full comparison takes time that other requests wait for: only for those that share the most characters.
    compared = difflib.SequenceMatcher(autojunk=False)
    compared.set_seq2(label)

    def overlap(name: str) -> float:
        compared.set_seq1(name)
        return compared.quick_ratio()

    return difflib.get_close_matches(label, heapq.nlargest(NEAREST, known, key=overlap), n=1, cutoff=0.0)[0]
