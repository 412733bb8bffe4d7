"""The classifier that is served: an analytic head on frozen features, and beside it an adapted one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from perdure.errors import VersionDamaged
from perdure.model.adapter import Adapter, AdapterShape
from perdure.model.base import Classifier, Scores
from perdure.model.encoder import Encoder, load_encoder
from perdure.model.features import KIND, RandomFeatures
from perdure.model.heads import blend
from perdure.model.layout import ADAPTER_FILE as ADAPTER_FILE
from perdure.model.layout import HEAD_FILE, MODEL_FILE
from perdure.records import Float

UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError)
"""What reading a file of a version raises when it is missing, cut short, or not what was written."""


@dataclass(frozen=True, slots=True)
class AdaptedHead:
    """A linear head on the adapter's embeddings, blended into the frozen head."""

    adapter: Adapter
    labels: tuple[str, ...]
    weights: Float
    """C × d, for embeddings of length 1."""
    temperature: float
    """Logits are multiplied by this."""
    share: float
    """Its weight in the mean of logarithms; the frozen head has the rest."""
    sharpness: float = 1.0
    """The mean of logarithms is multiplied by this: two heads that agree are surer than each alone."""

    def logits(self, embeddings: Float) -> Float:
        """n × C of n adapted embeddings (n × d), times the temperature."""
        result: Float = (embeddings @ self.weights.T) * np.float32(self.temperature)
        return result


@dataclass(frozen=True, slots=True)
class Encoded:
    """What the encoder says of n texts."""

    features: Float
    """Frozen features, n × inputs."""
    adapted: Float | None
    """Adapted embeddings, n × d; None without an adapter."""
    last: Float = field(repr=False)
    """The embedding that memory's views go by: adapted where there is an adapter, else the frozen last layer; n × d."""

    def frozen(self) -> Encoded:
        """The same without the adapter's part."""
        return Encoded(self.features, None, self.last)


class AnalyticClassifier(Classifier):
    """One immutable version.

    The answer is the normalised geometric mean of two calibrated softmaxes, p ∝ (p_frozen^(1−β) · p_adapted^β)^s;
    without an adapter it is the first alone. A label that the adapted head does not know takes its logarithm from the
    first.

    Args:
        version: its name.
        encoder: the frozen encoder; with an adapter, the adapter's own, which may be cut elsewhere.
        features: the random features that the head was solved for.
        labels: C labels, sorted.
        weights: D × C.
        temperature: scores are multiplied by this before the softmax.
        balance: and by these, one for each label: ridge regression shrinks the scores of labels with few rows. By
            default 1.
        adapted: the second head, if any.
        batch: texts in one forward pass.
    """

    def __init__(
        self,
        version: str,
        encoder: Encoder,
        features: RandomFeatures,
        *,
        feature_seed: int,
        bandwidth: float,
        labels: Sequence[str],
        weights: Float,
        temperature: float,
        balance: Float | None = None,
        adapted: AdaptedHead | None,
        batch: int,
    ) -> None:
        self.version = version
        self.labels = tuple(labels)
        # An adapter only fits the encoder that was cut for it.
        self.encoder = adapted.adapter.encoder if adapted else encoder
        self.features = features
        self.weights = weights
        self.temperature = temperature
        self.balance = np.ones(len(self.labels), dtype=np.float32) if balance is None else balance
        self.adapted = adapted
        self._feature_seed = feature_seed
        self._bandwidth = bandwidth
        self._batch = batch

    def scores(self, texts: Sequence[str]) -> Scores:
        return self.answer(self.encode(texts, fixed_shapes=False))

    def embeddings(self, texts: Sequence[str]) -> Float:
        last = self.encode(texts, fixed_shapes=False).last
        lengths = np.linalg.norm(last, axis=1, keepdims=True)
        units: Float = last / np.maximum(lengths, np.finfo(np.float32).tiny)
        return units

    def answer(self, encoded: Encoded) -> Scores:
        """Probabilities for texts that were encoded already, in this version's space."""
        return self.combine(self.features(encoded.features) @ self.weights, encoded.adapted)

    def encode(self, texts: Sequence[str], *, fixed_shapes: bool = True) -> Encoded:
        """Runs the encoder once over n texts.

        Args:
            texts: n texts.
            fixed_shapes: pad batches to one shape, so that a text's features are the same to the last bit whatever
                stands beside it; without it small requests are faster.
        """
        return encode(self.encoder, self.adapted.adapter if self.adapted else None, texts, self._batch, fixed_shapes)

    def combine(self, scores: Float, adapted: Float | None) -> Scores:
        """Probabilities from the head's scores (n × C) and the adapted embeddings (n × d).

        Without adapted embeddings, or without an adapter, the head speaks alone.
        """
        return self.blend(scores, None if self.adapted is None or adapted is None else self.adapted.logits(adapted))

    def blend(self, scores: Float, logits: Float | None) -> Scores:
        """Probabilities from the head's scores (n × C) and the adapted head's logits over its own labels."""
        return blend(self.labels, scores, np.float32(self.temperature) * self.balance, self.adapted, logits)

    def with_adapted(self, version: str, adapted: AdaptedHead) -> AnalyticClassifier:
        """A version with the same frozen head and another adapted one."""
        return AnalyticClassifier(
            version,
            self.encoder,
            self.features,
            feature_seed=self._feature_seed,
            bandwidth=self._bandwidth,
            labels=self.labels,
            weights=self.weights,
            temperature=self.temperature,
            balance=self.balance,
            adapted=adapted,
            batch=self._batch,
        )

    @property
    def space(self) -> str:
        """Names the space of `Encoded.last`: versions that share it need not embed memory again."""
        digest = hashlib.sha256(self.encoder.fingerprint.encode())
        if self.adapted is not None:
            digest.update(json.dumps(self.adapted.adapter.shape.to_json()).encode())
            for name, value in sorted(self.adapted.adapter.weights.items()):
                digest.update(name.encode() + value.contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def finite(self) -> bool:
        """Whether all weights are finite numbers."""
        factors = self.adapted.adapter.weights.values() if self.adapted else ()
        heads = [self.weights, self.balance] + ([self.adapted.weights] if self.adapted else [])
        return all(bool(torch.isfinite(value).all()) for value in factors) and all(
            bool(np.isfinite(head).all()) for head in heads
        )

    def files(self) -> dict[str, bytes]:
        """The files that `load_classifier` needs."""
        description: dict[str, Any] = {
            "encoder": {
                "name": self.encoder.name,
                "fingerprint": self.encoder.fingerprint,
                "max_tokens": self.encoder.max_tokens,
                "adapted_layers": self.encoder.adapted_layers,
                "inputs": self.encoder.inputs,
            },
            "features": {
                "kind": KIND,
                "count": self.features.features,
                "bandwidth": self._bandwidth,
                "seed": self._feature_seed,
            },
            "labels": list(self.labels),
            "temperature": self.temperature,
        }
        head = {"weights": self.weights, "balance": self.balance}
        files = {HEAD_FILE: save({name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in head.items()})}
        if self.adapted is not None:
            second = self.adapted
            description["adapted"] = {
                "shape": second.adapter.shape.to_json(),
                "labels": list(second.labels),
                "temperature": second.temperature,
                "share": second.share,
                "sharpness": second.sharpness,
            }
            factors = {name: value.contiguous() for name, value in second.adapter.weights.items()}
            files[ADAPTER_FILE] = save({**factors, "head": torch.from_numpy(np.ascontiguousarray(second.weights))})
        files[MODEL_FILE] = json.dumps(description, indent=1, ensure_ascii=False).encode()
        return files


def encode(
    encoder: Encoder, adapter: Adapter | None, texts: Sequence[str], batch: int, fixed_shapes: bool = True
) -> Encoded:
    """Frozen features and, with an adapter, adapted embeddings of n texts, the shared layers run once.

    An adapter of an encoder that was cut elsewhere brings that one along: the frozen features are the same.
    """
    encoder = adapter.encoder if adapter else encoder
    features = np.zeros((len(texts), encoder.inputs), dtype=np.float32)
    adapted = np.zeros((len(texts), encoder.dim), dtype=np.float32) if adapter else None
    tokens = encoder.tokens(texts)
    batches = encoder.batches(tokens, batch) if fixed_shapes else encoder.tight_batches(tokens, batch)
    for rows, trunk in batches:
        features[rows] = encoder.frozen(trunk)[: len(rows)].cpu().numpy()
        if adapter is not None and adapted is not None:
            adapted[rows] = adapter.embed(trunk)[: len(rows)].cpu().numpy()
    last = adapted if adapted is not None else features[:, -encoder.dim :] * np.float32(np.sqrt(encoder.depth + 1))
    return Encoded(features, adapted, last)


@lru_cache(maxsize=2)
def shared_encoder(name: str, max_tokens: int, adapted_layers: int) -> Encoder:
    """The encoder of that name, loaded once in a process: versions differ in their heads, not in it."""
    return load_encoder(name, max_tokens=max_tokens, adapted_layers=adapted_layers)


@lru_cache(maxsize=2)
def shared_features(inputs: int, count: int, bandwidth: float, seed: int) -> RandomFeatures:
    """The random features of that description, drawn once in a process."""
    return RandomFeatures(inputs, count, bandwidth, seed)


def load_classifier(folder: Path, version: str, *, batch: int, encoder: str | None = None) -> AnalyticClassifier:
    """The version in `folder`.

    Args:
        folder: where `AnalyticClassifier.files` were written.
        version: its name.
        batch: texts in one forward pass.
        encoder: where the encoder is found on this machine; by default under the name it had when it was trained.

    Raises:
        VersionDamaged: a file is missing, cannot be read, or was made with another encoder.
        ModelNotFound: the encoder is not here.
    """
    try:
        description = json.loads((folder / MODEL_FILE).read_text(encoding="utf-8"))
        head = load_file(folder / HEAD_FILE)
        weights = head["weights"].numpy()
        # Versions that were made before labels were balanced have no such factors.
        balance = head["balance"].numpy() if "balance" in head else np.ones(weights.shape[1], dtype=np.float32)
        wanted, drawn = description["encoder"], description["features"]
        name, fingerprint = str(wanted["name"]), str(wanted["fingerprint"])
        max_tokens, adapted_layers = int(wanted["max_tokens"]), int(wanted["adapted_layers"])
        kind = drawn.get("kind")
        count, bandwidth, seed = int(drawn["count"]), float(drawn["bandwidth"]), int(drawn["seed"])
        labels = tuple(description["labels"])
        temperature = float(description["temperature"])
        second: Mapping[str, Any] | None = description.get("adapted")
        tensors = load_file(folder / ADAPTER_FILE) if second else {}
    except UNREADABLE as error:
        raise VersionDamaged(f"version {version} cannot be read from {folder}: {error!r}") from error
    base = shared_encoder(encoder or name, max_tokens, adapted_layers)
    if base.fingerprint != fingerprint:
        raise VersionDamaged(
            f"version {version} was made with encoder {name!r} {fingerprint[:12]}, but the one "
            f"found here is {base.fingerprint[:12]}: install the same weights, or fit a first version anew"
        )
    if kind != KIND:
        raise VersionDamaged(
            f"version {version} was made with random features of the kind {kind!r}, but this release draws {KIND!r}: "
            "set registry.url to a new place and fit a first version"
        )
    features = shared_features(base.inputs, count, bandwidth, seed)
    if weights.shape != (features.features, len(labels)) or balance.shape != (len(labels),):
        raise VersionDamaged(
            f"version {version}: head is {weights.shape} with {balance.shape} factors, "
            f"not {(features.features, len(labels))}"
        )
    return AnalyticClassifier(
        version,
        base,
        features,
        feature_seed=seed,
        bandwidth=bandwidth,
        labels=labels,
        weights=weights,
        temperature=temperature,
        balance=balance,
        adapted=_adapted_head(base, second, tensors, version) if second else None,
        batch=batch,
    )


def _adapted_head(
    encoder: Encoder, fields: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], version: str
) -> AdaptedHead:
    try:
        shape = AdapterShape.from_json(fields["shape"])
        labels = tuple(fields["labels"])
        weights = tensors["head"].float().numpy()
        temperature, share = float(fields["temperature"]), float(fields["share"])
        sharpness = float(fields["sharpness"])
    except UNREADABLE as error:
        raise VersionDamaged(f"the adapted head of version {version} cannot be read: {error!r}") from error
    if weights.shape != (len(labels), encoder.dim):
        raise VersionDamaged(
            f"version {version}: the adapted head is {weights.shape}, not {(len(labels), encoder.dim)}"
        )
    return AdaptedHead(Adapter(encoder, shape, tensors), labels, weights, temperature, share, sharpness)
