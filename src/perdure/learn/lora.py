"""One incremental LoRA update: continue the champion's adapter on what is new, hold on to what is old."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from perdure.config import LoraSettings
from perdure.learn.batches import mixed_batches
from perdure.learn.ewc import EXACT_CLASSES, Anchor, decayed_sum, fisher_information
from perdure.model.adapter import AdapterShape, linear_names
from perdure.model.encoder import Encoder, Trunk, pool
from perdure.records import Float

logger = logging.getLogger(__name__)

HEAD = "head"
HEAD_SCALE = 16.0
"""Embeddings have length 1; without a scale a softmax over their projections could never be sure of anything."""
WARM_UP = 0.1


@dataclass(frozen=True, slots=True)
class Champion:
    """What an update goes on from."""

    shape: AdapterShape
    weights: Mapping[str, Tensor]
    """`NAME.A`, `NAME.B` for each target, and `head` (C × d)."""
    labels: tuple[str, ...]
    anchor: Anchor | None


@dataclass(frozen=True, slots=True)
class TrainingSet:
    """What an update learns from; n_f fresh rows, then n_r replayed ones."""

    texts: tuple[str, ...]
    labels: tuple[str, ...]
    fresh: int
    """n_f."""
    soft: Float | None = None
    """The champion's probabilities for every row over `soft_labels` (n × C₀), for distillation."""
    soft_labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Update:
    """The outcome of an update."""

    shape: AdapterShape
    weights: Mapping[str, Tensor]
    labels: tuple[str, ...]
    anchor: Anchor
    """Its own parameters and the Fisher information so far: what the next update is held to if this is promoted."""
    steps: int
    loss: float
    """Mean loss over the last tenth of the steps."""
    penalty: float
    """EWC penalty at the end, λ included."""
    dropped: str | None
    """Why the champion's anchor could not be used; None when it was, or there was none."""


class LoraLearner:
    """Trains adapters for one encoder.

    Args:
        encoder: the frozen encoder.
        settings: rank, epochs, strengths.
        seed: where all randomness comes from.
        progress: called with (step, steps) now and then.
    """

    def __init__(
        self, encoder: Encoder, settings: LoraSettings, *, seed: int, progress: Callable[[int, int], None] | None = None
    ) -> None:
        self._encoder = encoder
        self._settings = settings
        self._seed = seed
        self._progress = progress or (lambda _step, _steps: None)

    def update(self, data: TrainingSet, champion: Champion | None) -> Update:
        """Trains on `data`, starting from the champion's adapter where it fits.

        Raises:
            ValueError: there are no rows.
        """
        if not data.texts:
            raise ValueError("an update needs at least one row, but the training set is empty")
        rng = np.random.default_rng(self._seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._seed)
            network = _Network(self._encoder, self._settings, data)
        champion, dropped = network.continue_from(champion)
        if dropped:
            logger.warning("the champion's adapter and EWC anchor are not used: %s", dropped)
        network.start_head(champion)
        anchor = network.anchor(champion)
        steps, loss = self._train(network, data, anchor, rng)
        theta = network.theta()
        penalty = self._settings.ewc * float(anchor.penalty(theta).detach()) if anchor else 0.0
        fisher, samples = network.fisher(self._settings, rng, self._seed)
        previous = anchor.fisher if anchor else None
        new = Anchor(
            {name: value.detach().clone() for name, value in theta.items()},
            decayed_sum(previous, fisher, self._settings.fisher_decay),
            samples,
        )
        return Update(
            shape=network.shape,
            weights=network.weights(),
            labels=network.labels,
            anchor=new,
            steps=steps,
            loss=loss,
            penalty=penalty,
            dropped=dropped,
        )

    def _train(
        self, network: _Network, data: TrainingSet, anchor: Anchor | None, rng: np.random.Generator
    ) -> tuple[int, float]:
        settings = self._settings
        lengths = [len(ids) for ids in network.tokens]
        epochs = [
            list(
                mixed_batches(
                    data.labels[: data.fresh],
                    data.labels[data.fresh :],
                    batch=settings.batch,
                    lengths=lengths,
                    rng=rng,
                )
            )
            for _ in range(settings.epochs)
        ]
        batches = [batch for epoch in epochs for batch in epoch]
        optimizer = torch.optim.AdamW(network.parameters(), lr=settings.learning_rate, weight_decay=0.0)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, _warm_up_then_cosine(len(batches)))
        losses: list[float] = []
        for step, batch in enumerate(batches):
            optimizer.zero_grad(set_to_none=True)
            loss = network.loss(batch, settings)
            if anchor is not None and settings.ewc:
                loss = loss + settings.ewc * anchor.penalty(network.theta())
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            losses.append(float(loss.detach()))
            self._progress(step + 1, len(batches))
        tail = losses[-max(1, len(losses) // 10) :]
        return len(batches), sum(tail) / len(tail)


class _Network:
    """The layers above the cut with an adapter, and a linear head."""

    def __init__(self, encoder: Encoder, settings: LoraSettings, data: TrainingSet) -> None:
        self._encoder = encoder
        top = encoder.copy_top()
        targets = linear_names(top)
        self.shape = AdapterShape(settings.rank, settings.alpha, encoder.adapted_layers, targets)
        config = LoraConfig(r=settings.rank, lora_alpha=settings.alpha, target_modules=list(targets), lora_dropout=0.0)
        inject_adapter_in_model(config, top)
        self._top = top.eval()
        modules = dict(top.named_modules())
        self._maps: dict[str, Any] = {name: modules[name] for name in targets}
        self.labels = tuple(sorted(set(data.labels)))
        self.head = nn.Linear(encoder.dim, len(self.labels), bias=False)
        self.tokens = encoder.tokens(data.texts)
        self._soft: Tensor | None = None
        self._soft_columns: Tensor | None = None
        self._data = data
        self._index_labels()

    def _index_labels(self) -> None:
        column = {label: index for index, label in enumerate(self.labels)}
        self._targets = torch.tensor([column[label] for label in self._data.labels])
        if self._data.soft is not None:
            known = [index for index, label in enumerate(self._data.soft_labels) if label in column]
            soft = torch.from_numpy(self._data.soft[:, known]).float()
            self._soft = soft / soft.sum(1, keepdim=True).clamp_min(1e-6)
            self._soft_columns = torch.tensor([column[self._data.soft_labels[index]] for index in known])

    def parameters(self) -> list[nn.Parameter]:
        return [p for p in self._top.parameters() if p.requires_grad] + list(self.head.parameters())

    def continue_from(self, champion: Champion | None) -> tuple[Champion | None, str | None]:
        """Takes the champion's factors over, where shapes agree; else says why not."""
        if champion is None:
            return None, None
        if champion.shape != self.shape:
            mine, theirs = self.shape.to_json(), champion.shape.to_json()
            changed = [f"{key} was {theirs[key]} and is {mine[key]}" for key in mine if mine[key] != theirs[key]]
            return None, "; ".join(changed)
        with torch.no_grad():
            for name, module in self._maps.items():
                module.lora_A["default"].weight.copy_(champion.weights[f"{name}.A"])
                module.lora_B["default"].weight.copy_(champion.weights[f"{name}.B"])
        # A label that nothing is left of to replay keeps its row in the head.
        self.labels = tuple(sorted({*self.labels, *champion.labels}))
        self.head = nn.Linear(self._encoder.dim, len(self.labels), bias=False)
        self._index_labels()
        return champion, None

    def start_head(self, champion: Champion | None) -> None:
        """Starts the head at the champion's rows; for other labels at their mean embedding.

        Qi et al., "Low-Shot Learning with Imprinted Weights", CVPR 2018.
        """
        known = champion.labels if champion else ()
        rows = [row for row, label in enumerate(self._data.labels) if label not in known]
        total = torch.zeros(len(self.labels), self._encoder.dim)
        with torch.no_grad():
            for start in range(0, len(rows), 64):
                part = rows[start : start + 64]
                embeddings = self.embed(self._encoder.trunk([self.tokens[row] for row in part]))
                total.index_add_(0, self._targets[part], embeddings)
            self.head.weight.copy_(nn.functional.normalize(total, dim=1))
            if champion:
                self.head.weight[self._places(champion)] = champion.weights[HEAD].float()

    def anchor(self, champion: Champion | None) -> Anchor | None:
        """The champion's anchor, its head's rows moved to the places that their labels have now."""
        if champion is None or champion.anchor is None:
            return None
        # Labels that the champion's head was given after its last update come last, and the anchor does not know them.
        anchored = champion.anchor.theta[HEAD].shape[0]
        return champion.anchor.grown(HEAD, self._places(champion)[:anchored], len(self.labels))

    def _places(self, champion: Champion) -> list[int]:
        column = {label: index for index, label in enumerate(self.labels)}
        return [column[label] for label in champion.labels]

    def embed(self, trunk: Trunk) -> Tensor:
        hidden = trunk.hidden
        for layer in self._top:
            hidden = trunk.call(layer, hidden)
        return nn.functional.normalize(pool(hidden, trunk.mask).float(), dim=1)

    def logits(self, trunk: Trunk) -> Tensor:
        result: Tensor = self.head(HEAD_SCALE * self.embed(trunk))
        return result

    def loss(self, rows: Sequence[int], settings: LoraSettings) -> Tensor:
        """Cross-entropy over all labels, and towards the champion's answers over those that it knows."""
        trunk = self._encoder.trunk([self.tokens[row] for row in rows])
        with torch.autocast(trunk.hidden.device.type, torch.bfloat16):
            embeddings = self.embed(trunk)
        logits = self.head(HEAD_SCALE * embeddings)
        index = torch.tensor(list(rows))
        loss = nn.functional.cross_entropy(logits, self._targets[index])
        if self._soft is not None and self._soft_columns is not None and settings.distillation:
            # Only where the champion knows the true label does it have anything to say.
            known = torch.isin(self._targets[index], self._soft_columns)
            if known.any():
                mine = torch.log_softmax(logits[known][:, self._soft_columns], dim=1)
                loss = loss - settings.distillation * (self._soft[index][known] * mine).sum(1).mean()
        return loss

    def theta(self) -> dict[str, Tensor]:
        """The parameters that EWC speaks of: the product (α/r)·BA of each target, and the head."""
        theta = {
            name: self.shape.scale * (module.lora_B["default"].weight @ module.lora_A["default"].weight)
            for name, module in self._maps.items()
        }
        theta[HEAD] = self.head.weight
        return theta

    def weights(self) -> dict[str, Tensor]:
        weights: dict[str, Tensor] = {}
        for name, module in self._maps.items():
            weights[f"{name}.A"] = module.lora_A["default"].weight.detach().clone()
            weights[f"{name}.B"] = module.lora_B["default"].weight.detach().clone()
        weights[HEAD] = self.head.weight.detach().clone()
        return weights

    def fisher(self, settings: LoraSettings, rng: np.random.Generator, seed: int) -> tuple[dict[str, Tensor], int]:
        """Fisher information of θ on a sample of the rows that were trained on."""
        # An exact expectation costs one backward pass a class: the same budget buys fewer samples.
        classes = len(self.labels)
        budget = max(1, settings.fisher_samples // (classes if classes <= EXACT_CLASSES else 1))
        drawn = rng.choice(len(self.tokens), min(budget, len(self.tokens)), replace=False)
        rows = sorted((int(row) for row in drawn), key=lambda row: len(self.tokens[row]))
        batches = [rows[start : start + settings.batch] for start in range(0, len(rows), settings.batch)]

        def forward(batch: Sequence[int]) -> tuple[Tensor, Tensor]:
            return self.logits(self._encoder.trunk([self.tokens[row] for row in batch])), torch.ones(
                len(batch), dtype=torch.bool
            )

        information, samples = fisher_information(
            {**self._maps, HEAD: self.head}, batches, forward, generator=torch.Generator().manual_seed(seed)
        )
        # The head sees HEAD_SCALE times the embedding, and o = Wx holds for that input: nothing to correct.
        return information, samples


def _warm_up_then_cosine(steps: int) -> Callable[[int], float]:
    warm = max(1, math.ceil(WARM_UP * steps))

    def factor(step: int) -> float:
        if step < warm:
            return (step + 1) / warm
        return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))

    return factor
