"""What a turn brings into memory: the stream, or what several ingesters have read of it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Protocol

from perdure.config import Settings
from perdure.memory import IngestCounts, Memory, ingest
from perdure.registry import Shards, Snapshot
from perdure.stream import Offset, Stream

logger = logging.getLogger(__name__)


class Inflow(Protocol):
    """Where memory's records come from."""

    def end(self) -> Offset:
        """The offset of a memory that has everything there is."""
        ...

    def bring(self, memory: Memory, go_on: Callable[[], bool]) -> IngestCounts:
        """Brings everything there is into memory, step by step; `go_on` is asked before each step, False ends it.

        Raises:
            StreamError, RegistryError: it cannot be read; what was brought until then stays.
        """
        ...


def inflow_of(settings: Settings, stream: Stream) -> Inflow:
    """The one that the settings ask for."""
    return ShardInflow(settings) if settings.ingest.shards else StreamInflow(stream)


class StreamInflow:
    """Reads the stream; the default."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    def end(self) -> Offset:
        return self._stream.end()

    def bring(self, memory: Memory, go_on: Callable[[], bool]) -> IngestCounts:
        return ingest(self._stream, memory, go_on)


class ShardInflow:
    """Assembles memory from the newest snapshots of all partitions; the ingesters make them.

    It is for a turn that is open: one that is under way keeps the rows that it began with.
    """

    def __init__(self, settings: Settings) -> None:
        self._shards = Shards(settings.registry.url, settings.stream.topic)
        self._folder = Path(settings.memory.path) / "shards"

    def end(self) -> Offset:
        return _offset(self._newest())

    def bring(self, memory: Memory, go_on: Callable[[], bool]) -> IngestCounts:
        if not go_on() or memory.turn().stage != "open":
            return IngestCounts()
        snapshots = self._newest()
        if not snapshots:
            logger.warning(
                "there are no shards of this topic in the registry: ingest.shards is on, so start perdure ingest, or "
                "turn it off"
            )
        if not snapshots or _offset(snapshots) == dict(memory.offset()):
            return IngestCounts()
        before = asdict(memory.counts().totals)
        assembled = memory.assemble(
            [self._shards.fetch(each, self._folder / str(each.partition)) for each in snapshots]
        )
        logger.info("assembled %d samples from %d shards", assembled.samples, assembled.shards)
        after = asdict(memory.counts().totals)
        return IngestCounts(**{name: max(after[name] - before[name], 0) for name in after})

    def _newest(self) -> list[Snapshot]:
        """Of each partition of which something was read."""
        found = (self._shards.newest(partition) for partition in self._shards.partitions())
        return [snapshot for snapshot in found if snapshot is not None and snapshot.files]


def _offset(snapshots: list[Snapshot]) -> dict[str, int]:
    return {name: position for snapshot in snapshots for name, position in snapshot.offset.items()}
