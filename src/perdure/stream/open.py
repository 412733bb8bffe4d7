"""From a URL to a stream."""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType

from perdure.config import StreamSettings
from perdure.errors import SettingError
from perdure.stream.base import Stream
from perdure.stream.memory import MemoryStream
from perdure.stream.sqlite import SqliteStream


def _open_sqlite(location: str, settings: StreamSettings) -> Stream:
    if not location or location.startswith(("//", ":")):
        raise SettingError(
            f"stream.url cannot be 'sqlite:{location}': write sqlite:PATH, with a path that is relative to the working "
            "folder (sqlite:var/stream.db) or absolute (sqlite:/var/lib/perdure/stream.db)"
        )
    return SqliteStream(location, busy_timeout=settings.busy_timeout)


def _open_memory(location: str, settings: StreamSettings) -> Stream:
    if location:
        raise SettingError(f"stream.url cannot be 'memory:{location}': a stream in memory has no name, write 'memory:'")
    return MemoryStream()


def _open_kafka(location: str, settings: StreamSettings) -> Stream:
    # Imported here: who has no broker need not wait for its client.
    from perdure.stream.kafka.client import servers_of
    from perdure.stream.kafka.stream import KafkaStream

    return KafkaStream(servers_of(location), settings)


OPENERS: MappingProxyType[str, Callable[[str, StreamSettings], Stream]] = MappingProxyType(
    {
        "sqlite": _open_sqlite,
        "kafka": _open_kafka,
        "memory": _open_memory,
    }
)
"""What opens the location behind `scheme:`. One line for each implementation."""


def open_stream(settings: StreamSettings) -> Stream:
    """The stream that `settings.url` names.

    Raises:
        SettingError: the URL has no scheme, or one that this version does not know.
        StreamError: the stream cannot be opened.
    """
    scheme, colon, location = settings.url.partition(":")
    known = ", ".join(f"{name}:" for name in OPENERS)
    if not colon:
        raise SettingError(
            f"stream.url cannot be {settings.url!r}: it does not say what kind of stream it is. "
            f"Write 'sqlite:{settings.url}' for a file (known: {known})"
        )
    opener = OPENERS.get(scheme.lower())
    if opener is None:
        # The location may carry a password, so only the scheme is shown.
        raise SettingError(
            f"stream.url cannot start with '{scheme}:': this version has no {scheme.capitalize()} stream "
            f"(known: {known}). Use sqlite:PATH or kafka://HOST:PORT"
        )
    return opener(location, settings)
