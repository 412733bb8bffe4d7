"""The process in which Avalanche's plugins run: `python -m contestants.avalanche_run TASK OUTCOME`.

It has Avalanche, and knows of Perdure only what the other contestants share.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from avalanche.benchmarks import benchmark_from_datasets  # type: ignore[import-not-found]
from avalanche.benchmarks.utils.classification_dataset import (  # type: ignore[import-not-found]
    _make_taskaware_classification_dataset as classification_dataset,
)
from avalanche.training.plugins import EvaluationPlugin, EWCPlugin, ReplayPlugin, SupervisedPlugin  # type: ignore[import-not-found]
from avalanche.training.storage_policy import ClassBalancedBuffer  # type: ignore[import-not-found]
from avalanche.training.supervised import Naive  # type: ignore[import-not-found]
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from contestants.backbone import Backbone, Batch, embed
from contestants.base import Context, Session
from contestants.contest import Outcome, contend
from contestants.features import FrozenFeatures
from contestants.network import Network, warm_up_then_cosine
from contestants.orders import dealt
from contestants.recipe import Recipe
from perdure.dataset import read_rows
from perdure.records import Float


class TokenRows(TensorDataset):
    """Rows of n × 2 × T (token ids, mask), with their classes as Avalanche looks for them."""

    def __init__(self, tokens: Tensor, targets: Sequence[int]) -> None:
        super().__init__(tokens, torch.tensor(targets))
        self.targets = list(targets)


class Answering(nn.Module):
    """The network as a module on n × 2 × T; answers only for the classes seen so far."""

    def __init__(self, network: Network, scale: float) -> None:
        super().__init__()
        self.encoder = network.encoder
        self.head = network.head
        self.scale = scale
        self.seen = 0

    def forward(self, rows: Tensor) -> Tensor:
        longest = int(rows[:, 1].sum(dim=1).max())
        with torch.autocast("cpu", torch.bfloat16, enabled=self.training):
            embeddings = embed(self.encoder, Batch(rows[:, 0, :longest], rows[:, 1, :longest]))
        logits: Tensor = self.head(self.scale * embeddings)
        return logits[:, : self.seen]

    def train(self, mode: bool = True) -> Answering:
        """The recipe has no dropout: only this module's own flag changes."""
        self.training = mode
        return self


class Schedule(SupervisedPlugin):  # type: ignore[misc]
    """The recipe's learning rate, and its limit on gradients."""

    def __init__(self, peak: float) -> None:
        super().__init__()
        self._peak = peak
        self._step = self._steps = 0

    def before_training_epoch(self, strategy: Any, **_: Any) -> None:
        if strategy.clock.train_exp_epochs == 0:
            self._step, self._steps = 0, len(strategy.dataloader) * strategy.train_epochs

    def before_update(self, strategy: Any, **_: Any) -> None:
        for group in strategy.optimizer.param_groups:
            group["lr"] = self._peak * warm_up_then_cosine(self._steps)(self._step)
        self._step += 1
        nn.utils.clip_grad_norm_(strategy.model.parameters(), 1.0)


class Plugged:
    """A contestant that Avalanche trains.

    Args:
        context: budget and recipe.
        plugin: `replay` or `ewc`.
        labels: all that will come, in the order in which they come: Avalanche wants their number.
    """

    def __init__(self, context: Context, plugin: str, labels: Sequence[str]) -> None:
        recipe = context.recipe
        self._context, self._recipe, self._all = context, recipe, tuple(labels)
        self._network = Network(context.backbone, recipe, context.seed)
        self._network.grow(labels)
        self._model = Answering(self._network, recipe.head_scale)
        self._buffer: Any = None
        self._plugin: Any
        if plugin == "replay":
            size = context.memory * len(labels)
            self._buffer = ClassBalancedBuffer(size, adaptive_size=False, total_num_classes=len(labels))
            half = recipe.batch // 2
            self._plugin = ReplayPlugin(
                mem_size=size, batch_size=half, batch_size_mem=half, storage_policy=self._buffer
            )
        else:
            # Its penalty has no half in front.
            self._plugin = EWCPlugin(recipe.ewc / 2, mode="online", decay_factor=recipe.fisher_decay)
        trained = [parameter for parameter in self._model.parameters() if parameter.requires_grad]
        self._strategy = Naive(
            model=self._model,
            optimizer=torch.optim.AdamW(trained, lr=recipe.learning_rate, weight_decay=0.0),
            criterion=nn.CrossEntropyLoss(),
            train_mb_size=recipe.batch,
            train_epochs=recipe.epochs,
            plugins=[self._plugin, Schedule(recipe.learning_rate)],
            evaluator=EvaluationPlugin(),
        )
        self._length = context.backbone.max_tokens

    @property
    def labels(self) -> tuple[str, ...]:
        return self._all[: self._model.seen]

    def learn(self, session: Session) -> None:
        columns = self._network.columns(session.rows.labels).tolist()
        first = self._model.seen == 0
        self._model.seen = max(self._model.seen, max(columns) + 1)
        batch = self._context.backbone.batch(self._network.tokens(session.rows.texts), length=self._length)
        tokens = TokenRows(torch.stack([batch.ids, batch.mask], dim=1), columns)
        rows = classification_dataset(tokens, targets=columns, task_labels=0)
        replaying = self._buffer is not None and not first
        self._strategy.train_epochs = max(1, self._recipe.epochs // 2) if replaying else self._recipe.epochs
        self._strategy.train(benchmark_from_datasets(train=[rows]).train_stream[0], num_workers=0)

    def probabilities(self, texts: Sequence[str]) -> Float:
        seen: Float = self._network.answers(texts)[:, : self._model.seen]
        result: Float = torch.softmax(torch.from_numpy(seen), dim=1).numpy()
        return result

    def kept(self) -> dict[str, int]:
        if self._buffer is None:
            return {}
        return {self._all[column]: len(group.buffer) for column, group in self._buffer.buffer_groups.items()}

    def bytes_kept(self) -> int:
        """Of samples as it keeps them, token ids and masks; of its EWC state with all frozen parameters in it."""
        kept = sum(self.kept().values()) * 2 * self._length * 8
        if self._buffer is None:
            for state in (self._plugin.saved_params, self._plugin.importances):
                kept += sum(
                    one.data.numel() * one.data.element_size() for part in state.values() for one in part.values()
                )
        return kept


def main() -> None:
    said, written = Path(sys.argv[1]), Path(sys.argv[2])
    given = json.loads(said.read_text(encoding="utf-8"))
    torch.set_num_threads(given["threads"])
    torch.manual_seed(given["seed"])
    order = dealt("10x15", given["seed"], read_rows(Path(given["stream"])), read_rows(Path(given["evaluation"])))
    backbone = Backbone(given["model"])
    longest = max(len(ids) for part in order.sessions for ids in backbone.tokens(part.rows.texts))
    backbone.max_tokens = longest
    features = FrozenFeatures(backbone, said.parent)
    context = Context(backbone, features, given["memory"], given["seed"], Recipe(**given["recipe"]))
    contestant = Plugged(context, given["plugin"], order.labels)
    outcome = contend(contestant, order, features, memory=given["memory"])
    written.write_text(json.dumps(described(outcome)), encoding="utf-8")


def described(outcome: Outcome) -> Mapping[str, Any]:
    """The outcome as JSON."""
    return {
        "sessions": [asdict(one) for one in outcome.sessions],
        "answers": [{"right": one.right.tolist(), "confidence": one.confidence.tolist()} for one in outcome.answers],
        "bytes_kept": outcome.bytes_kept,
        "samples_kept": outcome.samples_kept,
    }


if __name__ == "__main__":
    main()
