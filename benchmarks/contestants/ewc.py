"""Elastic weight consolidation.

Kirkpatrick et al., "Overcoming catastrophic forgetting in neural networks", PNAS 2017, in the online form of Schwarz et
al., "Progress & Compress", ICML 2018: (λ/2)·Σ F·(θ − θ*)² around the last session's weights, F = γ·F + F_new. The
Fisher information is the mean of squared per-sample gradients for labels that the model itself draws; squaring the
gradient of a batch's mean would depend on the size of the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

BatchT = TypeVar("BatchT")


class Consolidation:
    """The anchor θ* and the Fisher information F of the weights of linear maps.

    Args:
        strength: λ.
        decay: γ.
    """

    def __init__(self, strength: float, decay: float) -> None:
        self._strength = strength
        self._decay = decay
        self._anchor: dict[str, Tensor] = {}
        self._fisher: dict[str, Tensor] = {}

    def penalty(self, maps: Mapping[str, nn.Module]) -> Tensor:
        """The scalar to add to the loss. Rows that a map has gained since are free; 0 before the first anchor."""
        total = torch.zeros(())
        for name, fisher in self._fisher.items():
            moved = _weight(maps[name])[: len(fisher)].float() - self._anchor[name]
            total = total + (fisher * moved**2).sum()
        return 0.5 * self._strength * total

    def settle(self, maps: Mapping[str, nn.Module], fisher: Mapping[str, Tensor]) -> None:
        """Anchors the weights as they are now and adds this session's Fisher information."""
        for name, new in fisher.items():
            before = self._fisher.get(name)
            self._fisher[name] = new.clone()
            if before is not None:
                self._fisher[name][: len(before)] += self._decay * before
            self._anchor[name] = _weight(maps[name]).detach().clone()

    def bytes_kept(self) -> int:
        return sum(one.numel() * one.element_size() for one in (*self._anchor.values(), *self._fisher.values()))


def fisher_information(
    maps: Mapping[str, nn.Module],
    batches: Sequence[BatchT],
    logits: Callable[[BatchT], Tensor],
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """Diagonal Fisher information of the weights of `maps`: one label drawn for each sample.

    For o = Wx the gradient of one sample is Σ_t δ_t·x_tᵀ, where δ is the gradient at o: one backward pass of the summed
    loss gives it for all samples of a batch.

    Args:
        maps: linear modules called once in a forward pass, on n × T × in or n × in.
        batches: what `logits` takes.
        logits: n × C for a batch.
        generator: draws the labels.
    """
    totals = {name: torch.zeros_like(_weight(module)) for name, module in maps.items()}
    samples = 0
    for batch in batches:
        inputs: dict[str, Tensor] = {}
        handles = [module.register_forward_hook(_keeper(name, inputs, totals)) for name, module in maps.items()]
        try:
            logarithms = torch.log_softmax(logits(batch).float(), dim=1)
            drawn = torch.multinomial(logarithms.detach().exp(), 1, generator=generator)
            loss = -logarithms.gather(1, drawn).sum()
            loss.backward()  # type: ignore[no-untyped-call]
        finally:
            for handle in handles:
                handle.remove()
        samples += len(logarithms)
    for module in maps.values():
        module.zero_grad(set_to_none=True)
    return {name: total / max(samples, 1) for name, total in totals.items()}


def _keeper(name: str, inputs: dict[str, Tensor], totals: dict[str, Tensor]) -> Callable[..., None]:
    def squared(delta: Tensor) -> None:
        given = inputs.pop(name)
        if given.dim() == 2:
            given, delta = given.unsqueeze(1), delta.unsqueeze(1)
        gradients = torch.einsum("nto,nti->noi", delta.float(), given.float())
        totals[name] += (gradients**2).sum(0)

    def forward(_module: nn.Module, given: tuple[Any, ...], output: Tensor) -> None:
        inputs[name] = given[0].detach()
        output.register_hook(squared)  # type: ignore[no-untyped-call]

    return forward


def _weight(module: nn.Module) -> Tensor:
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight
