"""Contestants that live from a memory: DER++ and GDumb. (Replay alone is `sequential.Sequential` with a memory.)"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from contestants.base import Context, Rows, Session, text_bytes
from contestants.buffers import ClassReservoirs, GreedyBalanced
from contestants.network import Network, Step, steps, train
from perdure.records import Float


@dataclass(frozen=True, slots=True)
class Remembered:
    """A sample and what the model answered when it was taken in."""

    text: str
    logits: Float
    """Over the classes known then, which are the first of those known now."""


class DarkExperienceReplay:
    """DER++: replay with the logits of then, and with the labels.

    Buzzega et al., "Dark Experience for General Continual Learning", NeurIPS 2020, equation 6: cross-entropy on new
    rows + α·mean squared distance to the stored logits + β·cross-entropy on replayed rows, of two independent draws.
    Logits are those after the session in which a sample was taken in. Memory is a uniform sample of each class.
    """

    def __init__(self, context: Context) -> None:
        self._recipe = context.recipe
        self._rng = np.random.default_rng(context.seed)
        self._network = Network(context.backbone, context.recipe, context.seed)
        self._memory: ClassReservoirs[str | Remembered] = ClassReservoirs(context.memory, self._rng)

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(self._network.labels)

    def learn(self, session: Session) -> None:
        network, recipe, rows = self._network, self._recipe, session.rows
        old_labels, old = self._remembered()
        network.grow(rows.labels)
        new_tokens, old_tokens = network.tokens(rows.texts), network.tokens([one.text for one in old])
        new_columns, old_columns = network.columns(rows.labels), network.columns(old_labels)
        stored, known = padded([one.logits for one in old], len(network.labels))

        def loss(step: Step) -> Tensor:
            drawn = [row for one in step.old for row in one]
            tokens = [new_tokens[row] for row in step.new] + [old_tokens[row] for row in drawn]
            logits = network.logits(tokens).float()
            if not step.old:
                return nn.functional.cross_entropy(logits, new_columns[list(step.new)])
            first, second = (list(one) for one in step.old)
            new, again, labelled = torch.split(logits, [len(step.new), len(first), len(second)])
            return der_loss(
                new,
                new_columns[list(step.new)],
                again,
                stored[first],
                known[first],
                labelled,
                old_columns[second],
                alpha=recipe.der_alpha,
                beta=recipe.der_beta,
            )

        epochs = max(1, recipe.epochs // 2) if old else recipe.epochs
        plan = steps(new_tokens, old_tokens, batch=recipe.batch, epochs=epochs, rng=self._rng, draws=2)
        train(network.parameters(), plan, loss, learning_rate=recipe.learning_rate)
        self._take_in(rows)

    def probabilities(self, texts: Sequence[str]) -> Float:
        return self._network.probabilities(texts)

    def kept(self) -> dict[str, int]:
        return self._memory.counts()

    def bytes_kept(self) -> int:
        labels, old = self._remembered()
        return text_bytes(Rows(tuple(one.text for one in old), labels)) + sum(one.logits.nbytes for one in old)

    def _remembered(self) -> tuple[tuple[str, ...], tuple[Remembered, ...]]:
        labels, items = self._memory.items()
        return labels, tuple(item for item in items if isinstance(item, Remembered))

    def _take_in(self, rows: Rows) -> None:
        for text, label in zip(rows.texts, rows.labels, strict=True):
            self._memory.offer(label, text)
        # Most rows offered do not stay: only those that did are worth a forward pass.
        fresh = [item for item in self._memory.items()[1] if isinstance(item, str)]
        logits = dict(zip(fresh, self._network.answers(fresh), strict=True))
        self._memory.replace(lambda item: Remembered(item, logits[item]) if isinstance(item, str) else item)


def padded(logits: Sequence[Float], width: int) -> tuple[Tensor, Tensor]:
    """Logits of different lengths as n × `width` with zeros behind, and where they stand (n × `width`)."""
    stored = torch.zeros(len(logits), width)
    known = torch.zeros(len(logits), width, dtype=torch.bool)
    for row, one in enumerate(logits):
        stored[row, : len(one)] = torch.from_numpy(one)
        known[row, : len(one)] = True
    return stored, known


def der_loss(
    new: Tensor,
    new_targets: Tensor,
    again: Tensor,
    stored: Tensor,
    known: Tensor,
    labelled: Tensor,
    labelled_targets: Tensor,
    *,
    alpha: float,
    beta: float,
) -> Tensor:
    """The loss of DER++; see `DarkExperienceReplay`.

    Args:
        new: logits of new rows (n × C), with `new_targets` (n).
        again: logits of the first draw (m × C); `stored` are those of then, where `known`.
        labelled: logits of the second draw (k × C), with `labelled_targets` (k).
        alpha: weight of the squared distance, its mean over all known logits.
        beta: weight of the second draw's cross-entropy.
    """
    distance = ((again - stored)[known] ** 2).mean()
    return (
        nn.functional.cross_entropy(new, new_targets)
        + alpha * distance
        + beta * nn.functional.cross_entropy(labelled, labelled_targets)
    )


class GreedyDumb:
    """GDumb: a balanced memory, and after each session a model trained from scratch on nothing else.

    Prabhu, Torr and Dokania, "GDumb: A Simple Approach that Questions Our Progress in Continual Learning", ECCV 2020.
    The memory's capacity grows with the classes, as that of every contestant here.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._rng = np.random.default_rng(context.seed)
        self._memory: GreedyBalanced[str] = GreedyBalanced(0, context.memory, self._rng)
        self._network = Network(context.backbone, context.recipe, context.seed)

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(self._network.labels)

    def learn(self, session: Session) -> None:
        known = {*self._network.labels, *session.rows.labels}
        self._memory.grow(self._context.memory * len(known))
        for text, label in zip(session.rows.texts, session.rows.labels, strict=True):
            self._memory.offer(label, text)
        labels, texts = self._memory.items()
        recipe = self._context.recipe
        self._network = network = Network(self._context.backbone, recipe, self._context.seed)
        network.grow(labels)
        fit_from_scratch(
            network, Rows(texts, labels), recipe.scratch_epochs, recipe.batch, recipe.learning_rate, self._rng
        )

    def probabilities(self, texts: Sequence[str]) -> Float:
        return self._network.probabilities(texts)

    def kept(self) -> dict[str, int]:
        return self._memory.counts()

    def bytes_kept(self) -> int:
        labels, texts = self._memory.items()
        return text_bytes(Rows(texts, labels))


def fit_from_scratch(
    network: Network, rows: Rows, epochs: int, batch: int, learning_rate: float, rng: np.random.Generator
) -> None:
    """Trains a network that knows nothing yet on `rows` alone, with cross-entropy."""
    tokens, columns = network.tokens(rows.texts), network.columns(rows.labels)

    def loss(step: Step) -> Tensor:
        logits = network.logits([tokens[row] for row in step.new]).float()
        return nn.functional.cross_entropy(logits, columns[list(step.new)])

    plan = steps(tokens, (), batch=batch, epochs=epochs, rng=rng)
    train(network.parameters(), plan, loss, learning_rate=learning_rate)
