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

GRADIENT_BYTES = 1 << 20
"""Most bytes of per-sample gradients of one map that are held at once, but at least one sample's: what a core's cache
holds. More at once was slower on a CPU, as gradients then go through main memory before they are squared."""


@dataclass(frozen=True, slots=True)
class Anchor:
    """What an update that goes on from a version is held to, and how much each of its parameters matters."""

    theta: Mapping[str, Tensor]
    fisher: Mapping[str, Tensor]
    samples: int
    """Rows that the Fisher information was last estimated from."""

    def penalty(self, theta: Mapping[str, Tensor]) -> Tensor:
        """½·Σ F·(θ − θ*)², a scalar. Rows that a head has gained since are free."""
        parts = [
            0.5 * (fisher * (theta[name][: fisher.shape[0]] - self.theta[name]) ** 2).sum()
            for name, fisher in self.fisher.items()
        ]
        return torch.stack(parts).sum() if parts else torch.zeros(())

    def to(self, device: torch.device | str) -> Anchor:
        """This anchor on another device."""
        return Anchor(
            {name: value.to(device) for name, value in self.theta.items()},
            {name: value.to(device) for name, value in self.fisher.items()},
            self.samples,
        )

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

    Attributes:
        squares: for each map the sum over samples of squared gradients, shaped like its weight; float32, on its device.
        outputs: what the maps gave last that a gradient can flow to.
    """

    def __init__(self, maps: Mapping[str, nn.Module]) -> None:
        self._inputs: dict[str, Tensor] = {}
        self.outputs: dict[str, Tensor] = {}
        self.squares: dict[str, Tensor] = {}
        self._handles = [module.register_forward_hook(self._keeper(name)) for name, module in maps.items()]

    def _keeper(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def forward(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            self._inputs[name] = inputs[0].detach()
            if output.requires_grad:
                self.outputs[name] = output
                output.register_hook(lambda delta: self._collect(name, delta))  # type: ignore[no-untyped-call]

        return forward

    def _collect(self, name: str, delta: Tensor) -> None:
        inputs, delta = self._inputs[name].float(), delta.float()
        if name not in self.squares:
            self.squares[name] = delta.new_zeros(delta.shape[-1], inputs.shape[-1])
        total = self.squares[name]
        if inputs.dim() == 2:
            # The square of an outer product is the outer product of the squares.
            total.addmm_((delta**2).T, inputs**2)
            return
        rows = max(1, GRADIENT_BYTES // (total.element_size() * total.numel()))
        buffer = total.new_empty(min(rows, len(delta)), *total.shape)
        for start in range(0, len(delta), rows):
            gradients = buffer[: len(delta[start : start + rows])]
            torch.bmm(delta[start : start + rows].transpose(1, 2), inputs[start : start + rows], out=gradients)
            for gradient in gradients:
                total.addcmul_(gradient, gradient)

    def close(self) -> None:
        """Takes the hooks off the maps, and lets go of what they kept."""
        for handle in self._handles:
            handle.remove()
        # The graph behind an output holds its hook, which holds this: nobody collects a ring that goes through torch.
        self.outputs.clear()
        self._inputs.clear()


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
        generator: draws labels where there are more than `EXACT_CLASSES`; a CPU's, so that labels are the same on
            every device.

    Returns:
        For each map a matrix like its weight, on its device, and the number of samples. No parameter's `grad` is
        touched.
    """
    totals: dict[str, Tensor] = {}
    samples = 0
    for batch in batches:
        recorder = FisherRecorder(maps)
        try:
            logits, valid = forward(batch)
            logarithms = torch.log_softmax(logits.float(), dim=1)
            probabilities = logarithms.exp().detach()
            weights = valid.to(logits.device, torch.float32)
            if logits.shape[1] <= EXACT_CLASSES:
                labels: list[tuple[Tensor, Tensor]] = [
                    (torch.full_like(logits[:, 0], label, dtype=torch.long), probabilities[:, label].sqrt())
                    for label in range(logits.shape[1])
                ]
            else:
                drawn = torch.multinomial(probabilities.cpu(), 1, generator=generator).squeeze(1)
                labels = [(drawn.to(logits.device), torch.ones_like(weights))]
            for index, (label, root) in enumerate(labels):
                # √p inside the loss becomes p once the gradient is squared.
                loss = (logarithms.gather(1, label.unsqueeze(1)).squeeze(1) * root * weights).sum()
                torch.autograd.grad(loss, tuple(recorder.outputs.values()), retain_graph=index + 1 < len(labels))
        finally:
            recorder.close()
        samples += int(valid.sum())
        for name, square in recorder.squares.items():
            totals[name] = totals.get(name, torch.zeros_like(square)) + square
    return {name: total / max(samples, 1) for name, total in totals.items()}, samples
