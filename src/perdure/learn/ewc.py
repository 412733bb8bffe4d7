"""Elastic weight consolidation over what is trained.

Kirkpatrick et al., "Overcoming catastrophic forgetting in neural networks", PNAS 2017: a quadratic penalty
(λ/2)·Σ F·(θ − θ*)² around the anchor θ*, weighted by the diagonal of the Fisher information F. Online form of Schwarz
et al., "Progress & Compress", ICML 2018: F_t = γ·F_{t−1} + F_new.

For a map with a low-rank adapter θ is the product (α/r)·BA, not its factors: A and B alone are not identifiable, and at
B = 0 the Fisher information of A vanishes. For a head θ is its weight matrix.

The Fisher information is the true one: for every sample, gradients of log p(y|x) for labels y that the model itself
draws, squared before they are averaged. (Squaring the gradient of a batch mean gives something else, that depends on
the size of the batch.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

EXACT_CLASSES = 8
"""Up to so many classes the expectation over labels is an exact sum; with more, one label is drawn per sample."""


@dataclass(frozen=True, slots=True)
class Anchor:
    """What a promoted version must not move away from, and how much each of its parameters matters."""

    theta: Mapping[str, Tensor]
    fisher: Mapping[str, Tensor]
    samples: int
    """Rows that the Fisher information was last estimated from."""

    def penalty(self, theta: Mapping[str, Tensor]) -> Tensor:
        """½·Σ F·(θ − θ*)², a scalar. Rows that a head has gained since are free."""
        total = torch.zeros(())
        for name, fisher in self.fisher.items():
            now = theta[name][: fisher.shape[0]]
            total = total + 0.5 * (fisher * (now - self.theta[name]) ** 2).sum()
        return total

    def grown(self, name: str, order: Sequence[int], rows: int) -> Anchor:
        """This anchor with the rows of `name` moved to `order` in a matrix of `rows` rows; other rows are free."""
        moved = {}
        for kind, tensors in (("theta", self.theta), ("fisher", self.fisher)):
            tensor = torch.zeros(rows, *tensors[name].shape[1:])
            tensor[list(order)] = tensors[name].float()
            moved[kind] = {**tensors, name: tensor}
        return Anchor(moved["theta"], moved["fisher"], self.samples)


def decayed_sum(previous: Mapping[str, Tensor] | None, new: Mapping[str, Tensor], decay: float) -> dict[str, Tensor]:
    """F_t = γ·F_{t−1} + F_new; a matrix that only one of them has counts as 0 in the other."""
    total = {name: decay * value.float() for name, value in (previous or {}).items()}
    return total | {name: total[name] + value if name in total else value for name, value in new.items()}


class FisherRecorder:
    """Per-sample gradients of linear maps from one backward pass of a summed loss.

    For a map o = Wx the gradient of sample i's loss is Σ_t δ_it·x_itᵀ, with δ = ∂loss/∂o: inputs are kept on the way
    forward and δ is taken on the way back (as Opacus does it).
    """

    def __init__(self, maps: Mapping[str, nn.Module]) -> None:
        self._inputs: dict[str, Tensor] = {}
        self.squares: dict[str, Tensor] = {}
        self._handles = [handle for name, module in maps.items() for handle in self._hooks(name, module)]

    def _hooks(self, name: str, module: nn.Module) -> list[Any]:
        def forward(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            self._inputs[name] = inputs[0].detach()
            if output.requires_grad:
                output.register_hook(lambda delta: self._collect(name, delta))  # type: ignore[no-untyped-call]

        return [module.register_forward_hook(forward)]

    def _collect(self, name: str, delta: Tensor) -> None:
        inputs = self._inputs[name]
        if inputs.dim() == 2:
            inputs, delta = inputs.unsqueeze(1), delta.unsqueeze(1)
        if name not in self.squares:
            self.squares[name] = torch.zeros(delta.shape[-1], inputs.shape[-1])
        total = self.squares[name]
        for row in range(delta.shape[0]):
            gradient = delta[row].T @ inputs[row]
            total.addcmul_(gradient, gradient)

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()


def fisher_information(
    maps: Mapping[str, nn.Module],
    batches: Sequence[Any],
    forward: Callable[[Any], tuple[Tensor, Tensor]],
    *,
    generator: torch.Generator,
) -> tuple[dict[str, Tensor], int]:
    """Diagonal Fisher information of the weights of `maps`, averaged over samples.

    Args:
        maps: linear modules by name, called once in a forward pass; o = Wx with x of shape n × T × in or n × in.
        batches: what `forward` takes, one after the other.
        forward: gives the logits (n × C) and a mask (n) of rows that count, in eval mode and float32.
        generator: draws labels where there are more than `EXACT_CLASSES`.

    Returns:
        For each map a matrix like its weight, and the number of samples.
    """
    totals: dict[str, Tensor] = {}
    samples = 0
    for batch in batches:
        recorder = FisherRecorder(maps)
        try:
            logits, valid = forward(batch)
            logarithms = torch.log_softmax(logits.float(), dim=1)
            probabilities = logarithms.exp().detach()
            weights = valid.float()
            if logits.shape[1] <= EXACT_CLASSES:
                labels: list[tuple[Tensor, Tensor]] = [
                    (torch.full((len(logits),), label), probabilities[:, label].sqrt())
                    for label in range(logits.shape[1])
                ]
            else:
                drawn = torch.multinomial(probabilities, 1, generator=generator).squeeze(1)
                labels = [(drawn, torch.ones(len(logits)))]
            for index, (label, root) in enumerate(labels):
                # √p inside the loss becomes p once the gradient is squared.
                loss = (logarithms.gather(1, label.unsqueeze(1)).squeeze(1) * root * weights).sum()
                loss.backward(retain_graph=index + 1 < len(labels))  # type: ignore[no-untyped-call]
        finally:
            recorder.close()
        samples += int(valid.sum())
        for name, square in recorder.squares.items():
            totals[name] = totals.get(name, torch.zeros_like(square)) + square
    return {name: total / max(samples, 1) for name, total in totals.items()}, samples
