"""What a contestant is, what it is given, and what a run of it leaves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from contestants.backbone import Backbone
from contestants.features import FrozenFeatures
from contestants.recipe import Recipe
from perdure.records import Float


@dataclass(frozen=True, slots=True)
class Rows:
    """n labelled texts."""

    texts: tuple[str, ...]
    labels: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True, slots=True)
class Session:
    """Rows that arrive together."""

    number: int
    rows: Rows


@dataclass(frozen=True, slots=True)
class Order:
    """A stream of sessions, and for each of them the rows that it is evaluated on."""

    name: str
    seed: int
    sessions: tuple[Session, ...]
    evaluation: tuple[Rows, ...]
    """One for each session, in the order of `sessions`."""

    @property
    def labels(self) -> tuple[str, ...]:
        """All labels, in the order in which they come."""
        return tuple(dict.fromkeys(label for session in self.sessions for label in session.rows.labels))


@dataclass(frozen=True, slots=True)
class Context:
    """What every contestant is given: the same weights, the same budget, the same recipe."""

    backbone: Backbone
    features: FrozenFeatures
    memory: int
    """Most samples kept of a class between two sessions."""
    seed: int
    recipe: Recipe


class Contestant(Protocol):
    """Learns session by session; between two sessions it has only what `bytes_kept` counts, and its weights."""

    @property
    def labels(self) -> tuple[str, ...]:
        """C labels seen so far, in the order of the columns of `probabilities`."""
        ...

    def learn(self, session: Session) -> None:
        """Learns from the rows of one session."""
        ...

    def probabilities(self, texts: Sequence[str]) -> Float:
        """n × C, rows sum to 1."""
        ...

    def kept(self) -> Mapping[str, int]:
        """Samples kept of each label, as text or as vector."""
        ...

    def bytes_kept(self) -> int:
        """All that is kept between sessions beside the weights that answer: samples, matrices, logits, anchors."""
        ...


def text_bytes(rows: Rows) -> int:
    """Bytes of texts and labels in UTF-8."""
    return sum(len(text.encode()) + len(label.encode()) for text, label in zip(rows.texts, rows.labels, strict=True))


def counts(labels: Sequence[str]) -> dict[str, int]:
    """How often each label occurs."""
    return {label: labels.count(label) for label in dict.fromkeys(labels)}


def joined(parts: Sequence[Rows]) -> Rows:
    """All rows, one part after the other."""
    return Rows(
        tuple(text for part in parts for text in part.texts), tuple(label for part in parts for label in part.labels)
    )
