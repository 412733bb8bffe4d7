"""Which partitions are this process's, where several share a topic."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Any

from kafka import ConsumerRebalanceListener, KafkaConsumer

from perdure.config import StreamSettings
from perdure.stream.kafka.client import explained, options
from perdure.stream.kafka.topic import ensure_topic

POLL_MS = 2000
"""A round of dealing goes on within polls alone: what the broker answers between two of them is lost, and with it the
round, until the session has ended. So polls are long, there is no pause between them, and others join within one."""

HEARTBEAT_MS = 1000
"""With a sign of life members hear that another one wants to join, which waits for them."""


class Membership:
    """Membership in the consumer group `settings.group`-ingest, which deals the topic's partitions to its members.

    It reads no records: the broker only says whose a partition is. `partitions` must be called again as soon as it
    returns; whoever falls silent for longer than the broker's session timeout loses its partitions to others.
    """

    def __init__(self, servers: tuple[str, ...], settings: StreamSettings) -> None:
        self._topic = settings.topic
        with explained(f"the partitions of the topic {settings.topic!r} cannot be shared at {', '.join(servers)}"):
            ensure_topic(servers, settings, settings.topic)
            self._consumer = KafkaConsumer(
                **options(servers, settings),
                group_id=f"{settings.group}-ingest",
                enable_auto_commit=False,
                auto_offset_reset="latest",
                session_timeout_ms=10_000,
                heartbeat_interval_ms=HEARTBEAT_MS,
                allow_auto_create_topics=False,
            )
            self._consumer.subscribe([settings.topic], listener=_Pause(self._consumer))
        self._lock = threading.Lock()

    def partitions(self) -> frozenset[int]:
        """The partitions that are this process's now; waits up to two seconds for changes.

        Raises:
            StreamError: the broker cannot be reached.
        """
        with self._lock, explained(f"the partitions of the topic {self._topic!r} cannot be shared"):
            self._consumer.poll(timeout_ms=POLL_MS)
            return frozenset(each.partition for each in self._consumer.assignment())

    def close(self) -> None:
        """Leaves the group: others take over at once."""
        with self._lock:
            self._consumer.close(autocommit=False, timeout_ms=2000)


class _Pause(ConsumerRebalanceListener):  # type: ignore[misc]
    """Nothing is fetched through the group: records are read at the positions that memory keeps."""

    def __init__(self, consumer: Any) -> None:
        self._consumer = consumer

    def on_partitions_revoked(self, revoked: Iterable[Any]) -> None:
        """Nothing is held here that could be given back."""

    def on_partitions_assigned(self, assigned: Iterable[Any]) -> None:
        self._consumer.pause(*assigned)
