"""What drift is looked for in: one column of numbers or names for each property of traffic."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from perdure.records import Float

NEAREST_ROWS = 2000
"""Most reference rows among which nearest neighbours are looked for."""

_WORD = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class DriftInput:
    """n rows of traffic, as one version saw them.

    Raises:
        ValueError: the parts do not have n rows, or hold numbers that are not finite.
    """

    texts: tuple[str, ...]
    predicted: tuple[str, ...]
    """What that version answered."""
    confidence: tuple[float, ...]
    embeddings: Float | None
    """n × d, any length, in the feature space of one version for reference and current rows; None leaves them out."""

    def __post_init__(self) -> None:
        rows = len(self.texts)
        found = {"predicted": len(self.predicted), "confidence": len(self.confidence)}
        if self.embeddings is not None:
            found["embeddings"] = len(self.embeddings)
            if self.embeddings.ndim != 2 or not np.isfinite(self.embeddings).all():
                raise ValueError("embeddings must be a matrix of finite numbers, one row for each text")
        if not np.isfinite(self.confidence).all():
            raise ValueError("confidence must be finite numbers")
        for part, count in found.items():
            if count != rows:
                raise ValueError(f"drift is given {rows} texts but {count} rows of {part}: give one for each text")

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True, slots=True)
class Column:
    """One property of reference and current rows; numbers, or names."""

    name: str
    reference: NDArray[np.float64] | tuple[str, ...]
    current: NDArray[np.float64] | tuple[str, ...]


def columns(reference: DriftInput, current: DriftInput) -> tuple[Column, ...]:
    """The columns of both sides; those of embeddings only where both have them.

    What measures a current row against the reference (unseen words, distances) measures a reference row against all
    others of the reference. So rows of one distribution look alike on both sides.

    Raises:
        ValueError: the embeddings differ in length.
    """
    numbers = {
        "text length": _clipped(_lengths(reference.texts), _lengths(current.texts)),
        "word count": _clipped(_word_counts(reference.texts), _word_counts(current.texts)),
        "unseen words": _unseen(reference.texts, current.texts),
        "confidence": (_array(reference.confidence), _array(current.confidence)),
    }
    if reference.embeddings is not None and current.embeddings is not None:
        if reference.embeddings.shape[1] != current.embeddings.shape[1]:
            raise ValueError(
                f"reference embeddings have length {reference.embeddings.shape[1]}, current ones "
                f"{current.embeddings.shape[1]}: embed both with the same version"
            )
        ours, theirs = _unit(reference.embeddings), _unit(current.embeddings)
        numbers["distance to centre"] = _to_centre(ours, theirs)
        numbers["distance to nearest"] = _to_nearest(ours, theirs)
    return (
        *(Column(name, before, after) for name, (before, after) in numbers.items()),
        Column("predicted label", reference.predicted, current.predicted),
    )


def centre_distance(reference: DriftInput, current: DriftInput) -> float | None:
    """Cosine distance between the mean embeddings of both sides, from 0 to 2; None where a side has none."""
    if reference.embeddings is None or current.embeddings is None:
        return None
    ours = _unit(_unit(reference.embeddings).mean(axis=0, keepdims=True))
    theirs = _unit(_unit(current.embeddings).mean(axis=0, keepdims=True))
    return 1.0 - float(ours[0] @ theirs[0])


def _array(values: Sequence[float]) -> NDArray[np.float64]:
    return np.array(values, dtype=np.float64)


def _lengths(texts: Sequence[str]) -> NDArray[np.float64]:
    return _array([float(len(text)) for text in texts])


def _word_counts(texts: Sequence[str]) -> NDArray[np.float64]:
    return _array([float(len(text.split())) for text in texts])


def _clipped(
    reference: NDArray[np.float64], current: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Cut at what 1 % of all rows exceed: one text of a megabyte must not squeeze all others into one bin."""
    most = np.quantile(np.concatenate([reference, current]), 0.99, method="higher")
    return np.minimum(reference, most), np.minimum(current, most)


def _words(text: str) -> frozenset[str]:
    return frozenset(_WORD.findall(text.casefold()))


def _unseen(reference: Sequence[str], current: Sequence[str]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Share of a text's different words that stand in no (other) text of the reference; 0 for a text without words."""
    ours = [_words(text) for text in reference]
    seen = Counter(word for words in ours for word in words)
    return (
        _array([sum(seen[word] == 1 for word in words) / max(len(words), 1) for words in ours]),
        _array([sum(word not in seen for word in words) / max(len(words), 1) for words in map(_words, current)]),
    )


def _unit(vectors: Float) -> NDArray[np.float64]:
    wide = vectors.astype(np.float64)
    lengths = np.linalg.norm(wide, axis=1, keepdims=True)
    return np.asarray(np.divide(wide, lengths, out=np.zeros_like(wide), where=lengths > 0), dtype=np.float64)


def _to_centre(
    reference: NDArray[np.float64], current: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Cosine distance to the mean of the (other) reference rows."""
    total = reference.sum(axis=0)
    others = _unit((total - reference).astype(np.float32))
    centre = _unit(total[None].astype(np.float32))[0]
    return 1.0 - np.einsum("nd,nd->n", reference, others), 1.0 - current @ centre


def _to_nearest(
    reference: NDArray[np.float64], current: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Cosine distance to the most similar (other) reference row, among evenly spaced rows where there are many."""
    chosen = np.unique(np.linspace(0, len(reference) - 1, min(len(reference), NEAREST_ROWS)).round().astype(np.intp))
    some = reference[chosen]
    ours = reference @ some.T
    ours[chosen, np.arange(len(chosen))] = -1.0
    return 1.0 - ours.max(axis=1), 1.0 - (current @ some.T).max(axis=1)
