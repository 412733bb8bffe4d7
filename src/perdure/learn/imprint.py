"""New labels in an adapted head before an update has trained it on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from perdure.judge.comparison import LEAST_PROBABILITY
from perdure.learn.material import Labelled
from perdure.model.classifier import AdaptedHead
from perdure.model.head import Double
from perdure.model.heads import blend
from perdure.records import Float


@dataclass(frozen=True, slots=True)
class Scored:
    """What a frozen head says of n rows as if it had not seen them, and how much each of them counts."""

    labels: Sequence[str]
    scores: Float
    """n × C."""
    factors: Float
    """C numbers that scores are multiplied by before the softmax."""
    weights: Double
    """n."""


def spoken(
    head: AdaptedHead, frozen: Scored, rows: Labelled, embeddings: Float, imprint: NDArray[np.bool_]
) -> tuple[AdaptedHead, Float]:
    """The adapted head beside a frozen one that knows more labels, and its logits for n unseen rows.

    Either with a row for each new label, `imprinted`, or as it was, so that the frozen head alone speaks of new labels:
    an adapter that was trained to tell old labels apart may map what is new onto them, and a new label's mean would
    then take their rows. What gives unseen rows the better log score is taken.

    Args:
        head: the adapted head so far.
        frozen: the head that it is pooled with.
        rows: n labelled rows.
        embeddings: adapted embeddings, n × d.
        imprint: which of the rows new labels are imprinted from.
    """
    grown, logits = grown_head(head, rows, embeddings, imprint)
    as_it_was = head.logits(embeddings)
    if grown is head:
        return head, as_it_was
    column = {label: index for index, label in enumerate(frozen.labels)}
    truth = [column[label] for label in rows.labels]

    def log_score(second: AdaptedHead, said: Float) -> float:
        pooled = blend(frozen.labels, frozen.scores, frozen.factors, second, said).probabilities
        right = np.maximum(pooled[np.arange(len(truth)), truth], LEAST_PROBABILITY)
        return float(frozen.weights @ np.log(right))

    if log_score(head, as_it_was) > log_score(grown, logits):
        return head, as_it_was
    return grown, logits


def grown_head(
    head: AdaptedHead, rows: Labelled, embeddings: Float, imprint: NDArray[np.bool_]
) -> tuple[AdaptedHead, Float]:
    """`head` with what is new imprinted, and its logits for n unseen rows; see `spoken` for the arguments."""
    seen, vectors = rows.where(imprint.tolist()), embeddings[imprint]
    grown = imprinted(head, seen, vectors)
    logits = grown.logits(embeddings)
    logits[imprint] = unseen_logits(head, grown, seen, vectors)
    return grown, logits


def imprinted(head: AdaptedHead, rows: Labelled, embeddings: Float) -> AdaptedHead:
    """`head` with a row for each label that it does not know: that label's mean embedding, as long as its peers.

    Qi et al., "Low-Shot Learning with Imprinted Weights", CVPR 2018.

    Args:
        head: the adapted head so far.
        rows: n labelled rows.
        embeddings: adapted embeddings, n × d.
    """
    new = sorted(set(rows.labels) - set(head.labels))
    if not new:
        return head
    labels = np.asarray(rows.labels, dtype=object)
    length = float(np.median(np.linalg.norm(head.weights, axis=1)))
    means = np.stack([embeddings[labels == label].mean(axis=0) for label in new])
    means *= length / np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-9)
    return AdaptedHead(
        adapter=head.adapter,
        labels=(*head.labels, *new),
        weights=np.concatenate([head.weights, means.astype(np.float32)]),
        temperature=head.temperature,
        share=head.share,
        sharpness=head.sharpness,
    )


def unseen_logits(before: AdaptedHead, head: AdaptedHead, rows: Labelled, embeddings: Float) -> Float:
    """Logits of `head` for n rows, each as if it had not been in its label's mean when that was imprinted: n × C.

    The only row of a label leaves nothing behind; its logit for that label is 0.

    Args:
        before: the head without the imprinted labels.
        head: `imprinted(before, rows, embeddings)`.
        rows: n labelled rows.
        embeddings: adapted embeddings, n × d.
    """
    logits = head.logits(embeddings)
    labels = np.asarray(rows.labels, dtype=object)
    for column in range(len(before.labels), len(head.labels)):
        mine = np.flatnonzero(labels == head.labels[column])
        others = embeddings[mine].sum(axis=0) - embeddings[mine]
        others *= np.linalg.norm(head.weights[column]) / np.maximum(np.linalg.norm(others, axis=1, keepdims=True), 1e-6)
        logits[mine, column] = (embeddings[mine] * others).sum(axis=1) * head.temperature
    return logits
