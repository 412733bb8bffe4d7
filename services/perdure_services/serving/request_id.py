"""The id by which a request is found again: in its answer, in every log line about it, and in its trace."""

from __future__ import annotations

import re
from collections.abc import Iterable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from perdure.logs import bind, bound
from perdure.records import new_id
from perdure_services.keys import redacted

HEADER = "X-Request-ID"

SANE = re.compile(rb"[A-Za-z0-9][A-Za-z0-9._:/+=@-]{0,127}")
"""An id that a client or a proxy gave is taken over if it is all this; nothing in it needs quoting anywhere."""

_NAME = HEADER.lower().encode("ascii")


def request_id() -> str | None:
    """The id of the request that is being answered here; None outside of any."""
    return bound().get("request_id")


class RequestIds:
    """ASGI application around all others, that of server errors too: takes or makes the id, binds it, and echoes it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        id = id_of(scope["headers"])
        # Never unbound: the task ends with the request, and what the server logs after us is about it too.
        bind(request_id=id)
        header = (_NAME, id.encode("ascii"))

        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), header]
            await send(message)

        await self._app(scope, receive, named)


def id_of(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """The id of a request: the one that its `headers` (lower-case names) give, if it is sane, else a new one."""
    for name, value in headers:
        if name == _NAME:
            if SANE.fullmatch(value) is None:
                break
            id: str = value.decode("ascii")
            # Somebody's key in the wrong header must not come into every log.
            if redacted(id) == id:
                return id
            break
    return new_id()
