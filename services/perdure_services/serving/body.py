"""Request bodies: bounded, UTF-8, JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from perdure_services.serving.access import GuardedRoute
from perdure_services.serving.refusal import Refusal

MAX_BODY_BYTES = 8_000_000
"""Longest request body. A text of 1 MB with every character escaped still fits."""


def json_value(raw: bytes) -> Any:
    """The JSON value in `raw`.

    Raises:
        Refusal: 400 when it is not UTF-8, not JSON, or nested too deeply.
    """
    try:
        return json.loads(raw.decode("utf-8"), parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise Refusal(
            400,
            f"the body is not UTF-8: {error.reason} at byte {error.start}",
            value=repr(raw[error.start : error.start + 8]),
            do="send the body as UTF-8",
        ) from error
    except RecursionError as error:
        raise Refusal(400, "the body is nested too deeply", do="send a flat JSON object; see /docs") from error
    except ValueError as error:
        shown = raw[:80].decode("utf-8", "replace")
        raise Refusal(400, f"the body is not JSON: {error}", value=shown, do="send a JSON object") from error


class CheckedRequest(Request):
    """A request whose body is read up to a bound, and refused in words when it is not JSON."""

    async def body(self) -> bytes:
        """The body.

        Raises:
            Refusal: 413 when it is too long, 415 when it says that it is not JSON.
        """
        if not hasattr(self, "_body"):
            self._body = await self._bounded()
        return self._body

    async def json(self) -> Any:
        """The body's JSON value.

        Raises:
            Refusal: 400 when it is not UTF-8, not JSON, or nested too deeply.
        """
        return json_value(await self.body())

    async def _bounded(self) -> bytes:
        parts: list[bytes] = []
        size = 0
        async for part in self.stream():
            parts.append(part)
            size += len(part)
            if size > MAX_BODY_BYTES:
                raise Refusal(
                    413,
                    f"the body has more than {MAX_BODY_BYTES} bytes",
                    value=self.headers.get("content-length"),
                    do="send fewer texts in one request",
                )
        self._check_type(size)
        return b"".join(parts)

    def _check_type(self, size: int) -> None:
        kind = self.headers.get("content-type", "")
        media = kind.partition(";")[0].strip().lower()
        # Browsers send other sites' forms without asking, but never as application/json.
        if size and media != "application/json" and not (media.startswith("application/") and media.endswith("+json")):
            raise Refusal(
                415,
                f"the body is not declared as JSON but as {media or 'nothing'}",
                value=kind or None,
                do="send the header Content-Type: application/json",
            )


class CheckedRoute(GuardedRoute):
    """A guarded route that reads its body as a `CheckedRequest`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def checked(request: Request) -> Response:
            return await handler(CheckedRequest(request.scope, request.receive))

        return checked


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
