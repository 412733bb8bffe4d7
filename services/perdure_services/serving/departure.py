"""Clients that leave before their answer is there."""

from __future__ import annotations

import asyncio
from types import TracebackType

from starlette.requests import Request
from starlette.types import Receive, Scope

PATIENCE_SECONDS = 0.05
"""A client is watched from then on: most answers are there sooner, and watching costs a task."""

CLIENT_CLOSED_REQUEST = 499
"""What is counted for them; nginx's number, as HTTP has none. Nobody receives it."""

_DEPARTURE = "perdure.departure"


class Departure:
    """Cancels what it surrounds when the client leaves.

    To be used in the task that answers, around everything that may be given up; `gone` says afterwards whether it was.
    It must not watch before the body has been read, since it reads what comes after it.
    """

    def __init__(self, scope: Scope, receive: Receive) -> None:
        scope[_DEPARTURE] = self
        self._receive = receive
        self._timer: asyncio.TimerHandle | None = None
        self._watching: asyncio.Task[None] | None = None
        self._answering: asyncio.Task[object] | None = None
        self.gone = False
        """Whether the client left."""

    def watch(self) -> None:
        """Begins to watch, a little later."""
        loop = asyncio.get_running_loop()
        self._answering = asyncio.current_task()
        self._timer = loop.call_later(PATIENCE_SECONDS, self._begin, loop)

    def __enter__(self) -> Departure:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if self._timer is not None:
            self._timer.cancel()
        if self._watching is not None:
            self._watching.cancel()
        if not self.gone:
            return False
        assert self._answering is not None
        # Somebody else may have cancelled the task as well: then it stays cancelled.
        return self._answering.uncancel() == 0 and isinstance(error, asyncio.CancelledError)

    def _begin(self, loop: asyncio.AbstractEventLoop) -> None:
        self._watching = loop.create_task(self._watch())

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.gone = True
        if self._answering is not None:
            self._answering.cancel()


def watch_from_now(request: Request) -> None:
    """The body of `request` has been read: its client is watched, where a `Departure` surrounds what answers it."""
    departure: Departure | None = request.scope.get(_DEPARTURE)
    if departure is not None:
        departure.watch()
