from __future__ import annotations

from pathlib import Path

import pytest

from perdure.model.encoder import Encoder, load_encoder


@pytest.fixture(scope="session")
def encoder(tiny_encoder: Path) -> Encoder:
    """The tiny encoder, cut below its last two layers."""
    return load_encoder(str(tiny_encoder), max_tokens=32, adapted_layers=2)
