"""The one suite, over every stream."""

from __future__ import annotations

import hashlib
import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from kafka import KafkaProducer

from perdure.config import StreamSettings
from perdure.stream import MemoryStream, SqliteStream, Stream, open_stream
from perdure_services.serving.taking_turns import TakingTurns

from .stream_suite import StreamFactory, StreamSuite


class MemoryFactory(StreamFactory):
    durable = False

    def open(self) -> Stream:
        return MemoryStream()

    def inject(self, stream: Stream, payload: bytes) -> None:
        assert isinstance(stream, MemoryStream)
        stream.append_payload(payload)


class SqliteFactory(StreamFactory):
    def open(self) -> Stream:
        return SqliteStream(self.folder / "stream.db")

    def inject(self, stream: Stream, payload: bytes) -> None:
        with closing(sqlite3.connect(self.folder / "stream.db")) as connection, connection:
            connection.execute("INSERT INTO entry (payload) VALUES (?)", (payload,))


class TakingTurnsFactory(SqliteFactory):
    def open(self) -> Stream:
        return TakingTurns(super().open(), self.folder / "turns")


class KafkaFactory(StreamFactory):
    """One partition: over several there is no order to speak of."""

    can_forget = False
    address = ""

    def open(self) -> Stream:
        # The folder's name is this test's own.
        topic = f"suite-{hashlib.sha256(str(self.folder).encode()).hexdigest()[:16]}-{os.getpid()}"
        self.settings = StreamSettings(url=f"kafka://{self.address}", topic=topic, partitions=1)
        stream = open_stream(self.settings)
        # Others may write before this stream does, and a topic that nobody made is an error.
        stream.end()
        return stream

    def inject(self, stream: Stream, payload: bytes) -> None:
        with KafkaProducer(bootstrap_servers=self.address) as producer:
            producer.send(self.settings.topic, payload, partition=0).get(timeout=30)


# One line for each implementation.
FACTORIES: dict[str, type[StreamFactory]] = {
    "memory": MemoryFactory,
    "sqlite": SqliteFactory,
    "sqlite, by turns": TakingTurnsFactory,
    "kafka": KafkaFactory,
}


class TestStreams(StreamSuite):
    @pytest.fixture(params=[pytest.param(name, marks=[pytest.mark.kafka] * (name == "kafka")) for name in FACTORIES])
    def factory(self, request: pytest.FixtureRequest, tmp_path: Path) -> StreamFactory:
        made = FACTORIES[request.param](tmp_path)
        if isinstance(made, KafkaFactory):
            made.address = request.getfixturevalue("kafka_broker").address
        return made
