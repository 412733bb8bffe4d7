"""What the loop asks of a replay memory; `perdure_replay` has the implementation.

One process writes a memory at a time. Each method that changes it is one transaction, so that a process killed at any
point leaves a memory that is whole, and a turn that is started again goes on from the last one that was committed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from types import TracebackType
from typing import Literal, Protocol, Self

from perdure.config import Settings
from perdure.errors import StreamError, UsageError
from perdure.records import Float, Sample
from perdure.stream.base import Offset, Page, Stream

logger = logging.getLogger(__name__)

ENTRY_POINTS = "perdure.memory"

PAGE = 1000
"""Stream entries in one transaction."""


@dataclass(frozen=True, slots=True)
class IngestCounts:
    """What one page, or all pages so far, brought."""

    interactions: int = 0
    feedback: int = 0
    joined: int = 0
    """Labels that found their interaction, or the other way round."""
    corrected: int = 0
    """Joined labels that replaced another one."""
    repeated: int = 0
    """Records that said what was known already."""
    waiting: int = 0
    """Feedback that still waits for its interaction."""
    expired: int = 0
    """Interactions or feedback that waited longer than the time limit."""
    quarantined: int = 0
    erasures: int = 0
    unlearned: int = 0
    """Labels that erasures took out of the head's statistics, and rebuilds that they made due."""
    lost: int = 0
    """Records that the stream's retention removed before they were read."""


@dataclass(frozen=True, slots=True)
class Row:
    """One interaction that came since the last finished turn."""

    id: str
    """The interaction's id."""
    text: str
    label: str | None
    """What was said of it; None where nobody has said anything."""
    predicted: str | None
    """What was served."""
    confidence: float
    version: str | None
    time: float


@dataclass(frozen=True, slots=True)
class Delta:
    """A label that the head's statistics do not have yet (sign +1), or still have though it was taken back (−1)."""

    sequence: int
    text: str
    label: str
    sign: Literal[-1, 1]


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A record kept out of learning, and why."""

    id: str
    """Interaction id, or `partition:position` of a payload that could not be read."""
    reason: str
    text: str
    label: str | None
    time: float


@dataclass(frozen=True, slots=True)
class Neighbours:
    """For each query, its most similar samples, most similar first."""

    samples: tuple[tuple[Sample, ...], ...]
    similarities: tuple[tuple[float, ...], ...]
    """Cosine similarities, aligned with `samples`."""


@dataclass(frozen=True, slots=True)
class MemoryCounts:
    """What a memory holds."""

    samples: int
    held_out: int
    labels: Mapping[str, int]
    """Living samples of each class."""
    pending: Mapping[str, int]
    """Labels with too few examples to be a class, and how many they have."""
    tombstones: int
    waiting_feedback: int
    joinable: int
    """Interactions whose label may still come or change."""
    fresh: int
    """Labelled rows that wait for a turn to learn from them."""
    quarantined: int
    memory_bytes: int
    """Everything kept: samples, embeddings, join state, fresh rows, quarantine and the head's statistics."""
    totals: IngestCounts


@dataclass(frozen=True, slots=True)
class Forgotten:
    """What `forget` reached."""

    subject: str
    interactions: int
    samples: int
    quarantined: int
    deltas: int
    """Labels that the head's statistics will give back exactly, with the next turn."""
    rebuild_head: bool
    """Some labels of unknown subjects are in the statistics only as sums; they are rebuilt from memory."""


@dataclass(frozen=True, slots=True)
class TurnState:
    """The turn that is under way; what a restarted process goes on with."""

    number: int
    stage: Literal["open", "frozen"]
    """`open`: rows are still being collected. `frozen`: the rows of this turn are fixed."""
    promotion: int
    """The number that this turn's first promotion will have, read together with its champion; 0 while open."""
    champion: str | None
    offset: Offset = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Assembled:
    """What a memory was made of."""

    shards: int
    samples: int
    """Living samples."""
    split: int
    """Interactions whose records lie in several shards, those that the shards have let go of included."""
    erasures: int
    """Erasures that not every shard had carried out."""
    expired: int
    """Interactions and feedback that only all shards together show to be too old or too many."""


class Memory(Protocol):
    """Keeps representative past samples, the state of joining, and what waits to be learned."""

    # ── the stream ──
    def offset(self) -> Offset:
        """The first stream position not yet ingested."""
        ...

    def ingest(self, page: Page) -> IngestCounts:
        """Joins the page's records; samples, join state, quarantine and offset change in one transaction."""
        ...

    # ── the turn ──
    def turn(self) -> TurnState:
        """The turn under way."""
        ...

    def freeze(self, *, champion: str | None, promotion: int) -> TurnState:
        """Fixes the rows of this turn and its champion. A turn that is frozen already stays as it is."""
        ...

    def rows(self) -> tuple[Row, ...]:
        """The rows of the frozen turn, ordered by id, only the last label of each."""
        ...

    def finish(self, summary: str) -> None:
        """Ends the frozen turn: its rows leave, the next turn is open, and `summary` (JSON) is kept."""
        ...

    def history(self, limit: int) -> tuple[str, ...]:
        """Summaries of the last turns, oldest first; at least the last 1,000 are kept."""
        ...

    # ── the head's statistics ──
    def deltas(self, limit: int) -> tuple[Delta, ...]:
        """Labels to put into, or take out of, the head's statistics, in order."""
        ...

    def statistics(self) -> str | None:
        """Name of the immutable file, in `folder`, with the head's statistics; None before the first."""
        ...

    def statistics_parts(self) -> Sequence[str]:
        """Names of immutable files, in `folder`, whose sums, with all deltas, are the head's statistics.

        Only `assemble` leaves some, and then `statistics` is None. A file that is pointed to must contain their sums.
        """
        ...

    def set_statistics(self, name: str, *, through: int) -> None:
        """Points to `name`, which contains all deltas up to sequence `through`, and drops those, in one transaction.

        Files that are no longer pointed to are removed afterwards.
        """
        ...

    @property
    def rebuild_due(self) -> bool:
        """An erasure left labels in the head's statistics that only `rebuild_statistics` takes out."""
        ...

    def rebuild_statistics(self) -> None:
        """Drops the statistics and makes one delta for every living sample instead."""
        ...

    @property
    def folder(self) -> str:
        """Where immutable files of the head's statistics lie."""
        ...

    # ── samples and views ──
    def samples(self) -> tuple[Sample, ...]:
        """All living samples of all labels, pending ones included, ordered by label and place."""
        ...

    def counts(self) -> MemoryCounts: ...

    def digest(self) -> str:
        """Hash of all samples, their places and their tombstones; equal for equal memories, whatever the order."""
        ...

    def classes(self) -> Mapping[str, int]:
        """Labels that have enough examples to be a class, sorted, with the turn in which they became one."""
        ...

    def embedded(self, version: str) -> frozenset[str]:
        """Keys of the samples that have an embedding made by `version`."""
        ...

    def embedding_space(self) -> str | None:
        """What `embed` was last given as `version`: all embeddings kept are of it; None where there are none."""
        ...

    def embed(self, version: str, keys: Sequence[str], vectors: Float) -> None:
        """Stores embeddings (n × d, any length, normalised here) made by `version`; older versions' go."""
        ...

    def neighbours(self, vectors: Float, k: int) -> Neighbours:
        """The k most similar living samples that have an embedding, for each of n query vectors (n × d)."""
        ...

    def near_duplicates(self) -> tuple[frozenset[str], ...]:
        """Groups of at least two keys of one label whose similarity is above the setting."""
        ...

    def representatives(self, label: str, k: int) -> tuple[Sample, ...]:
        """k living, not held out samples that cover the label's embeddings best (herding)."""
        ...

    # ── doubt and forgetting ──
    def quarantine(self, rows: Sequence[Quarantined]) -> None:
        """Keeps `rows` out of learning; repeating one changes nothing."""
        ...

    def quarantined(self) -> tuple[Quarantined, ...]: ...

    def forget(self, subject: str, until: float) -> Forgotten:
        """Removes what is kept of a subject, with tombstones against redelivery."""
        ...

    def alias(self, subject: str) -> str:
        """The keyed hash by which this memory knows `subject`; every memory of one seed has the same."""
        ...

    def erasures(self) -> Mapping[str, float]:
        """The time (s) up to which each alias was forgotten, of erasures that may still meet a late record."""
        ...

    @property
    def horizon(self) -> float:
        """The event time (s) before which records are too late, and erasures are let go of; −inf before the first."""
        ...

    def forget_alias(self, alias: str, until: float) -> Forgotten:
        """As `forget`, of whom `alias` names."""
        ...

    # ── shards ──
    def snapshot(self, folder: Path, *, links: bool = True) -> None:
        """Writes a copy of this memory into the new folder `folder`, where it can be opened, or assembled.

        It is what was committed at one moment, also where another process goes on writing. With `links` files that
        never change may be hard links to this memory's.
        """
        ...

    def assemble(self, shards: Sequence[Path]) -> Assembled:
        """Makes this memory what one that had ingested everything that the memories in folders `shards` have would be.

        It is called while the turn is open, each time with the newest snapshots of the same shards. What came from
        shards before is replaced; what turns have done here stays.
        """
        ...

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def open_memory(settings: Settings, *, read_only: bool = False) -> Memory:
    """The installed memory, opened for writing, or for reading beside the process that writes it.

    Raises:
        StoreBusy: another process writes it.
        UsageError: no memory is installed; or none has been made yet, for reading.
    """
    for point in entry_points(group=ENTRY_POINTS):
        memory: Memory = point.load()(settings, read_only=read_only)
        return memory
    raise UsageError("no replay memory is installed: install perdure[cpu] or perdure[gpu]")


def ingest(stream: Stream, memory: Memory, go_on: Callable[[], bool] = lambda: True) -> IngestCounts:
    """Reads `stream` to its end into `memory`, page by page; each page is one transaction.

    Args:
        stream: read from the memory's offset on.
        memory: open for writing.
        go_on: asked before each page is read; False ends it there.

    Raises:
        StreamError: the stream cannot be read; pages read until then stay.
    """
    total = IngestCounts()
    while go_on():
        before = memory.offset()
        page = stream.read(before, PAGE)
        if not page.entries and dict(page.next) == dict(before):
            break
        counts = memory.ingest(page)
        if counts.quarantined:
            _reject(stream, page)
        total = IngestCounts(**{name: getattr(total, name) + value for name, value in asdict(counts).items()})
    return total


def _reject(stream: Stream, page: Page) -> None:
    refused = [(entry, reason) for entry in page.entries if (reason := entry.reason()) is not None]
    try:
        stream.reject([entry for entry, _ in refused], [reason for _, reason in refused])
    except StreamError as error:
        # They are in quarantine: what is missing is a copy for others.
        logger.error("%s", error)  # noqa: TRY400 (the message says it all)
