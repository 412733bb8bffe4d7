"""The encoder with an adapter, or all of it trainable, under a linear head that grows; and how it is trained."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from contestants.backbone import Backbone, by_length, embed
from contestants.recipe import Recipe
from perdure.records import Float

Tokens = Sequence[Sequence[int]]
StepT = TypeVar("StepT")

EVALUATION_BATCH = 64
POOL = 8
"""Batches are cut out of so many at a time that are sorted by length, so that little is padded."""


class Network:
    """logits = W · (scale · embedding).

    Args:
        backbone: copied, never changed.
        recipe: rank and scale.
        seed: of the adapter's first factors.
        full: train all of the encoder, without an adapter.
    """

    def __init__(self, backbone: Backbone, recipe: Recipe, seed: int, *, full: bool = False) -> None:
        self._backbone = backbone
        self._scale = recipe.head_scale
        self.labels: list[str] = []
        self.encoder: Any = backbone.copy()
        self.head = nn.Linear(backbone.dim, 1, bias=False)
        # A linear map made without rows would warn that there is nothing to initialise.
        self.head.weight = nn.Parameter(torch.zeros(0, backbone.dim))
        if full:
            for name, parameter in self.encoder.named_parameters():
                # Means of tokens go past the pooler.
                parameter.requires_grad_("pooler" not in name)
        else:
            config = LoraConfig(
                r=recipe.rank, lora_alpha=recipe.alpha, target_modules=linear_names(self.encoder), lora_dropout=0.0
            )
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                inject_adapter_in_model(config, self.encoder)
        self.encoder.eval()

    def grow(self, labels: Iterable[str]) -> None:
        """Appends a row of zeros to the head for each label that it does not know."""
        fresh = [label for label in dict.fromkeys(labels) if label not in self.labels]
        if not fresh:
            return
        self.labels += fresh
        grown = nn.Linear(self._backbone.dim, len(self.labels), bias=False)
        with torch.no_grad():
            grown.weight.zero_()
            grown.weight[: len(self.labels) - len(fresh)] = self.head.weight
        self.head = grown

    def columns(self, labels: Sequence[str]) -> Tensor:
        """The head's row of each label."""
        column = {label: index for index, label in enumerate(self.labels)}
        return torch.tensor([column[label] for label in labels], dtype=torch.long)

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text."""
        return self._backbone.tokens(texts)

    def embed(self, tokens: Tokens) -> Tensor:
        """n × d embeddings of length 1."""
        return embed(self.encoder, self._backbone.batch(tokens))

    def logits(self, tokens: Tokens) -> Tensor:
        """n × C, float32 even under autocast: bf16 has too few digits for them."""
        embeddings = self.embed(tokens)
        with torch.autocast("cpu", enabled=False):
            result: Tensor = self.head(self._scale * embeddings)
        return result

    def maps(self) -> dict[str, nn.Module]:
        """The linear maps that are trained, by name, each called once in a forward pass."""
        found: dict[str, nn.Module] = {
            name: module
            for name, module in self.encoder.named_modules()
            if isinstance(module, nn.Linear) and module.weight.requires_grad
        }
        return {**found, "head": self.head}

    def parameters(self) -> list[nn.Parameter]:
        """Everything that is trained."""
        return [one for one in self.encoder.parameters() if one.requires_grad] + list(self.head.parameters())

    @torch.no_grad()
    def embeddings(self, texts: Sequence[str]) -> Float:
        """n × d, float32."""
        return self._in_batches(texts, self.embed, self._backbone.dim)

    @torch.no_grad()
    def answers(self, texts: Sequence[str]) -> Float:
        """n × C logits, float32."""
        return self._in_batches(texts, self.logits, len(self.labels))

    def probabilities(self, texts: Sequence[str]) -> Float:
        """n × C."""
        result: Float = torch.softmax(torch.from_numpy(self.answers(texts)), dim=1).numpy()
        return result

    def _in_batches(self, texts: Sequence[str], run: Callable[[Tokens], Tensor], width: int) -> Float:
        tokens = self.tokens(texts)
        result = np.zeros((len(texts), width), dtype=np.float32)
        for rows in by_length(tokens, EVALUATION_BATCH):
            result[rows] = run([tokens[row] for row in rows]).numpy()
        return result


def linear_names(model: nn.Module) -> list[str]:
    """Names of all linear maps that a mean of tokens goes through: not those of the pooler."""
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and "pooler" not in name]


@dataclass(frozen=True, slots=True)
class Step:
    """Row numbers of one training step."""

    new: tuple[int, ...]
    old: tuple[tuple[int, ...], ...] = ()
    """Rows of memory, once for each draw."""


def steps(new: Tokens, old: Tokens, *, batch: int, epochs: int, rng: np.random.Generator, draws: int = 1) -> list[Step]:
    """`epochs` passes over the new rows; where there are old ones, half of each batch is drawn from them.

    Rows of like length come together.

    Args:
        new: token sequences of the rows of a session.
        old: those of memory; drawn with replacement.
        batch: rows in a step, new and old together.
        epochs: passes over `new`.
        rng: where chance comes from.
        draws: independent draws from `old` in each step.
    """
    share = max(1, batch // 2) if len(old) else batch
    made: list[Step] = []
    for _ in range(epochs):
        order = rng.permutation(len(new))
        epoch: list[Step] = []
        for start in range(0, len(order), share * POOL):
            part = sorted((int(row) for row in order[start : start + share * POOL]), key=lambda row: len(new[row]))
            drawn = [
                sorted((int(row) for row in rng.integers(0, len(old), len(part))), key=lambda row: len(old[row]))
                for _ in range(draws if len(old) else 0)
            ]
            epoch += [
                Step(tuple(part[cut : cut + share]), tuple(tuple(one[cut : cut + share]) for one in drawn))
                for cut in range(0, len(part), share)
            ]
        made += [epoch[index] for index in rng.permutation(len(epoch))]
    return made


def train(
    parameters: Sequence[nn.Parameter],
    plan: Sequence[StepT],
    loss: Callable[[StepT], Tensor],
    *,
    learning_rate: float,
) -> None:
    """AdamW over the steps of `plan`: a warm-up over the first tenth, then cosine; gradients cut at length 1.

    Args:
        parameters: what is trained.
        plan: what `loss` is called with, in order.
        loss: a scalar; called under bf16 autocast.
        learning_rate: at its peak.
    """
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, warm_up_then_cosine(len(plan)))
    for step in plan:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16):
            value = loss(step)
        value.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()


def warm_up_then_cosine(count: int) -> Callable[[int], float]:
    """The factor of the peak learning rate at each of `count` steps."""
    warm = max(1, math.ceil(count / 10))

    def factor(step: int) -> float:
        if step < warm:
            return (step + 1) / warm
        return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, count - warm)))

    return factor
