"""What is offered to every memory: texts, labels that are not balanced, and vectors among which some nearly repeat."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]

LABELS = 150
DIMENSIONS = 384
CLUSTERS = 12
"""Centres of one label's vectors."""
SPREAD = 0.7
"""Length of the noise around a centre of length 1; two of one centre have a cosine of about 0.67."""
REPEATED = 0.10
"""Share that says what was said before, in other capitals: the same text and vector."""
NEARLY = 0.05
"""Share that says nearly what was said before: another text, and a vector with a cosine of about 0.995."""
NEAR_NOISE = 0.1
STEP = 10_000
ASKED = 100
"""Queries looked up at once."""
WORDS = (
    "account",
    "address",
    "amount",
    "answer",
    "balance",
    "because",
    "before",
    "billing",
    "cancel",
    "change",
    "charge",
    "customer",
    "delivery",
    "different",
    "enough",
    "every",
    "explain",
    "figure",
    "forward",
    "happen",
    "invoice",
    "language",
    "letter",
    "message",
    "minute",
    "missing",
    "number",
    "office",
    "order",
    "package",
    "password",
    "payment",
    "people",
    "picture",
    "please",
    "policy",
    "problem",
    "question",
    "quickly",
    "receive",
    "refund",
    "remember",
    "replace",
    "request",
    "return",
    "schedule",
    "second",
    "security",
    "service",
    "several",
    "should",
    "someone",
    "status",
    "strange",
    "support",
    "telephone",
    "thousand",
    "together",
    "transfer",
    "usually",
    "version",
    "weather",
    "without",
)
SPOKEN = 8
"""Words of a text."""


@dataclass(frozen=True, slots=True)
class Size:
    """How much is offered, and how much may be kept."""

    offered: int
    per_label: int
    """Bound on one label; the bound in all is `LABELS` times that."""
    queries: int
    seed: int = 0

    @property
    def kept(self) -> int:
        return LABELS * self.per_label


@dataclass(frozen=True, slots=True)
class Page:
    """Some samples in the order in which they are offered."""

    first: int
    """Number of the first one."""
    texts: tuple[str, ...]
    labels: NDArray[np.int64]
    vectors: Vectors
    """n × 384, of length 1."""


class Workload:
    """The samples in `folder`, made there where there are none; vectors are read from disk and not kept in memory.

    Args:
        folder: of these samples alone.
        size: the same size gives the same samples.
    """

    def __init__(self, folder: Path, size: Size) -> None:
        self.folder = folder
        self.size = size
        mark = folder / "size.json"
        if not mark.is_file() or json.loads(mark.read_text(encoding="utf-8")) != asdict(size):
            _make(folder, size)
            mark.write_text(json.dumps(asdict(size)), encoding="utf-8")
        self.labels: NDArray[np.int64] = np.load(folder / "labels.npy")
        self._origins: NDArray[np.int64] = np.load(folder / "origins.npy")
        """For each sample, the number of the one whose text it repeats, or its own."""
        self.vectors: Vectors = np.load(folder / "vectors.npy", mmap_mode="r")
        self.queries: Vectors = np.load(folder / "queries.npy")

    def text(self, number: int) -> str:
        """About 60 characters; a sample that repeats another one says it in capitals."""
        origin = int(self._origins[number])
        text = spoken(origin)
        return text if origin == number else text.upper()

    def pages(self, rows: int) -> Iterator[Page]:
        """All samples, `rows` at a time."""
        for first in range(0, self.size.offered, rows):
            last = min(first + rows, self.size.offered)
            yield Page(
                first,
                tuple(self.text(number) for number in range(first, last)),
                self.labels[first:last],
                np.array(self.vectors[first:last]),
            )

    def chosen(self, numbers: NDArray[np.int64], rows: int) -> Iterator[Page]:
        """The samples of these numbers, `rows` at a time."""
        for first in range(0, len(numbers), rows):
            some = numbers[first : first + rows]
            texts = tuple(self.text(int(number)) for number in some)
            yield Page(first, texts, self.labels[some], np.array(self.vectors[some]))


def spoken(number: int) -> str:
    """The text of that number; texts of different numbers differ."""
    state, said = number * 0x9E3779B97F4A7C15 + 1, []
    for _ in range(SPOKEN):
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        said.append(WORDS[(state >> 40) % len(WORDS)])
    return f"{' '.join(said)} {number}"


def number_of(text: str) -> int:
    """The number in a text of `spoken`, in capitals or not."""
    return int(text.rpartition(" ")[2])


def shares(labels: int = LABELS) -> NDArray[np.float64]:
    """Shares of labels by a power law: the n-th has a share proportional to 1/n."""
    weights = 1.0 / np.arange(1, labels + 1)
    found: NDArray[np.float64] = weights / weights.sum()
    return found


def exact(vectors: Vectors, queries: Vectors, k: int) -> list[set[int]]:
    """Rows of the k greatest cosines to each query, by looking at all of them."""
    right: list[set[int]] = []
    for first in range(0, len(queries), ASKED):
        best = np.argpartition(-(queries[first : first + ASKED] @ vectors.T), k - 1, axis=1)[:, :k]
        right += [set(row.tolist()) for row in best]
    return right


def recall(found: Sequence[set[int]], right: Sequence[set[int]]) -> float:
    """Mean share of the right ones that were found."""
    return float(np.mean([len(one & other) / len(other) for one, other in zip(found, right, strict=True)]))


def _make(folder: Path, size: Size) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    chance = np.random.default_rng(size.seed)
    labels = chance.choice(LABELS, size=size.offered, p=shares())
    kinds = chance.random(size.offered)
    earlier = (chance.random(size.offered) * np.arange(size.offered)).astype(np.int64)
    origins = np.arange(size.offered)
    for row in (np.flatnonzero(kinds[1:] < REPEATED + NEARLY) + 1).tolist():
        labels[row] = labels[earlier[row]]
        if kinds[row] < REPEATED:
            origins[row] = origins[earlier[row]]
    centres = _units(chance.standard_normal((LABELS, CLUSTERS, DIMENSIONS), dtype=np.float32))
    vectors = np.lib.format.open_memmap(
        folder / "vectors.npy", mode="w+", dtype=np.float32, shape=(size.offered, DIMENSIONS)
    )
    for first in range(0, size.offered, STEP):
        last = min(first + STEP, size.offered)
        vectors[first:last] = _around(centres, labels[first:last], chance)
        for row in range(max(first, 1), last):
            if kinds[row] < REPEATED:
                vectors[row] = vectors[origins[row]]
            elif kinds[row] < REPEATED + NEARLY:
                noise = chance.standard_normal(DIMENSIONS, dtype=np.float32) * (NEAR_NOISE / DIMENSIONS**0.5)
                vectors[row] = _units(vectors[earlier[row]] + noise)
    vectors.flush()
    np.save(folder / "labels.npy", labels)
    np.save(folder / "origins.npy", origins)
    asked = chance.choice(LABELS, size=size.queries, p=shares())
    np.save(folder / "queries.npy", _around(centres, asked, chance))


def _around(centres: Vectors, labels: NDArray[np.int64], chance: np.random.Generator) -> Vectors:
    clusters = chance.integers(CLUSTERS, size=len(labels))
    noise = chance.standard_normal((len(labels), DIMENSIONS), dtype=np.float32)
    return _units(centres[labels, clusters] + noise * np.float32(SPREAD / DIMENSIONS**0.5))


def _units(vectors: Vectors) -> Vectors:
    found: Vectors = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    return found
