"""Connections between two requests.

`httpcore`'s own pool is not used: where threads share it, one of them may take a connection that another has just begun
to use for one that the server closed, and close it under the other's hands. Here a connection belongs to one request
until that is over.
"""

from __future__ import annotations

import threading
import time
from typing import Generic, Protocol, TypeVar

IDLE_SECONDS = 30.0
"""A connection that has idled longer is not used again: the API closes idle ones after 75 seconds, proxies mostly after
60, and between the two somebody may have forgotten it sooner."""


class Connection(Protocol):
    """What `httpcore.HTTPConnection` and `httpcore.AsyncHTTPConnection` know of themselves."""

    def is_idle(self) -> bool:
        """Whether its last answer was read to the end, and another request may follow."""
        ...

    def has_expired(self) -> bool:
        """Whether the server has closed it."""
        ...


C = TypeVar("C", bound=Connection)


class Idle(Generic[C]):
    """Those that may be used again, the one used last first. Threads may share it."""

    def __init__(self) -> None:
        self._waiting: list[tuple[float, C]] = []
        self._lock = threading.Lock()
        self.closed = False
        """Whether no connection is kept any more."""

    def take(self) -> tuple[C | None, list[C]]:
        """One that is still open, if there is one; and those that are not used again, which the caller closes."""
        old: list[C] = []
        with self._lock:
            while self._waiting and time.monotonic() - self._waiting[0][0] > IDLE_SECONDS:
                old.append(self._waiting.pop(0)[1])
            while self._waiting:
                connection = self._waiting.pop()[1]
                if not connection.has_expired():
                    return connection, old
                old.append(connection)
        return None, old

    def put(self, connection: C) -> bool:
        """Whether `connection` is kept; if not, the caller closes it."""
        with self._lock:
            if self.closed or not connection.is_idle():
                return False
            self._waiting.append((time.monotonic(), connection))
        return True

    def close(self) -> list[C]:
        """Keeps nothing from now on; what it has kept, which the caller closes."""
        with self._lock:
            self.closed = True
            left = [connection for _, connection in self._waiting]
            self._waiting.clear()
        return left
