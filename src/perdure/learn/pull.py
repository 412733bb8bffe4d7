"""The pull of the EWC penalty, in closed form.

With θ = s·BA and D = F∘(θ − θ*) the penalty is (λ/2)·Σ D∘(θ − θ*), its gradient λs·D·Aᵀ for B and λs·Bᵀ·D for A; for
the head, whose θ is its weight matrix, λ·D. Automatic differentiation would read every matrix several times more.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from perdure.learn.ewc import Anchor
from perdure.learn.lowrank import LowRankLinear


class Pull:
    """What draws the factors and the head towards an anchor.

    Args:
        anchor: θ* and F, by name of map; `head` has its name in `matrices`.
        maps: the maps with factors.
        matrices: the parameters that are their own θ; rows that they have beyond the anchor's are free.
        strength: λ.
    """

    def __init__(
        self, anchor: Anchor, maps: Mapping[str, LowRankLinear], matrices: Mapping[str, Tensor], strength: float
    ) -> None:
        self._strength = strength
        self._maps = [(one, *_on(anchor, name, one.A)) for name, one in maps.items() if name in anchor.fisher]
        self._matrices = [(one, *_on(anchor, name, one)) for name, one in matrices.items() if name in anchor.fisher]

    @torch.no_grad()
    def add_gradients(self) -> Tensor:
        """Adds its gradients to those that are there; the penalty, λ included, a scalar."""
        total = torch.zeros(())
        for one, anchored, fisher in self._maps:
            moved = torch.addmm(anchored, one.B, one.A, beta=-1.0, alpha=one.scale)
            weighted = fisher * moved
            total = total.to(moved.device) + torch.dot(weighted.view(-1), moved.view(-1))
            assert one.A.grad is not None
            assert one.B.grad is not None
            one.B.grad.addmm_(weighted, one.A.T, alpha=self._strength * one.scale)
            one.A.grad.addmm_(one.B.T, weighted, alpha=self._strength * one.scale)
        for matrix, anchored, fisher in self._matrices:
            rows = fisher.shape[0]
            moved = matrix[:rows] - anchored
            weighted = fisher * moved
            total = total.to(moved.device) + torch.dot(weighted.view(-1), moved.view(-1))
            assert matrix.grad is not None
            matrix.grad[:rows].add_(weighted, alpha=self._strength)
        return 0.5 * self._strength * total


def _on(anchor: Anchor, name: str, like: Tensor) -> tuple[Tensor, Tensor]:
    """θ* and F of `name` where `like` is, in its precision: stored ones may have less."""
    return anchor.theta[name].to(like).contiguous(), anchor.fisher[name].to(like).contiguous()
