"""One connection that asks over HTTP/1.1: it knows how long an answer is, and little else, so that it costs little."""

from __future__ import annotations

import asyncio
from typing import Protocol

HEAD_END = b"\r\n\r\n"
LENGTH = b"\r\ncontent-length:"
CHUNKED = b"\r\ntransfer-encoding: chunked"
CLOSING = b"\r\nconnection: close"


class Asker(Protocol):
    """Who sends requests over connections and wants the answers."""

    def answered(self, connection: Connection, status: int, body: bytes) -> None:
        """An answer is complete, and the connection is free for the next request."""

    def lost(self, connection: Connection) -> None:
        """The connection is closed, by either side; what was under way on it has no answer."""


class Connection(asyncio.Protocol):
    """A connection with at most one request under way.

    An answer that is neither as long as its Content-Length nor in chunks is one that cannot be read: the connection
    is closed.
    """

    __slots__ = ("_asker", "_buffer", "_closing", "_total", "_transport", "busy", "due", "index")

    def __init__(self, asker: Asker) -> None:
        self._asker = asker
        self._buffer = b""
        self._total = 0
        self._closing = False
        self._transport: asyncio.Transport | None = None
        self.busy = False
        """Whether a request is under way."""
        self.index = -1
        """Which request it is; the asker's own number."""
        self.due = 0.0
        """When it was due; the asker's own time."""

    def send(self, request: bytes, index: int, due: float) -> None:
        """Sends a whole request."""
        self.index, self.due, self.busy = index, due, True
        assert self._transport is not None
        self._transport.write(request)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        self._asker.lost(self)

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer + data if self._buffer else data
        if self._total and len(buffer) < self._total:
            self._buffer = buffer
            return
        end = buffer.find(HEAD_END)
        if end < 0:
            self._buffer = buffer
            return
        head = buffer[: end + 2].lower()
        body: bytes | None
        place = head.find(LENGTH)
        if place >= 0:
            start = place + len(LENGTH)
            self._total = end + 4 + int(head[start : head.index(b"\r", start)])
            body = buffer[end + 4 : self._total] if len(buffer) >= self._total else None
        elif CHUNKED in head:
            body = dechunked(buffer, end + 4)
        else:
            self.close()
            return
        if body is None:
            self._buffer = buffer
            return
        self._buffer, self._total, self.busy = b"", 0, False
        if CLOSING in head:
            # Said before `lost`, which follows.
            self._closing = True
            self.close()
        self._asker.answered(self, int(buffer[9:12]), body)

    @property
    def closing(self) -> bool:
        """Whether the server said that it takes no further request on this connection."""
        return self._closing


def dechunked(buffer: bytes, start: int) -> bytes | None:
    """The body in chunks that begins at `start`; None where it has not all come."""
    parts: list[bytes] = []
    while (stop := buffer.find(b"\r\n", start)) >= 0:
        size = int(buffer[start:stop].split(b";")[0], 16)
        if size == 0:
            return b"".join(parts) if buffer.find(b"\r\n", stop + 2) >= 0 else None
        if len(buffer) < stop + 2 + size + 2:
            return None
        parts.append(buffer[stop + 2 : stop + 2 + size])
        start = stop + 2 + size + 2
    return None
