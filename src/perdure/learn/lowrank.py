"""Linear maps with a low-rank part that is trained.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022: y = Wx + b + (α/r)·BAx. As one step of
automatic differentiation it is one large product and a few thin ones each way: W gets no gradient, and none flows to an
input that needs none.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class LowRankLinear(nn.Module):
    """y = Wx + b + s·BAx, for x of shape … × in.

    Products are computed in the precision of W, which is frozen; x, y and the factors keep theirs. With W in bfloat16
    attention and whatever else stands between the maps stays float32, where PyTorch's kernels for the CPU are faster.

    Args:
        frozen: W (out × in) and b.
        A: r × in, trained.
        B: out × r, trained.
        scale: s = α/r.
    """

    def __init__(self, frozen: nn.Linear, A: nn.Parameter, B: nn.Parameter, scale: float) -> None:
        super().__init__()
        self.weight, self.bias = frozen.weight.requires_grad_(False), frozen.bias
        if self.bias is not None:
            self.bias.requires_grad_(False)
        self.A, self.B = A, B
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = _LowRankMap.apply(x, self.weight, self.bias, self.A, self.B, self.scale)
        return result

    def product(self) -> Tensor:
        """s·BA, out × in."""
        return self.scale * (self.B @ self.A)


class _LowRankMap(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, A: Tensor, B: Tensor, scale: float) -> Tensor:
        flat = x.reshape(-1, x.shape[-1]).to(weight.dtype)
        down, up = A.to(weight.dtype), (scale * B).to(weight.dtype)
        inner = flat @ down.T
        out = nn.functional.linear(flat, weight, bias).addmm_(inner, up.T)
        ctx.save_for_backward(flat, weight, down, up, inner)
        ctx.scale, ctx.factors = scale, A.dtype
        return out.to(x.dtype).view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *deltas: Tensor) -> tuple[Tensor | None, ...]:
        flat, weight, down, up, inner = ctx.saved_tensors
        (given,) = deltas
        delta = given.reshape(-1, weight.shape[0]).to(weight.dtype)
        through = delta @ up
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = (delta @ weight).addmm_(through, down).to(given.dtype).view(*given.shape[:-1], -1)
        grad_A = (through.T @ flat).to(ctx.factors)
        grad_B = ctx.scale * (inner.T @ delta).T.to(ctx.factors)
        return grad_x, None, None, grad_A, grad_B, None


def with_factors(
    layers: nn.ModuleList, targets: Sequence[str], rank: int, scale: float
) -> tuple[nn.ModuleList, dict[str, LowRankLinear]]:
    """`layers` with a low-rank part in each of `targets`, changed in place, and those maps by name.

    A starts uniform as in the paper's code, B at 0: at first nothing changes.
    """
    maps: dict[str, LowRankLinear] = {}
    for name in targets:
        frozen = layers.get_submodule(name)
        assert isinstance(frozen, nn.Linear)
        # Drawn on the processor, so that a seed gives the same start on any device.
        A = torch.empty(rank, frozen.in_features)
        nn.init.kaiming_uniform_(A, a=math.sqrt(5))
        B = torch.zeros(frozen.out_features, rank)
        device = frozen.weight.device
        maps[name] = LowRankLinear(frozen, nn.Parameter(A.to(device)), nn.Parameter(B.to(device)), scale)
        layers.set_submodule(name, maps[name])
    return layers, maps


def in_precision(layers: nn.ModuleList, maps: Mapping[str, LowRankLinear], dtype: torch.dtype) -> nn.ModuleList:
    """`layers` with the products of `maps` computed in `dtype`: all else is the very same, factors included."""
    shared = [*layers.parameters(), *layers.buffers()]
    copied = copy.deepcopy(layers, {id(one): one for one in shared})
    for name in maps:
        one = copied.get_submodule(name)
        assert isinstance(one, LowRankLinear)
        one.weight = nn.Parameter(one.weight.to(dtype), requires_grad=False)
        if one.bias is not None:
            one.bias = nn.Parameter(one.bias.to(dtype), requires_grad=False)
    return copied
