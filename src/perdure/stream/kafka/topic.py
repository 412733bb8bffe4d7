"""The topic that records go to."""

from __future__ import annotations

import logging
from typing import Any

from kafka import KafkaAdminClient
from kafka import errors as kafka_errors

from perdure.config import StreamSettings
from perdure.errors import StreamError
from perdure.records import MAX_TEXT_BYTES
from perdure.stream.kafka.client import explained, options

MAX_RECORD_BYTES = 8 * MAX_TEXT_BYTES
"""Longest record that a topic made here takes: JSON may spell one byte of text with six."""

_log = logging.getLogger(__name__)


def ensure_topic(servers: tuple[str, ...], settings: StreamSettings, name: str) -> None:
    """Makes the topic `name` where it is missing and may be made.

    Raises:
        StreamError: it is missing and may not be made, or the broker cannot be asked.
    """
    with explained(f"the topic {name!r} cannot be looked for at {', '.join(servers)}"):
        admin = KafkaAdminClient(**options(servers, settings), request_timeout_ms=int(settings.delivery_seconds * 1000))
        try:
            if name in admin.list_topics():
                return
            if not settings.create_topic:
                raise StreamError(
                    f"the topic {name!r} is not there, and stream.create_topic is false: make it "
                    f"(kafka-topics.sh --create --topic {name} --partitions {settings.partitions}), or correct "
                    "stream.topic"
                )
            _create(admin, settings, name)
        finally:
            admin.close()


def _create(admin: Any, settings: StreamSettings, name: str) -> None:
    wanted = {
        "num_partitions": settings.partitions,
        "replication_factor": settings.replication,
        "configs": {"max.message.bytes": str(MAX_RECORD_BYTES)},
    }
    try:
        admin.create_topics({name: wanted})
    except kafka_errors.TopicAlreadyExistsError:
        # Another process was faster.
        return
    _log.info("made the topic %s with %d partitions", name, settings.partitions)
    admin.wait_for_topics([name], timeout_ms=int(settings.delivery_seconds * 1000))
