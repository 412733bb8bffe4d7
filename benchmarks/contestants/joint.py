"""The ceiling: all data so far, from scratch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from contestants.base import Context, Rows, Session, counts, joined, text_bytes
from contestants.network import Network
from contestants.replay import fit_from_scratch
from perdure.records import Float


class Joint:
    """Keeps every row and retrains on all of them after each session: LoRA, or the whole encoder."""

    def __init__(self, context: Context, *, full: bool = False) -> None:
        self._context = context
        self._full = full
        self._rows = Rows((), ())
        self._network = self._fresh()

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(self._network.labels)

    def learn(self, session: Session) -> None:
        self._rows = joined([self._rows, session.rows])
        self._network = self._fresh()
        self._network.grow(self._rows.labels)
        recipe = self._context.recipe
        rate = recipe.full_learning_rate if self._full else recipe.learning_rate
        rng = np.random.default_rng(self._context.seed)
        fit_from_scratch(self._network, self._rows, recipe.epochs, recipe.batch, rate, rng)

    def probabilities(self, texts: Sequence[str]) -> Float:
        return self._network.probabilities(texts)

    def kept(self) -> dict[str, int]:
        return counts(self._rows.labels)

    def bytes_kept(self) -> int:
        return text_bytes(self._rows)

    def _fresh(self) -> Network:
        return Network(self._context.backbone, self._context.recipe, self._context.seed, full=self._full)
