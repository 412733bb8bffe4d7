"""Blocking connections that keep to a deadline.

`httpcore` bounds each read by itself, so an answer that drips in could take for ever. Here a thread says until when
its request may take, and every step on the network gets no more than what is left of that. (In asynchronous code
`asyncio.timeout` does it.) Not bounded is the system's look-up of a name, and where a name has several addresses, each
gets what was left when connecting began.
"""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import httpcore

PIECE = 65_536
"""Bytes that are written between two looks at the clock."""


class Deadline:
    """Until when the request of each thread may take."""

    def __init__(self) -> None:
        self._thread = threading.local()

    @contextmanager
    def of(self, seconds: float) -> Iterator[None]:
        """For the block, this thread has `seconds` left."""
        self._thread.end = time.monotonic() + seconds
        try:
            yield
        finally:
            del self._thread.end

    def left(self, timeout: float | None, late: type[httpcore.TimeoutException]) -> float:
        """Seconds for the next step.

        Raises:
            httpcore.TimeoutException: there are none; of the class `late`.
        """
        left: float = self._thread.end - time.monotonic()
        if left <= 0:
            raise late("the deadline is over")
        return left if timeout is None else min(timeout, left)


class DeadlineBackend(httpcore.NetworkBackend):
    """`httpcore`'s own connections, under a deadline."""

    def __init__(self, deadline: Deadline) -> None:
        self._deadline = deadline
        self._inner = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        left = self._deadline.left(timeout, httpcore.ConnectTimeout)
        return _Stream(self._inner.connect_tcp(host, port, left, local_address, socket_options), self._deadline)


class _Stream(httpcore.NetworkStream):
    def __init__(self, inner: httpcore.NetworkStream, deadline: Deadline) -> None:
        self._inner = inner
        self._deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._inner.read(max_bytes, self._deadline.left(timeout, httpcore.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        for start in range(0, len(buffer), PIECE):
            left = self._deadline.left(timeout, httpcore.WriteTimeout)
            self._inner.write(buffer[start : start + PIECE], left)

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        left = self._deadline.left(timeout, httpcore.ConnectTimeout)
        return _Stream(self._inner.start_tls(ssl_context, server_hostname, left), self._deadline)

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)
