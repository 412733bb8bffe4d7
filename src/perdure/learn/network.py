"""What an update trains: the layers above the cut with low-rank factors, and a linear head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from perdure.config import LoraSettings
from perdure.learn.ewc import EXACT_CLASSES, Anchor, fisher_information
from perdure.learn.lowrank import in_precision, with_factors
from perdure.learn.processes import Processes
from perdure.learn.pull import Pull
from perdure.learn.replicas import Replica
from perdure.model.adapter import AdapterShape, linear_names
from perdure.model.encoder import Encoder
from perdure.model.trunk_cache import TrunkCache

HEAD = "head"
HEAD_SCALE = 16.0
"""Embeddings have length 1; without a scale a softmax over their projections could never be sure of anything."""
EVALUATION_BATCH = 64


@dataclass(frozen=True, slots=True)
class Origin:
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


@dataclass(frozen=True, slots=True)
class Before:
    """What an adapter answered before an update."""

    columns: Tensor
    """C₀ columns of the head that is trained: the labels that it knew."""
    said: Tensor
    """n × C₀ probabilities; 0 for rows that do not teach, and for those of other processes."""
    teaches: Tensor
    """Which of the n rows are held to what it said: the replayed ones whose label it knew."""


class Network:
    """The layers above the cut with an adapter, and a linear head.

    Args:
        encoder: whose layers are adapted; it stays as it is.
        settings: rank and scale.
        data: the rows that will be trained on.
        dtype: precision of the layers' large products; all else is float32.
        processes: those that train together; each computes with its own rows.
    """

    def __init__(
        self, encoder: Encoder, settings: LoraSettings, data: TrainingSet, dtype: torch.dtype, processes: Processes
    ) -> None:
        self._encoder = encoder
        top = encoder.copy_top()
        targets = linear_names(top)
        self.shape = AdapterShape(settings.rank, settings.alpha, encoder.adapted_layers, targets)
        self._exact, self._maps = with_factors(top, targets, settings.rank, self.shape.scale)
        self._top = self._exact if dtype == torch.float32 else in_precision(self._exact, self._maps, dtype)
        self.labels = tuple(sorted(set(data.labels)))
        self.head = self._made_head()
        self.tokens = encoder.tokens(data.texts)
        self._processes = processes
        self._mine = processes.share([len(ids) for ids in self.tokens])
        self._trunks = TrunkCache(encoder, self.tokens, rows=sorted(self._mine), dtype=dtype)
        self._before: Before | None = None
        self._data = data
        self._index_labels()

    def _made_head(self) -> nn.Parameter:
        return nn.Parameter(torch.zeros(len(self.labels), self._encoder.dim, device=self._encoder.device))

    def _index_labels(self) -> None:
        column = {label: index for index, label in enumerate(self.labels)}
        device = self._encoder.device
        self._targets = torch.tensor([column[label] for label in self._data.labels], device=device)

    def parameters(self) -> list[nn.Parameter]:
        return [factor for one in self._maps.values() for factor in (one.A, one.B)] + [self.head]

    def continue_from(self, origin: Origin | None) -> tuple[Origin | None, str | None]:
        """Takes the origin's factors over, where shapes agree; else says why not."""
        if origin is None:
            return None, None
        if origin.shape != self.shape:
            return None, self.shape.changes_from(origin.shape)
        with torch.no_grad():
            for name, one in self._maps.items():
                one.A.copy_(origin.weights[f"{name}.A"])
                one.B.copy_(origin.weights[f"{name}.B"])
        # A label that nothing is left of to replay keeps its row in the head.
        self.labels = tuple(sorted({*self.labels, *origin.labels}))
        self.head = self._made_head()
        self._index_labels()
        return origin, None

    def pass_below(self) -> None:
        """Runs the frozen layers below the cut, once for all steps."""
        self._trunks.fill()

    def start_head(self, origin: Origin | None) -> None:
        """Starts the head at the origin's rows; for other labels at their mean embedding.

        Qi et al., "Low-Shot Learning with Imprinted Weights", CVPR 2018.
        """
        known = frozenset(origin.labels if origin else ())
        rows = [row for row in sorted(self._mine) if self._data.labels[row] not in known]
        rows.sort(key=lambda row: len(self.tokens[row]))
        total = torch.zeros_like(self.head)
        with torch.no_grad():
            for start in range(0, len(rows), EVALUATION_BATCH):
                part = rows[start : start + EVALUATION_BATCH]
                total.index_add_(0, self._targets[part], self._trunks.batch(part).embed(self._top))
            self._processes.add_up(total)
            self.head.copy_(nn.functional.normalize(total, dim=1))
            if origin:
                self.head[self._places(origin)] = origin.weights[HEAD].to(self.head)

    def listen(self, origin: Origin) -> None:
        """Keeps what the network answers before it is trained, over the origin's labels, to be distilled.

        Li and Hoiem, "Learning without Forgetting", ECCV 2016. The teacher is what the adapter was, not the champion:
        one that repeats the head with which it is pooled errs where that errs, and the pool gains nothing by it. In the
        second half of an update it is what the adapter was halfway. It
        speaks of replayed rows alone: of old labels in new words it knows less than their labels say, and would hold
        back what the update is there to learn.
        """
        device = self._encoder.device
        columns = torch.tensor(self._places(origin), dtype=torch.long, device=device)
        replayed = torch.arange(len(self.tokens), device=device) >= self._data.fresh
        teaches = replayed & torch.isin(self._targets, columns)
        said = torch.zeros(len(self.tokens), len(columns), device=device)
        rows = sorted((row for row in self._mine if bool(teaches[row])), key=lambda row: (len(self.tokens[row]), row))
        with torch.no_grad():
            for start in range(0, len(rows), EVALUATION_BATCH):
                part = rows[start : start + EVALUATION_BATCH]
                logits = nn.functional.linear(HEAD_SCALE * self._trunks.batch(part).embed(self._top), self.head)
                said[part] = torch.softmax(logits[:, columns], dim=1)
        self._before = Before(columns, said, teaches)

    def anchor(self, origin: Origin | None) -> Anchor | None:
        """The origin's anchor, its head's rows moved to the places that their labels have now."""
        if origin is None or origin.anchor is None:
            return None
        # Labels that the origin's head was given after its last update come last, and the anchor does not know them.
        anchored = origin.anchor.theta[HEAD].shape[0]
        return origin.anchor.grown(HEAD, self._places(origin)[:anchored], len(self.labels))

    def pull(self, anchor: Anchor, strength: float) -> Pull:
        """What draws the parameters towards `anchor`."""
        return Pull(anchor, self._maps, {HEAD: self.head}, strength)

    def _places(self, origin: Origin) -> list[int]:
        column = {label: index for index, label in enumerate(self.labels)}
        return [column[label] for label in origin.labels]

    def replica(self) -> Replica:
        """The layers and the head once more, for a thread that computes a part of each batch."""
        return Replica.of(self._top, self._maps, self.head)

    def rows(self, batch: Sequence[int]) -> list[int]:
        """The rows of `batch` that are this process's, by length."""
        return sorted((row for row in batch if row in self._mine), key=lambda row: (len(self.tokens[row]), row))

    def loss(self, replica: Replica, rows: Sequence[int], batch: Sequence[int], settings: LoraSettings) -> Tensor:
        """The part of `rows` in the loss of `batch`; the parts add up.

        Cross-entropy over all labels, a mean over `batch`, and towards what the origin answered, over the labels that
        it knows, a mean over those of `batch` that it teaches.
        """
        embeddings = self._trunks.batch(rows).embed(replica.top)
        logits = nn.functional.linear(HEAD_SCALE * embeddings, replica.head)
        index = torch.tensor(rows, device=logits.device)
        targets = self._targets[index]
        loss = nn.functional.cross_entropy(logits, targets, reduction="sum") / len(batch)
        if self._before is not None:
            taught = self._before.teaches[index]
            if taught.any():
                mine = torch.log_softmax(logits[taught][:, self._before.columns], dim=1)
                count = int(self._before.teaches[list(batch)].sum())
                loss = loss - settings.distillation * (self._before.said[index][taught] * mine).sum() / count
        return loss

    @torch.no_grad()
    def theta(self) -> dict[str, Tensor]:
        """The parameters that EWC speaks of: the product (α/r)·BA of each target, and the head."""
        return {name: one.product().cpu() for name, one in self._maps.items()} | {HEAD: self.head.cpu().clone()}

    @torch.no_grad()
    def weights(self) -> dict[str, Tensor]:
        weights: dict[str, Tensor] = {}
        for name, one in self._maps.items():
            weights[f"{name}.A"] = one.A.cpu().clone()
            weights[f"{name}.B"] = one.B.cpu().clone()
        weights[HEAD] = self.head.cpu().clone()
        return weights

    def fisher(
        self, encoder: Encoder, settings: LoraSettings, rng: np.random.Generator, seed: int
    ) -> tuple[dict[str, Tensor], int]:
        """Fisher information of θ on a sample of the rows that were trained on, in float32, where `encoder` is.

        The network goes there with it: it is not trained on afterwards.
        """
        # An exact expectation costs one backward pass a class: the same budget buys fewer samples.
        classes = len(self.labels)
        budget = max(1, settings.fisher_samples // (classes if classes <= EXACT_CLASSES else 1))
        drawn = rng.choice(len(self.tokens), min(budget, len(self.tokens)), replace=False)
        rows = sorted((int(row) for row in drawn), key=lambda row: len(self.tokens[row]))
        batches = [rows[start : start + settings.batch] for start in range(0, len(rows), settings.batch)]
        layers = self._exact.to(encoder.device)
        head = nn.utils.skip_init(nn.Linear, encoder.dim, classes, bias=False)  # type: ignore[no-untyped-call]
        head.weight = nn.Parameter(self.head.detach().to(encoder.device))

        def forward(batch: Sequence[int]) -> tuple[Tensor, Tensor]:
            tokens = [self.tokens[row] for row in batch]
            trunk = encoder.trunk(tokens, length=max(len(ids) for ids in tokens))
            logits: Tensor = head(HEAD_SCALE * trunk.embed(layers))
            return logits, torch.ones(len(batch), dtype=torch.bool, device=logits.device)

        # The head sees HEAD_SCALE times the embedding, and o = Wx holds for that input: nothing to correct.
        return fisher_information(
            {**self._maps, HEAD: head}, batches, forward, generator=torch.Generator().manual_seed(seed)
        )
