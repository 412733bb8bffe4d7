"""A version as it is served: exported graphs, and heads in NumPy."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from safetensors import SafetensorError, safe_open

from perdure.engine.onnx_encoder import OnnxEncoder
from perdure.errors import VersionDamaged
from perdure.model.base import Classifier, Scores
from perdure.model.features import KIND, RandomFeatures
from perdure.model.heads import blend
from perdure.model.layout import ADAPTER_FILE, ENGINE_FILE, HEAD_FILE, MODEL_FILE
from perdure.records import Float

FORMAT = 1
"""Of what `ENGINE_FILE` says."""

Precision = Literal["int8", "float32"]


@dataclass(frozen=True, slots=True)
class Engine:
    """What is in `ENGINE_FILE`: how a version was exported."""

    precision: Precision
    """Of the encoder's matrix products."""
    key: str
    """Names the frozen encoder's graph: two versions with one key have the same."""
    pad: int
    """Token id that fills shorter rows."""
    space: str
    """As `AnalyticClassifier.space`."""

    def encode(self) -> bytes:
        """As JSON."""
        fields = {"format": FORMAT, "precision": self.precision, "key": self.key, "pad": self.pad, "space": self.space}
        return json.dumps(fields, indent=1).encode()

    @classmethod
    def decode(cls, data: str) -> Engine:
        """What `encode` wrote.

        Raises:
            ValueError, KeyError, TypeError: it is something else.
        """
        fields = json.loads(data)
        if fields["format"] != FORMAT:
            raise ValueError(f"its format is {fields['format']}, this release reads {FORMAT}: upgrade Perdure")
        return cls(fields["precision"], str(fields["key"]), int(fields["pad"]), str(fields["space"]))


@dataclass(frozen=True, slots=True)
class _Head:
    """The adapted head."""

    labels: tuple[str, ...]
    weights: Float
    temperature: float
    share: float
    sharpness: float

    def logits(self, embeddings: Float) -> Float:
        result: Float = (embeddings @ self.weights.T) * np.float32(self.temperature)
        return result


class ServedClassifier(Classifier):
    """One immutable version, without torch. `load_served` makes it."""

    concurrent = True

    def __init__(
        self,
        version: str,
        encoder: OnnxEncoder,
        features: RandomFeatures,
        *,
        labels: Sequence[str],
        weights: Float,
        factors: Float,
        adapted: _Head | None,
        engine: Engine,
    ) -> None:
        self.version = version
        self.labels = tuple(labels)
        self.engine = engine
        self._encoder = encoder
        self._features = features
        # Row by row of labels: one text alone reads the weights in half the time.
        self._weights = np.ascontiguousarray(weights.T)
        self._factors = factors
        self._adapted = adapted

    def scores(self, texts: Sequence[str]) -> Scores:
        vectors = self._encoder(texts)
        scores = (self._weights @ self._features(vectors.features).T).T
        logits = None
        if self._adapted is not None and vectors.adapted is not None:
            logits = self._adapted.logits(vectors.adapted)
        return blend(self.labels, scores, self._factors, self._adapted, logits)

    @property
    def space(self) -> str:
        return self.engine.space

    def embeddings(self, texts: Sequence[str]) -> Float:
        vectors = self._encoder(texts)
        # The last of the frozen features are those of the last layer.
        last = vectors.features[:, -self._encoder.dim :] if vectors.adapted is None else vectors.adapted
        lengths = np.linalg.norm(last, axis=1, keepdims=True)
        units: Float = last / np.maximum(lengths, np.finfo(np.float32).tiny)
        return units

    def finite(self) -> bool:
        """Whether all weights of the heads are finite numbers."""
        heads = [self._weights, self._factors] + ([self._adapted.weights] if self._adapted else [])
        return all(bool(np.isfinite(head).all()) for head in heads)


def exported(folder: Path) -> bool:
    """Whether the version in `folder` can be served without torch."""
    return (folder / ENGINE_FILE).is_file()


def load_served(folder: Path, version: str, *, batch: int, threads: int = 0) -> ServedClassifier:
    """The version in `folder`.

    Args:
        folder: an exported version.
        version: its name.
        batch: texts in one pass of the encoder.
        threads: of one pass; 0 for as many as there are cores.

    Raises:
        VersionDamaged: a file is missing or cannot be read.
    """
    try:
        engine = Engine.decode((folder / ENGINE_FILE).read_text(encoding="utf-8"))
        description = json.loads((folder / MODEL_FILE).read_text(encoding="utf-8"))
        labels, factors, weights = _head(folder, description)
        features = _features(description, weights)
        adapted = _adapted(folder, description.get("adapted"))
        max_tokens = int(description["encoder"]["max_tokens"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise VersionDamaged(f"version {version} cannot be read from {folder}: {error!r}") from error
    return ServedClassifier(
        version,
        OnnxEncoder(
            folder,
            adapted=adapted is not None,
            max_tokens=max_tokens,
            pad=engine.pad,
            batch=batch,
            threads=threads,
        ),
        features,
        labels=labels,
        weights=weights,
        factors=factors,
        adapted=adapted,
        engine=engine,
    )


def _head(folder: Path, description: Mapping[str, Any]) -> tuple[tuple[str, ...], Float, Float]:
    labels, tensors = tuple(description["labels"]), _tensors(folder / HEAD_FILE, ("weights", "balance"))
    weights, balance = tensors["weights"], tensors["balance"]
    if weights.shape[1:] != (len(labels),) or balance.shape != (len(labels),):
        raise ValueError(f"its head is {weights.shape} with {balance.shape} factors for {len(labels)} labels")
    return labels, np.float32(description["temperature"]) * balance, weights


def _features(description: Mapping[str, Any], weights: Float) -> RandomFeatures:
    drawn = description["features"]
    if drawn.get("kind") != KIND:
        raise ValueError(f"its random features are of the kind {drawn.get('kind')!r}, this release draws {KIND!r}")
    if len(weights) != drawn["count"]:
        raise ValueError(f"its head is for {len(weights)} features, not for {drawn['count']}")
    inputs = int(description["encoder"]["inputs"])
    return _random_features(inputs, int(drawn["count"]), float(drawn["bandwidth"]), int(drawn["seed"]))


def _adapted(folder: Path, fields: Mapping[str, Any] | None) -> _Head | None:
    if fields is None:
        return None
    weights = _tensors(folder / ADAPTER_FILE, ("head",))["head"].astype(np.float32)
    return _Head(
        tuple(fields["labels"]),
        weights,
        float(fields["temperature"]),
        float(fields["share"]),
        float(fields["sharpness"]),
    )


def _tensors(file: Path, names: Sequence[str]) -> dict[str, Float]:
    with safe_open(file, framework="numpy") as opened:
        return {name: opened.get_tensor(name) for name in names}


@lru_cache(maxsize=2)
def _random_features(inputs: int, count: int, bandwidth: float, seed: int) -> RandomFeatures:
    return RandomFeatures(inputs, count, bandwidth, seed)
