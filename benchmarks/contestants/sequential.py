"""Sequential LoRA: with EWC or without, with replay or without."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from contestants.backbone import by_length
from contestants.base import Context, Rows, Session, text_bytes
from contestants.buffers import ClassReservoirs
from contestants.ewc import Consolidation, fisher_information
from contestants.network import Network, Step, steps, train
from perdure.records import Float

NOTHING = Rows((), ())


class Sequential:
    """One adapter and one head, trained on each session in turn with cross-entropy over all classes seen so far.

    Without replay and EWC this is `naive_lora`. With replay half of each batch comes from a memory that is a uniform
    sample of each class: Rolnick et al., "Experience Replay for Continual Learning", NeurIPS 2019.

    Args:
        context: budget and recipe.
        replay: keep a memory and replay it.
        ewc: hold on to weights that mattered.
    """

    def __init__(self, context: Context, *, replay: bool = False, ewc: bool = False) -> None:
        recipe = context.recipe
        self._recipe = recipe
        self._rng = np.random.default_rng(context.seed)
        self._generator = torch.Generator().manual_seed(context.seed)
        self._network = Network(context.backbone, recipe, context.seed)
        self._memory: ClassReservoirs[str] | None = ClassReservoirs(context.memory, self._rng) if replay else None
        self._ewc = Consolidation(recipe.ewc, recipe.fisher_decay) if ewc else None

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(self._network.labels)

    def learn(self, session: Session) -> None:
        network, recipe, rows, old = self._network, self._recipe, session.rows, self._old()
        network.grow(rows.labels)
        new_tokens, old_tokens = network.tokens(rows.texts), network.tokens(old.texts)
        new_columns, old_columns = network.columns(rows.labels), network.columns(old.labels)
        maps = network.maps()

        def loss(step: Step) -> Tensor:
            tokens = [new_tokens[row] for row in step.new]
            targets = [new_columns[list(step.new)]]
            for drawn in step.old:
                tokens += [old_tokens[row] for row in drawn]
                targets.append(old_columns[list(drawn)])
            value = nn.functional.cross_entropy(network.logits(tokens).float(), torch.cat(targets))
            return value + self._ewc.penalty(maps) if self._ewc else value

        epochs = max(1, recipe.epochs // 2) if len(old) else recipe.epochs
        plan = steps(new_tokens, old_tokens, batch=recipe.batch, epochs=epochs, rng=self._rng)
        train(network.parameters(), plan, loss, learning_rate=recipe.learning_rate)
        if self._ewc:
            self._ewc.settle(maps, self._fisher(new_tokens))
        if self._memory:
            for text, label in zip(rows.texts, rows.labels, strict=True):
                self._memory.offer(label, text)

    def probabilities(self, texts: Sequence[str]) -> Float:
        return self._network.probabilities(texts)

    def kept(self) -> dict[str, int]:
        return self._memory.counts() if self._memory else {}

    def bytes_kept(self) -> int:
        return text_bytes(self._old()) + (self._ewc.bytes_kept() if self._ewc else 0)

    def _old(self) -> Rows:
        if not self._memory:
            return NOTHING
        labels, texts = self._memory.items()
        return Rows(texts, labels)

    def _fisher(self, tokens: Sequence[Sequence[int]]) -> dict[str, Tensor]:
        count = min(self._recipe.fisher_rows, len(tokens))
        drawn = [tokens[row] for row in self._rng.choice(len(tokens), count, replace=False)]
        batches = [[drawn[row] for row in rows] for rows in by_length(drawn, self._recipe.batch)]
        return fisher_information(self._network.maps(), batches, self._network.logits, self._generator)
