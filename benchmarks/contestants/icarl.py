"""iCaRL: exemplars by herding, nearest mean of exemplars, distillation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from contestants.base import Context, Rows, Session, joined, text_bytes
from contestants.buffers import herding
from contestants.frozen import normalised, softmax
from contestants.network import Network, Step, steps, train
from perdure.records import Float


class Icarl:
    """Rebuffi et al., "iCaRL: Incremental Classifier and Representation Learning", CVPR 2017, on LoRA.

    The encoder is trained on new rows and exemplars together with a sigmoid for each class, whose targets for the
    classes known before are what the model answered before the session. A text is of the class whose exemplars' mean is
    nearest. A class's exemplars are chosen when it comes; when it comes again, anew among them and its new rows.
    """

    def __init__(self, context: Context) -> None:
        self._memory = context.memory
        self._recipe = context.recipe
        self._rng = np.random.default_rng(context.seed)
        self._network = Network(context.backbone, context.recipe, context.seed)
        self._exemplars: dict[str, list[str]] = {}
        self._means = np.zeros((0, context.backbone.dim))

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(self._network.labels)

    def learn(self, session: Session) -> None:
        network, recipe = self._network, self._recipe
        rows = joined([session.rows, self._kept_rows()])
        before = torch.sigmoid(torch.from_numpy(network.answers(rows.texts)))
        network.grow(rows.labels)
        tokens, columns = network.tokens(rows.texts), network.columns(rows.labels)
        targets = distilled_targets(columns, before, len(network.labels))

        def loss(step: Step) -> Tensor:
            chosen = list(step.new)
            return icarl_loss(network.logits([tokens[row] for row in chosen]).float(), targets[chosen])

        plan = steps(tokens, (), batch=recipe.batch, epochs=recipe.epochs, rng=self._rng)
        train(network.parameters(), plan, loss, learning_rate=recipe.learning_rate)
        self._choose(rows, set(session.rows.labels))

    def probabilities(self, texts: Sequence[str]) -> Float:
        return softmax(self._recipe.similarity_scale * self._network.embeddings(texts) @ self._means.T)

    def kept(self) -> dict[str, int]:
        return {label: len(texts) for label, texts in self._exemplars.items()}

    def bytes_kept(self) -> int:
        return text_bytes(self._kept_rows()) + self._means.nbytes

    def _kept_rows(self) -> Rows:
        pairs = [(text, label) for label, texts in self._exemplars.items() for text in texts]
        return Rows(tuple(text for text, _ in pairs), tuple(label for _, label in pairs))

    def _choose(self, rows: Rows, fresh: set[str]) -> None:
        for label in self.labels:
            if label in fresh:
                texts = [text for text, own in zip(rows.texts, rows.labels, strict=True) if own == label]
                order = herding(self._network.embeddings(texts), self._memory)
                self._exemplars[label] = [texts[row] for row in order]
        # The encoder has moved: the means of all classes move with it.
        kept = self._kept_rows()
        vectors = self._network.embeddings(kept.texts).astype(np.float64)
        owner = np.asarray(kept.labels)
        self._means = normalised(np.stack([vectors[owner == label].mean(axis=0) for label in self.labels]))


def distilled_targets(columns: Tensor, before: Tensor, width: int) -> Tensor:
    """n × `width` targets: 1 for a row's own class; for the classes known before, what was answered then (n × C₀).

    Algorithm 3 of the paper: a row's own class is a target only where it is new.
    """
    targets = nn.functional.one_hot(columns, width).float()
    targets[:, : before.shape[1]] = before
    return targets


def icarl_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Binary cross-entropy, summed over classes and averaged over rows."""
    return nn.functional.binary_cross_entropy_with_logits(logits, targets, reduction="none").sum(dim=1).mean()
