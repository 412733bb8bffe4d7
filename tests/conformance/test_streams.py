"""The one suite, over every stream."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from perdure.stream import MemoryStream, SqliteStream, Stream

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


# One line for each implementation.
FACTORIES: dict[str, type[StreamFactory]] = {
    "memory": MemoryFactory,
    "sqlite": SqliteFactory,
}


class TestStreams(StreamSuite):
    @pytest.fixture(params=FACTORIES)
    def factory(self, request: pytest.FixtureRequest, tmp_path: Path) -> StreamFactory:
        return FACTORIES[request.param](tmp_path)
