"""One partition in one process's hands."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from perdure.config import Settings
from perdure.memory import IngestCounts, Memory, ingest, open_memory
from perdure.registry import Shards
from perdure.stream import Stream

LAG_SECONDS = 5.0
"""Between two questions for a partition's end."""

_log = logging.getLogger(__name__)


class Shard:
    """Takes a partition over and reads it into a memory of its own, from where its last snapshot ends.

    Args:
        settings: of everything.
        shards: where snapshots are.
        partition: which one.
        owner: names this process in the partition's log.
        folder: for the memory; what lies there goes.
        stream: reads this partition alone; closed with the shard.
        absorb: brings the head's statistics of a memory up to date.

    Raises:
        RegistryError, StoreCorrupt: the last snapshot cannot be taken over.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        shards: Shards,
        partition: int,
        owner: str,
        folder: Path,
        stream: Stream,
        absorb: Callable[[Memory], object],
    ) -> None:
        self._shards = shards
        self._stream = stream
        self._absorb = absorb
        self._interval = settings.ingest.snapshot_seconds
        self._held = shards.claim(partition, owner)
        self._folder = shards.fetch(self._held, folder)
        self._memory = open_memory(settings.with_values({"memory.path": str(folder)}))
        self._published_at = time.monotonic()
        self._measured_at = 0.0
        self._lag = 0

    def read(self, go_on: Callable[[], bool]) -> IngestCounts:
        """Ingests what is new, until `go_on` says no or a snapshot is due.

        Raises:
            StreamError: the partition cannot be read.
        """
        return ingest(self._stream, self._memory, lambda: go_on() and not self.due)

    @property
    def lag(self) -> int:
        """Records of the partition that are not read yet; the broker is asked every few seconds.

        Raises:
            StreamError: the broker does not say.
        """
        if time.monotonic() - self._measured_at >= LAG_SECONDS:
            offset = self._memory.offset()
            self._lag = sum(max(end - offset.get(name, 0), 0) for name, end in self._stream.end().items())
            self._measured_at = time.monotonic()
        return self._lag

    @property
    def settled(self) -> bool:
        """Whether all that was read is in a snapshot."""
        return not self._changed

    @property
    def due(self) -> bool:
        """Whether a snapshot has to be written: something is new, and the last one is old."""
        return self._changed and time.monotonic() - self._published_at >= self._interval

    def publish(self) -> None:
        """Writes a snapshot, if anything is new.

        Raises:
            StaleShard: another process has taken the partition over.
        """
        self._published_at = time.monotonic()
        if not self._changed:
            return
        offset = self._memory.offset()
        self._absorb(self._memory)
        with TemporaryDirectory(prefix="snapshot-", dir=self._folder) as place:
            copy = Path(place) / "memory"
            self._memory.snapshot(copy)
            files = {str(file.relative_to(copy)): file for file in sorted(copy.rglob("*")) if file.is_file()}
            self._held = self._shards.publish(self._held, files, offset)
        _log.info("partition %d: read to %s, snapshot %d", self._held.partition, dict(offset), self._held.number)

    def close(self) -> None:
        """Gives the memory and the stream back; what was not published is read again by the next owner."""
        self._memory.close()
        self._stream.close()

    @property
    def _changed(self) -> bool:
        return dict(self._memory.offset()) != self._held.offset
