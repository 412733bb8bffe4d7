"""Topics of one test each, on a broker that all tests share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import pytest
from kafka import KafkaAdminClient, KafkaProducer

from perdure.config import StreamSettings
from perdure.stream.kafka import KafkaStream


@pytest.fixture
def topic() -> str:
    return f"test-{uuid4().hex[:12]}"


@pytest.fixture
def settings_of(kafka_broker: Any, topic: str) -> Callable[..., StreamSettings]:
    """Settings of a topic that only this test uses."""

    def make(**values: Any) -> StreamSettings:
        given = {"url": f"kafka://{kafka_broker.address}", "topic": topic, "partitions": 3, "delivery_seconds": 20.0}
        return StreamSettings(**{**given, **values})

    return make


@pytest.fixture
def open_kafka(kafka_broker: Any, settings_of: Callable[..., StreamSettings]) -> Iterator[Callable[..., KafkaStream]]:
    """Opens the test's topic; closed at the end."""
    opened: list[KafkaStream] = []

    def make(*, only: set[int] | None = None, **values: Any) -> KafkaStream:
        opened.append(KafkaStream((kafka_broker.address,), settings_of(**values), only=only))
        return opened[-1]

    yield make
    for stream in opened:
        stream.close()


@pytest.fixture
def admin(kafka_broker: Any) -> Iterator[Any]:
    client = KafkaAdminClient(bootstrap_servers=kafka_broker.address)
    yield client
    client.close()


@pytest.fixture
def producer(kafka_broker: Any) -> Iterator[Any]:
    """Another program that writes to topics."""
    client = KafkaProducer(bootstrap_servers=kafka_broker.address, max_request_size=20_000_000)
    yield client
    client.close()
