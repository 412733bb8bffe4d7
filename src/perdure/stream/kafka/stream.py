"""A Kafka topic as a stream."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import ClassVar

from perdure.config import StreamSettings
from perdure.errors import StreamError
from perdure.stream.base import Entry, Offset, Page, Stream
from perdure.stream.kafka.reader import Reader
from perdure.stream.kafka.writer import Writer
from perdure.stream.payload import Payload


class KafkaStream(Stream):
    """The topic `settings.topic` of the brokers `servers`.

    Nothing is asked of a broker before the first append or read, so that a process can start while it is away. One
    instance may be used from several threads; do not carry it over a fork. Order holds within a partition, and an
    interaction's records share one.

    Args:
        servers: `HOST:PORT` of some brokers.
        settings: of the stream.
        only: the partitions to read; all of them when None.
    """

    remote: ClassVar[bool] = True

    def __init__(
        self, servers: tuple[str, ...], settings: StreamSettings, *, only: Collection[int] | None = None
    ) -> None:
        self._settings = settings
        self._writer = Writer(servers, settings)
        self._reader = Reader(servers, settings, only)
        self._closed = False

    def end(self) -> Offset:
        self._check_open()
        return self._reader.end()

    def forget(self, subject: str, until: float) -> int:
        """Kafka cannot remove single records: 0. They go with the topic's retention, and memory refuses them."""
        self._check_open()
        return 0

    def reject(self, entries: Sequence[Entry], reasons: Sequence[str]) -> None:
        self._check_open()
        if self._settings.dead_letter_topic:
            self._writer.copy(entries, reasons)

    def close(self) -> None:
        self._closed = True
        self._reader.close()
        self._writer.close()

    def _append(self, added: Sequence[Payload]) -> None:
        self._check_open()
        self._writer.write(added)

    def _read(self, offset: Offset, limit: int) -> Page:
        self._check_open()
        return self._reader.read(offset, limit)

    def _check_open(self) -> None:
        if self._closed:
            raise StreamError(f"the stream of the topic {self._settings.topic!r} is closed: open it again")
