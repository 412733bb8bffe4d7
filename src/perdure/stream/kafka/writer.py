"""Sends records and waits until the broker has them."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from typing import Any

from kafka import KafkaProducer
from kafka import errors as kafka_errors

from perdure.config import StreamSettings
from perdure.errors import RecordError, StreamError
from perdure.stream.base import Entry
from perdure.stream.kafka.client import discard, explained, options, reason
from perdure.stream.kafka.partitioning import partitions_of
from perdure.stream.kafka.topic import MAX_RECORD_BYTES, ensure_topic
from perdure.stream.payload import Payload

BATCH_BYTES = 256 * 1024
"""Most bytes of one partition in one request; below any broker's limit that people set."""

LINGER_MS = 5
"""How long a batch waits for company."""

SLACK_SECONDS = 5.0
"""What the library gets beyond the delivery time to say that it failed."""

_TOO_LARGE = (kafka_errors.MessageSizeTooLargeError, kafka_errors.RecordListTooLargeError)

_log = logging.getLogger(__name__)


class Writer:
    """One producer, made when it is first needed and made anew when it is broken; may be used from several threads.

    It is idempotent and waits for all replicas: a batch that the library sends twice is kept once. What fails for good
    is the caller's to send again, under the same event ids.
    """

    def __init__(self, servers: tuple[str, ...], settings: StreamSettings) -> None:
        self._servers = servers
        self._settings = settings
        self._lock = threading.Lock()
        self._made: Any = None

    def write(self, added: Sequence[Payload]) -> None:
        """Returns when every record is acknowledged.

        All records of one interaction go to one partition; a record of none (an erasure) goes to every partition.

        Raises:
            RecordError: a record is too large for the topic; others may have been added.
            StreamError: a record was not acknowledged in time; others may have been added.
        """
        too_large = self._write(added)
        if too_large and len(added) > 1:
            # Several in one request may be more than a topic with a low limit takes; one by one they may not.
            too_large = [payload for payload in too_large for _ in self._write([payload])]
        if too_large:
            sizes = ", ".join(str(len(payload.body)) for payload in too_large[:5])
            raise RecordError(
                f"{len(too_large)} records ({sizes} bytes) are larger than the topic {self._settings.topic!r} allows: "
                "raise its max.message.bytes"
            )

    def _write(self, added: Sequence[Payload]) -> list[Payload]:
        """The payloads that are too large."""
        topic = self._settings.topic
        where = f"{len(added)} records were not acknowledged by the topic {topic!r} at {', '.join(self._servers)}"
        with explained(where):
            producer = self._producer()
            try:
                futures = self._send(producer, topic, added)
            except kafka_errors.KafkaError:
                self._abandon(producer)
                raise
        failed = self._settle(producer, [future for _, future in futures], where)
        return [payload for number, (payload, _) in enumerate(futures) if number in failed]

    def copy(self, entries: Sequence[Entry], reasons: Sequence[str]) -> None:
        """Copies payloads to the dead-letter topic, with the reason and the place that they came from.

        Raises:
            StreamError: they were not acknowledged in time.
        """
        topic = self._settings.dead_letter_topic
        where = f"{len(entries)} unreadable records were not copied to the topic {topic!r}"
        with explained(where):
            ensure_topic(self._servers, self._settings, topic)
            producer = self._producer()
            futures = [
                producer.send(
                    topic,
                    value=entry.payload,
                    headers=[
                        ("reason", why.encode()),
                        ("topic", self._settings.topic.encode()),
                        ("partition", entry.partition.encode()),
                        ("position", str(entry.position).encode()),
                    ],
                )
                for entry, why in zip(entries, reasons, strict=True)
            ]
        if too_large := self._settle(producer, futures, where):
            raise StreamError(f"{where}: {len(too_large)} are larger than it allows: raise its max.message.bytes")

    def close(self) -> None:
        """Gives the producer back; everything that was acknowledged is safe."""
        with self._lock:
            made, self._made = self._made, None
        if made is not None:
            with explained("the producer cannot be closed"):
                made.close(timeout=self._settings.delivery_seconds)

    def _send(self, producer: Any, topic: str, added: Sequence[Payload]) -> list[tuple[Payload, Any]]:
        """Hands the records to the producer; each comes back with the future of each copy."""
        longest = max(len(payload.body) for payload in added)
        if longest > MAX_RECORD_BYTES:
            raise RecordError(f"a record has {longest} bytes, more than the {MAX_RECORD_BYTES} allowed")
        everywhere = sorted(producer.partitions_for(topic))
        keys = [(payload.interaction or "").encode() for payload in added]
        futures = []
        for payload, key, own in zip(added, keys, partitions_of(keys, len(everywhere)), strict=True):
            if payload.interaction is None:
                futures += [(payload, producer.send(topic, payload.body, partition=each)) for each in everywhere]
            else:
                futures.append((payload, producer.send(topic, payload.body, key, partition=everywhere[own])))
        return futures

    def _settle(self, producer: Any, futures: Sequence[Any], where: str) -> frozenset[int]:
        """Waits until each record is acknowledged or given up by the library; the places of those too large.

        Raises:
            StreamError: a record failed otherwise.
        """
        deadline = time.monotonic() + self._settings.delivery_seconds + SLACK_SECONDS
        failures: dict[int, BaseException] = {}
        for number, future in enumerate(futures):
            # Most are done: the first one of a batch has waited for the others.
            if not future.is_done or future.failed():
                try:
                    future.get(timeout=max(deadline - time.monotonic(), 0.001))
                except (kafka_errors.KafkaError, OSError) as error:
                    failures[number] = error
        too_large = frozenset(number for number, error in failures.items() if isinstance(error, _TOO_LARGE))
        others = [error for number, error in failures.items() if number not in too_large]
        if too_large:
            # It goes on trying to split what it could not send, and what comes next would share its fate.
            self._abandon(producer)
        if not others:
            return too_large
        if not all(future.is_done for future in futures) or not all(
            isinstance(error, kafka_errors.RetriableError) for error in others
        ):
            # What it still holds would pile up; and after some errors it sends nothing ever again.
            self._abandon(producer)
        raise StreamError(f"{where}, {len(others)} of them: {reason(others[0])}") from others[0]

    def _producer(self) -> Any:
        with self._lock:
            if self._made is None:
                ensure_topic(self._servers, self._settings, self._settings.topic)
                milliseconds = int(self._settings.delivery_seconds * 1000)
                self._made = KafkaProducer(
                    **options(self._servers, self._settings),
                    acks="all",
                    # Said aloud: otherwise some other settings would switch it off in silence.
                    enable_idempotence=True,
                    linger_ms=LINGER_MS,
                    batch_size=BATCH_BYTES,
                    max_request_size=2 * MAX_RECORD_BYTES,
                    max_block_ms=milliseconds,
                    request_timeout_ms=max(milliseconds - LINGER_MS - 1, 1),
                    delivery_timeout_ms=milliseconds,
                    allow_auto_create_topics=False,
                    metrics_enabled=False,
                )
            return self._made

    def _abandon(self, producer: Any) -> None:
        with self._lock:
            if self._made is producer:
                self._made = None
        _log.debug("a producer is given up, the next append makes another one")
        discard(lambda: producer.close(timeout=0))
