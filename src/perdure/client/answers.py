"""What the API answers, as values. Fields that this version does not know are left out."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from perdure.records import Float


@dataclass(frozen=True, slots=True)
class Ranked:
    """One of the most probable labels."""

    label: str
    confidence: float


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A remembered sample near a text."""

    text: str
    label: str
    similarity: float
    """Cosine similarity, at most 1."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """One prediction."""

    id: str
    """What feedback names."""
    label: str
    confidence: float
    """From 0 to 1."""
    version: str
    """The version that computed it."""
    recorded: bool
    """True when it would survive a crash of the API; false when it waits, was dropped, or recording is off."""
    top: tuple[Ranked, ...] = ()
    """The most probable labels, best first; empty when not asked for."""
    abstained: bool | None = None
    """True where the version is too unsure to be relied on; `label` is its best guess all the same. None when not asked
    for, or where the version has no threshold."""
    neighbours: tuple[Neighbour, ...] | None = None
    """The nearest remembered samples, nearest first; None when not asked for."""


@dataclass(frozen=True, slots=True)
class Predictions:
    """Predictions by one version, in the order of the texts."""

    predictions: tuple[Prediction, ...]
    version: str


@dataclass(frozen=True, slots=True, eq=False)
class Embeddings:
    """Where texts lie."""

    version: str
    """The version that says so."""
    space: str
    """Vectors of the same space can be compared, whichever version they are of."""
    vectors: Float
    """n × d, each row of length 1, in the order of the texts: the product of two is their cosine similarity."""


@dataclass(frozen=True, slots=True)
class EncodedEmbeddings:
    """The same as it travels: each row of float32, little-endian, as base64."""

    version: str
    space: str
    dimensions: int
    embeddings: tuple[str, ...]

    def decoded(self, texts: int) -> Embeddings:
        """The embeddings of so many texts.

        Raises:
            ValueError: they are not of so many, or not of so many dimensions.
        """
        rows = [base64.b64decode(row, validate=True) for row in self.embeddings]
        if len(rows) != texts or any(len(row) != 4 * self.dimensions for row in rows):
            raise ValueError(f"{len(rows)} embeddings for {texts} texts, or not all of {self.dimensions} dimensions")
        vectors = np.frombuffer(b"".join(rows), dtype="<f4").astype(np.float32).reshape(texts, self.dimensions)
        return Embeddings(self.version, self.space, vectors)


@dataclass(frozen=True, slots=True)
class Receipt:
    """Whether labels would survive a crash of the API; if not, say them again: that is safe."""

    recorded: bool


@dataclass(frozen=True, slots=True)
class Promotion:
    """One entry of the promotion log."""

    number: int
    version: str
    kind: str
    """`promote` or `rollback`."""
    at: float
    """Seconds since the epoch."""
    by: str
    reason: str


@dataclass(frozen=True, slots=True)
class Promoted:
    """A promotion that was written."""

    promotion: Promotion
    serving: str | None
    """The version that answers at this moment; the promoted one follows as soon as it is loaded."""


@dataclass(frozen=True, slots=True)
class Serving:
    """What answers now."""

    version: str
    promotion: int
    since: float
    """Seconds since the epoch."""
    labels: int


@dataclass(frozen=True, slots=True)
class Version:
    """A version's card in short."""

    name: str
    parent: str | None = None
    kind: str | None = None
    created: float | None = None
    """Seconds since the epoch."""
    labels: int | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    verdict: str | None = None
    """The judge's verdict in one sentence."""
    problem: str | None = None
    """Why the card cannot be read."""


@dataclass(frozen=True, slots=True)
class Versions:
    """What should be served, what is, and what could be."""

    champion: Promotion | None
    serving: Serving | None
    problem: str | None
    """Why what is served is not the champion."""
    promotions: tuple[Promotion, ...]
    """Newest last."""
    versions: tuple[Version, ...]


@dataclass(frozen=True, slots=True)
class Erasure:
    """What forgetting a subject reaches, and when."""

    subject: str
    removed: int
    """Stream entries that the answered request removed; one that was repeated finds only what the first left."""
    message: str


@dataclass(frozen=True, slots=True)
class Readiness:
    """Whether a request would be answered; `reason` says why not."""

    ready: bool
    reason: str
