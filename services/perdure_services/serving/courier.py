"""Results from threads to the event loop."""

from __future__ import annotations

import asyncio
from collections import deque
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


class Courier:
    """`asyncio.wrap_future` for many at once: what is settled together wakes the loop once, not once each.

    To be made and asked in the loop that it serves.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._settled: deque[tuple[asyncio.Future[Any], Future[Any]]] = deque()
        self._coming = False
        """The loop has been woken, and has not begun to take what is settled."""

    def future(self, thread: Future[T], *, keep: bool = False) -> asyncio.Future[T]:
        """A future of the loop with the result of `thread`.

        To cancel it cancels `thread` too, unless `keep` says that it goes on by itself.
        """
        mine: asyncio.Future[T] = self._loop.create_future()
        if not keep:
            mine.add_done_callback(lambda done: thread.cancel() if done.cancelled() else None)
        thread.add_done_callback(lambda done: self._settle(mine, done))
        return mine

    def _settle(self, mine: asyncio.Future[Any], thread: Future[Any]) -> None:
        # In this order no wake-up is lost: what is appended before the loop begins to take is taken, and who appends
        # later sees that it has begun. One too many does nothing.
        self._settled.append((mine, thread))
        if not self._coming and not self._loop.is_closed():
            self._coming = True
            self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        self._coming = False
        while self._settled:
            mine, thread = self._settled.popleft()
            if mine.done():
                continue
            if thread.cancelled():
                mine.cancel()
            elif (error := thread.exception()) is not None:
                mine.set_exception(error)
            else:
                mine.set_result(thread.result())
