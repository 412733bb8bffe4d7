"""A version in two feature spaces, and its graphs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from perdure.engine.exporter import Exporter
from perdure.model.adapter import Adapter
from perdure.model.classifier import AdaptedHead, AnalyticClassifier, shared_features
from perdure.model.encoder import Encoder

LABELS = ("card", "login", "parcel", "refund")
D = 64


@pytest.fixture(scope="session")
def classifier_of(encoder: Encoder, adapter: Adapter) -> Callable[..., AnalyticClassifier]:
    """Makes classifiers with random heads."""

    def make(*, adapted: bool = True, version: str = "v1", seed: int = 2) -> AnalyticClassifier:
        rng = np.random.default_rng(seed)
        second = None
        if adapted:
            weights = rng.normal(size=(3, encoder.dim)).astype(np.float32)
            second = AdaptedHead(
                adapter, ("refund", "gone", "card"), weights, temperature=4.0, share=0.3, sharpness=1.5
            )
        return AnalyticClassifier(
            version,
            encoder,
            shared_features(encoder.inputs, D, 0.4, 1),
            feature_seed=1,
            bandwidth=0.4,
            labels=LABELS,
            weights=rng.normal(size=(D, len(LABELS))).astype(np.float32),
            temperature=0.7,
            balance=rng.uniform(0.5, 2.0, len(LABELS)).astype(np.float32),
            adapted=second,
            batch=16,
        )

    return make


@pytest.fixture(scope="session")
def exporter() -> Exporter:
    """One for all tests: the encoder's graph takes seconds."""
    return Exporter()


@pytest.fixture(scope="session")
def written(
    classifier_of: Callable[..., AnalyticClassifier], exporter: Exporter, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """Exports a version into a folder, as a registry's cache would have it; the same one is exported once."""
    made: dict[tuple[bool, str], Path] = {}

    def write(*, adapted: bool = True, precision: str = "int8") -> Path:
        if (adapted, precision) not in made:
            folder = tmp_path_factory.mktemp("version")
            classifier = classifier_of(adapted=adapted)
            export = exporter.export(classifier, precision)
            for name, data in {**classifier.files(), **export.files, **export.shared}.items():
                (folder / name).write_bytes(data)
            made[adapted, precision] = folder
        return made[adapted, precision]

    return write
