"""The other processes of a server, as one of them asks them: over sockets in the folder that they share."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import Request

from perdure.errors import PerdureError
from perdure_services.fleet.child import socket_path
from perdure_services.fleet.hello import Hello
from perdure_services.serving.refusal import Refusal

MAX_QUESTION_BYTES = 2**20

_log = logging.getLogger(__name__)

Handler = Callable[[Any], Awaitable[Any]]
"""Answers a question; both are JSON values."""


@dataclass(frozen=True, slots=True)
class Told:
    """What a process has answered."""

    place: int
    answer: Any
    problem: str | None = None
    """Why there is no answer; None where there is one."""


class Siblings:
    """Answers the other processes' questions, and asks them.

    A question is one line of JSON, its name and its content; the answer is all that comes until the end. The folder is
    this user's alone, so nobody is asked who they are. To be used in the event loop.

    Args:
        hello: who this process is.
        handlers: what answers questions, by name.
    """

    def __init__(self, hello: Hello, handlers: Mapping[str, Handler]) -> None:
        self.place = hello.place
        self.restarts = hello.restarts
        self.others = tuple(place for place in range(hello.processes) if place != hello.place)
        self._folder = hello.folder
        self._handlers = handlers
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Begins to answer.

        Raises:
            OSError: the folder cannot be written.
        """
        path = socket_path(self._folder, self.place)
        # Of a process of this place that was killed.
        path.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._answer, path, limit=MAX_QUESTION_BYTES)

    def close(self) -> None:
        """Answers no more."""
        if self._server is not None:
            self._server.close()
            socket_path(self._folder, self.place).unlink(missing_ok=True)

    async def ask_all(self, name: str, content: Any, seconds: float) -> tuple[Told, ...]:
        """What every other process says within `seconds`, by place."""
        return tuple(await asyncio.gather(*(self.ask(place, name, content, seconds) for place in self.others)))

    async def ask(self, place: int, name: str, content: Any, seconds: float) -> Told:
        """What the process of that place says within `seconds`."""
        try:
            async with asyncio.timeout(seconds):
                text = await self._asked(place, json.dumps([name, content]))
            found = json.loads(text)
        except TimeoutError:
            return Told(place, None, f"no answer within {seconds:g} seconds")
        except OSError as error:
            return Told(place, None, f"it is not there ({error.strerror or error}), perhaps being started")
        except ValueError:
            return Told(place, None, "it ended before it had answered")
        return Told(place, found["answer"], found["problem"])

    async def _asked(self, place: int, question: str) -> bytes:
        reader, writer = await asyncio.open_unix_connection(socket_path(self._folder, place))
        try:
            writer.write(question.encode() + b"\n")
            await writer.drain()
            return await reader.read()
        finally:
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            name, content = json.loads(await reader.readline())
            answer, problem = None, None
            try:
                answer = await self._handlers[name](content)
            except Refusal as refusal:
                problem = refusal.what
            except (PerdureError, OSError) as error:
                problem = str(error)
            writer.write(json.dumps({"answer": answer, "problem": problem}).encode())
            await writer.drain()
        except ConnectionError:
            _log.info("a process of this server has asked something and left")
        finally:
            writer.close()


async def siblings_of(request: Request) -> Siblings | None:
    """The other processes of the server that answers `request`; None where there is only this one. A coroutine, for
    endpoints to depend on: what is not would cost them a thread of a pool."""
    found: Siblings | None = getattr(request.app.state, "siblings", None)
    return found
