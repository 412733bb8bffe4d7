"""Reads records from the positions that the reader itself keeps."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Collection, Mapping
from typing import Any

from kafka import KafkaConsumer, OffsetAndMetadata, TopicPartition
from kafka import errors as kafka_errors

from perdure.config import StreamSettings
from perdure.errors import StreamError
from perdure.stream.base import Entry, Offset, Page
from perdure.stream.kafka.client import explained, options
from perdure.stream.kafka.topic import MAX_RECORD_BYTES, ensure_topic

POLL_MS = 200
COMMIT_SECONDS = 5.0
"""How often the broker is told how far memory has read."""

FETCH_BYTES = 4 * 1024 * 1024
"""Most bytes of one partition fetched ahead; with the partitions' number, the bound of what waits unread."""

_GAP = (kafka_errors.OffsetOutOfRangeError, kafka_errors.NoOffsetForPartitionError)

_log = logging.getLogger(__name__)


class Reader:
    """One consumer without a group's assignment, made when it is first needed; used by one thread at a time.

    Kafka's own committed offsets are written, so that tools can show the lag, and never read.

    Args:
        only: the partitions to read; all of the topic's when None.
    """

    def __init__(self, servers: tuple[str, ...], settings: StreamSettings, only: Collection[int] | None) -> None:
        self._servers = servers
        self._settings = settings
        self._only = only
        self._lock = threading.Lock()
        self._made: Any = None
        self._at: dict[int, int] = {}
        """Where the consumer stands in each partition that was read."""
        self._ends: dict[int, int] = {}
        """Ends as they were when last asked for; records up to there are sure to come."""
        self._committed_at = 0.0

    def read(self, offset: Offset, limit: int) -> Page:
        """Up to `limit` entries; fewer only when a look at the ends found no more.

        Raises:
            StreamError: the topic cannot be read, is another one than the offset was made for, or, with
                `stream.on_gap` stop, has lost records that were not read.
        """
        with self._lock, self._explained():
            try:
                return self._read(offset, limit)
            except _GAP:
                # Retention ran past the consumer while it read: look where the partitions begin now.
                self._at = {}
                return self._read(offset, limit)
            except kafka_errors.KafkaError:
                self._drop()
                raise

    def end(self) -> Offset:
        """Behind the last record of each partition."""
        with self._lock, self._explained():
            consumer = self._consumer()
            return _offset(self._ask_ends(consumer, self._partitions(consumer)))

    def close(self) -> None:
        with self._lock:
            made, self._made = self._made, None
            if made is not None:
                made.close(autocommit=False, timeout_ms=1000)

    def _read(self, offset: Offset, limit: int) -> Page:
        consumer = self._consumer()
        stands, lost = self._place(consumer, offset)
        self._commit(consumer, offset)
        entries: list[Entry] = []
        deadline = time.monotonic() + self._settings.delivery_seconds
        while len(entries) < limit and any(stands[number] < end for number, end in self._ends.items()):
            found = consumer.poll(timeout_ms=POLL_MS, max_records=limit - len(entries))
            for partition, records in found.items():
                name = str(partition.partition)
                entries += [Entry(name, record.offset, record.value or b"") for record in records]
            # The consumer knows of positions that hold no record, such as those that compaction left empty.
            stands = {number: consumer.position(self._name(number)) for number in stands}
            if found:
                deadline = time.monotonic() + self._settings.delivery_seconds
            elif time.monotonic() > deadline:
                raise kafka_errors.KafkaTimeoutError(f"nothing came for {self._settings.delivery_seconds:g} s")
        self._at = stands
        return Page(tuple(entries), _offset(stands), lost=lost)

    def _place(self, consumer: Any, offset: Offset) -> tuple[dict[int, int], int]:
        """Puts the consumer where the reader is; the positions, and the number of records that are gone unread."""
        wanted = {int(name): position for name, position in offset.items() if self._reads(int(name))}
        behind = any(position < self._ends.get(number, 0) for number, position in wanted.items())
        if wanted != self._at or not behind:
            self._ends = self._ask_ends(consumer, self._partitions(consumer))
        for number, position in wanted.items():
            if position > self._ends.get(number, 0):
                raise StreamError(
                    f"the reader is at position {position} of partition {number}, but the topic "
                    f"{self._settings.topic!r} ends there at {self._ends.get(number, 0)}: it was made anew, or is "
                    "another one. Correct stream.url and stream.topic, or start the reader's memory anew"
                )
        moved = [number for number in self._ends if number not in self._at or wanted.get(number) != self._at[number]]
        if set(self._at) != set(self._ends):
            consumer.assign([self._name(number) for number in self._ends])
            moved = list(self._ends)
        if not moved:
            return dict(self._at), 0
        names = [self._name(number) for number in moved]
        first = {name.partition: begin for name, begin in consumer.beginning_offsets(names).items()}
        lost = sum(max(first[number] - wanted[number], 0) for number in moved if number in wanted)
        if lost:
            self._tell_gap({number: first[number] for number in moved}, wanted, lost)
        stands = dict(self._at) | {number: max(wanted.get(number, 0), first[number]) for number in moved}
        for number in moved:
            consumer.seek(self._name(number), stands[number])
        return stands, lost

    def _tell_gap(self, first: Mapping[int, int], wanted: Mapping[int, int], lost: int) -> None:
        where = ", ".join(
            f"partition {number}: {wanted[number]} to {begin - 1}"
            for number, begin in sorted(first.items())
            if number in wanted and begin > wanted[number]
        )
        said = (
            f"{lost} records of the topic {self._settings.topic!r} were removed by its retention before they were read "
            f"({where})"
        )
        if self._settings.on_gap == "stop":
            raise StreamError(
                f"{said}: raise the topic's retention.ms or read more often; to go on behind the gap set stream.on_gap "
                "to skip"
            )
        _log.error("%s; going on behind the gap: raise the topic's retention.ms, or read more often", said)

    def _commit(self, consumer: Any, offset: Offset) -> None:
        """What the reader brings is what it has stored. Only for others to see, so a failure does not matter."""
        if not offset or time.monotonic() < self._committed_at + COMMIT_SECONDS:
            return
        self._committed_at = time.monotonic()
        stored = {
            self._name(int(name)): OffsetAndMetadata(position, "", -1)
            for name, position in offset.items()
            if self._reads(int(name))
        }
        try:
            consumer.commit_async(stored)
        except kafka_errors.KafkaError as error:
            _log.debug("the broker was not told how far memory has read: %s", error)

    def _partitions(self, consumer: Any) -> list[int]:
        found = consumer.partitions_for_topic(self._settings.topic)
        if not found:
            raise kafka_errors.UnknownTopicOrPartitionError
        return sorted(number for number in found if self._reads(number))

    def _ask_ends(self, consumer: Any, partitions: Collection[int]) -> dict[int, int]:
        if not partitions:
            return {}
        found = consumer.end_offsets([self._name(number) for number in partitions])
        return {name.partition: end for name, end in found.items()}

    def _reads(self, partition: int) -> bool:
        return self._only is None or partition in self._only

    def _name(self, partition: int) -> Any:
        return TopicPartition(self._settings.topic, partition)

    def _consumer(self) -> Any:
        if self._made is None:
            ensure_topic(self._servers, self._settings, self._settings.topic)
            self._made = KafkaConsumer(
                **options(self._servers, self._settings),
                group_id=self._settings.group,
                enable_auto_commit=False,
                auto_offset_reset="none",
                max_partition_fetch_bytes=FETCH_BYTES,
                fetch_max_bytes=2 * MAX_RECORD_BYTES,
                request_timeout_ms=int(self._settings.delivery_seconds * 1000),
                allow_auto_create_topics=False,
                metrics_enabled=False,
            )
            self._at, self._ends = {}, {}
        return self._made

    def _drop(self) -> None:
        """The next read makes another consumer: this one may be broken."""
        made, self._made = self._made, None
        if made is not None:
            made.close(autocommit=False, timeout_ms=100)

    def _explained(self) -> Any:
        return explained(f"the topic {self._settings.topic!r} at {', '.join(self._servers)} cannot be read")


def _offset(positions: Mapping[int, int]) -> Offset:
    return {str(number): position for number, position in sorted(positions.items())}
