"""The process that reads the partitions which the broker deals to it."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

from perdure.config import Settings
from perdure.errors import PerdureError, StaleShard, StreamError, UsageError
from perdure.memory import Memory
from perdure.registry import Shards
from perdure.stream.kafka import KafkaStream, Membership
from perdure.stream.kafka.client import servers_of
from perdure_services.ingester.metrics import IngesterMetrics
from perdure_services.ingester.shard import Shard

IDLE_SECONDS = 0.5
"""Pause after a round in which nothing was new."""

RETRY_SECONDS = 5.0
"""Pause after a round that failed."""

SILENT_SECONDS = 120.0
"""The broker is asked whose the partitions are every other second; an answer, or an error, takes no longer."""

STUCK_SECONDS = 900.0
"""A page, or a snapshot with the embedding of all that it brings, takes no longer."""

_log = logging.getLogger(__name__)


class Ingester:
    """Holds the shards of the partitions that are this process's, and hands over those that are not any more.

    A thread keeps up the membership, however long a snapshot takes.

    Args:
        settings: of everything.
        absorb: brings the head's statistics of a memory up to date.

    Raises:
        UsageError: the stream has no partitions to share.
        StreamError: the broker cannot be reached.
    """

    def __init__(self, settings: Settings, absorb: Callable[[Memory], object]) -> None:
        scheme, _, location = settings.stream.url.partition(":")
        if scheme.lower() != "kafka":
            raise UsageError(
                f"only a Kafka topic can be shared by ingesters, but stream.url starts with '{scheme}:': leave "
                "ingest.shards off, and the trainer's turns ingest by themselves"
            )
        self._settings = settings
        self._servers = servers_of(location)
        self._absorb = absorb
        self._shards = Shards(settings.registry.url, settings.stream.topic)
        self._owner = f"{socket.gethostname()}-{os.getpid()}"
        self._folder = Path(settings.ingest.path) / self._owner
        self._held: dict[int, Shard] = {}
        self._stop = threading.Event()
        self._moved = threading.Event()
        self._membership = Membership(self._servers, settings.stream)
        self._assigned: frozenset[int] = frozenset()
        self._thread = threading.Thread(target=self._keep_up, name="perdure-membership", daemon=True)
        self._came_forward = self._heard = time.monotonic()
        self.metrics = IngesterMetrics()
        self._problems: dict[str, str] = {}

    def run(self) -> None:
        """Reads until `stop`; then writes last snapshots and leaves the group."""
        self._thread.start()
        try:
            while not self._stop.is_set():
                self._came_forward = time.monotonic()
                try:
                    busy = self._round()
                except PerdureError as error:
                    self._say("reading", str(error))
                    self._stop.wait(RETRY_SECONDS)
                else:
                    self._say("reading", "")
                    if not busy:
                        self._stop.wait(IDLE_SECONDS)
        finally:
            _log.info("stops: last snapshots of %d partitions", len(self._held))
            for partition in tuple(self._held):
                self._hand_over(partition)
            self._membership.close()
            shutil.rmtree(self._folder, ignore_errors=True)

    def _say(self, what: str, problem: str) -> None:
        """Logs a problem with `what` once, and its end: broker and store may be away for hours. Empty: all is well."""
        before = self._problems.get(what, "")
        if problem and problem != before:
            _log.error("%s", problem)
        elif before and not problem:
            _log.info("%s goes on", what)
        self._problems[what] = problem

    def stop(self) -> None:
        """Ends `run` soon; may be called from any thread and from a signal handler."""
        self._stop.set()

    def problem(self) -> str:
        """Why only a restart helps; empty while all is well."""
        if self._stop.is_set() or self._thread.ident is None:
            return ""
        now = time.monotonic()
        if not self._thread.is_alive():
            return "the thread that asks the broker for this process's partitions has ended"
        if now - self._heard > SILENT_SECONDS:
            return f"the broker was last asked for this process's partitions {now - self._heard:.0f} s ago"
        if now - self._came_forward > STUCK_SECONDS:
            return f"reading has not come forward for {now - self._came_forward:.0f} s"
        return ""

    def _go_on(self) -> bool:
        self._came_forward = time.monotonic()
        return not self._stop.is_set() and not self._moved.is_set()

    def _round(self) -> bool:
        """Takes and gives partitions, and reads each once; whether anything was new."""
        assigned = self._assigned
        self._moved.clear()
        for partition in self._held.keys() - assigned:
            self._hand_over(partition)
        for partition in sorted(assigned - self._held.keys()):
            self._held[partition] = self._take_over(partition)
        busy = False
        for partition, shard in tuple(self._held.items()):
            try:
                counts = shard.read(self._go_on)
                self.metrics.read(counts)
                self.metrics.lag.labels(str(partition)).set(shard.lag)
                busy |= counts.interactions + counts.feedback > 0
                if shard.due:
                    shard.publish()
            except StaleShard as error:
                _log.warning("%s", error)
                self._drop(partition)
        if all(shard.settled for shard in self._held.values()):
            self.metrics.snapshot.set(time.time())
        return busy

    def _take_over(self, partition: int) -> Shard:
        shard = Shard(
            self._settings,
            shards=self._shards,
            partition=partition,
            owner=self._owner,
            folder=self._folder / str(partition),
            stream=KafkaStream(self._servers, self._settings.stream, only={partition}),
            absorb=self._absorb,
        )
        _log.info("partition %d: taken over", partition)
        self.metrics.partitions.inc()
        return shard

    def _hand_over(self, partition: int) -> None:
        """Leaves a snapshot, so that the next owner has nothing to read again."""
        try:
            self._held[partition].publish()
        except PerdureError as error:
            _log.warning("partition %d was handed over without a last snapshot: %s", partition, error)
        self._drop(partition)

    def _drop(self, partition: int) -> None:
        self._held.pop(partition).close()
        self.metrics.partitions.dec()
        self.metrics.gone(partition)
        shutil.rmtree(self._folder / str(partition), ignore_errors=True)

    def _keep_up(self) -> None:
        while not self._stop.is_set():
            self._heard = time.monotonic()
            try:
                assigned = self._membership.partitions()
            except StreamError as error:
                self._say("membership", str(error))
                self._stop.wait(RETRY_SECONDS)
                continue
            self._say("membership", "")
            if assigned != self._assigned:
                _log.info("partitions of this process: %s", ", ".join(map(str, sorted(assigned))) or "none")
                self._assigned = assigned
                self._moved.set()
