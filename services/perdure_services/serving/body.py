"""Request bodies: bounded, in time, UTF-8, JSON."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Coroutine
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from perdure_services.serving.access import GuardedRoute
from perdure_services.serving.deadline import current_deadline
from perdure_services.serving.departure import watch_from_now
from perdure_services.serving.refusal import Refusal
from perdure_services.serving.service import service_of


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
    """A request whose body is read up to a bound, and refused in words when it is late, too long or not JSON.

    Its bound is the setting `serving.max_body_bytes`; it must come by the request's deadline, or within
    `serving.timeout_seconds`. From then on the client's departure is watched for, where somebody wants to know of it.
    """

    async def body(self) -> bytes:
        """The body.

        Raises:
            Refusal: 408 when it comes too slowly, 413 when it is too long, 415 when it says that it is not JSON.
        """
        if not hasattr(self, "_body"):
            settings = service_of(self).settings
            seconds = min(current_deadline() - time.monotonic(), settings.timeout_seconds)
            try:
                async with asyncio.timeout(seconds):
                    self._body = await self._bounded(settings.max_body_bytes)
            except TimeoutError as error:
                raise Refusal(
                    408,
                    "the body did not come in time",
                    do="send the request again, faster or with fewer texts",
                    headers={"Connection": "close"},
                ) from error
            watch_from_now(self)
        return self._body

    async def json(self) -> Any:
        """The body's JSON value.

        Raises:
            Refusal: 400 when it is not UTF-8, not JSON, or nested too deeply.
        """
        return json_value(await self.body())

    async def _bounded(self, most: int) -> bytes:
        parts: list[bytes] = []
        declared = self.headers.get("content-length", "")
        size = 0
        # What says that it is too long need not be read to be refused.
        if declared.isascii() and declared.isdigit() and len(declared) <= 18 and int(declared) > most:
            raise self._too_long(most)
        async for part in self.stream():
            parts.append(part)
            size += len(part)
            if size > most:
                raise self._too_long(most)
        self._check_type(size)
        return b"".join(parts)

    def _too_long(self, most: int) -> Refusal:
        return Refusal(
            413,
            f"the body has more than {most} bytes",
            value=self.headers.get("content-length"),
            do="send fewer texts in one request",
        )

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
