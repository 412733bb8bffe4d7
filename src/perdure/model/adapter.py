"""A low-rank adapter of the encoder's top layers, and the feature space it opens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from perdure.errors import VersionDamaged
from perdure.model.encoder import Cut, Encoder
from perdure.records import Float


@dataclass(frozen=True, slots=True)
class AdapterShape:
    """What must agree before weights, anchors or Fisher information of one adapter fit another."""

    rank: int
    alpha: int
    layers: int
    targets: tuple[str, ...]

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    def factors(self) -> tuple[str, ...]:
        """Names of all factors: `TARGET.A` and `TARGET.B` for each target."""
        return tuple(f"{target}.{factor}" for target in self.targets for factor in "AB")

    def changes_from(self, other: AdapterShape) -> str:
        """What is different from `other`, in words; empty where nothing is."""
        said = [
            f"{name} was {before} and is {now}"
            for name, before, now in (
                ("rank", other.rank, self.rank),
                ("alpha", other.alpha, self.alpha),
                ("layers", other.layers, self.layers),
            )
            if before != now
        ]
        # Other layers have other maps; that need not be said twice.
        if self.targets != other.targets and self.layers == other.layers:
            gone, come = set(other.targets) - set(self.targets), set(self.targets) - set(other.targets)
            named = ", ".join(sorted(gone | come)[:3])
            said.append(
                f"targets lost {len(gone)} maps and gained {len(come)} ({named}{' …' if len(gone | come) > 3 else ''})"
            )
        return "; ".join(said)

    def to_json(self) -> dict[str, Any]:
        return {"rank": self.rank, "alpha": self.alpha, "layers": self.layers, "targets": list(self.targets)}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> AdapterShape:
        return cls(
            rank=int(fields["rank"]),
            alpha=int(fields["alpha"]),
            layers=int(fields["layers"]),
            targets=tuple(fields["targets"]),
        )


def linear_names(top: nn.ModuleList) -> tuple[str, ...]:
    """Names of all linear maps above the cut, in order."""
    return tuple(name for name, module in top.named_modules() if isinstance(module, nn.Linear))


class Adapter:
    """The encoder's top layers with an adapter's weights merged in: W + (α/r)·BA.

    Args:
        encoder: the frozen encoder; its layers below the cut are shared.
        shape: rank, scale and targets.
        weights: `NAME.A` (r × in) and `NAME.B` (out × r) for every target; others are left out.

    Raises:
        VersionDamaged: weights are missing or do not fit this encoder.
    """

    def __init__(self, encoder: Encoder, shape: AdapterShape, weights: Mapping[str, Tensor]) -> None:
        if shape.layers != encoder.adapted_layers:
            raise VersionDamaged(
                f"the adapter covers {shape.layers} layers but this encoder is cut for {encoder.adapted_layers}: "
                "set lora.layers to what the version was trained with"
            )
        self.shape = shape
        self.encoder = encoder
        self.weights = {name: weights[name] for name in shape.factors() if name in weights}
        self._top = encoder.copy_top()
        modules = dict(self._top.named_modules())
        with torch.no_grad():
            for name in shape.targets:
                layer, down, up = modules.get(name), weights.get(f"{name}.A"), weights.get(f"{name}.B")
                if not isinstance(layer, nn.Linear) or down is None or up is None:
                    raise VersionDamaged(f"the adapter has no factors for {name!r}, or this encoder has no such map")
                wanted = (shape.rank, layer.in_features), (layer.out_features, shape.rank)
                found = tuple(down.shape), tuple(up.shape)
                if found != wanted:
                    raise VersionDamaged(f"the adapter's factors for {name!r} are {found}, not {wanted}")
                layer.weight += (shape.scale * (up @ down)).to(layer.weight.device)

    def layers(self) -> nn.ModuleList:
        """The layers above the cut with the adapter merged in."""
        return self._top

    @torch.no_grad()
    def embed(self, cut: Cut) -> Tensor:
        """Adapted embeddings of n texts: n × d, each of length 1."""
        return cut.embed(self._top)

    def embeddings(self, texts: Sequence[str], batch: int) -> Float:
        """Adapted embeddings of n texts, n × d, without the frozen layers' part; in batches of a fixed shape."""
        result = np.zeros((len(texts), self.encoder.dim), dtype=np.float32)
        for rows, trunk in self.encoder.batches(self.encoder.tokens(texts), batch):
            result[rows] = self.embed(trunk)[: len(rows)].cpu().numpy()
        return result
