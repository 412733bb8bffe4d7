"""The tiny encoder and an adapter of it, for tests of what is made of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from perdure.model.adapter import Adapter
    from perdure.model.encoder import Encoder


@pytest.fixture(scope="session")
def encoder(tiny_encoder: Path) -> Encoder:
    """The tiny encoder, cut below its last two layers."""
    # Imported here, as torch is below: most tests of the core do without both.
    from perdure.model.encoder import load_encoder

    return load_encoder(str(tiny_encoder), max_tokens=32, adapted_layers=2)


@pytest.fixture(scope="session")
def adapter(encoder: Encoder) -> Adapter:
    """One of rank 2 with random factors."""
    import torch

    from perdure.model.adapter import Adapter, AdapterShape, linear_names

    shape = AdapterShape(rank=2, alpha=6, layers=2, targets=linear_names(encoder.top))
    generator = torch.Generator().manual_seed(1)
    layers: dict[str, Any] = dict(encoder.top.named_modules())
    weights = {}
    for name in shape.targets:
        weights[f"{name}.A"] = 0.3 * torch.randn(2, layers[name].in_features, generator=generator)
        weights[f"{name}.B"] = 0.3 * torch.randn(layers[name].out_features, 2, generator=generator)
    return Adapter(encoder, shape, weights)
