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
from perdure_services.serving.deadline import deadline_of
from perdure_services.serving.departure import CLIENT_CLOSED_REQUEST, Departure
from perdure_services.serving.refusal import Refusal
from perdure_services.serving.service import service_of


class CheckedRequest(Request):
    """A request whose body is read up to a bound, and refused in words when it is late, too long or not JSON.

    Args:
        request: what came.
        most: bytes that the body may have.
        deadline: when it must have come (monotonic seconds).
    """

    def __init__(self, request: Request, *, most: int, deadline: float) -> None:
        super().__init__(request.scope, request.receive)
        self.departure = Departure(request.receive)
        self._most = most
        self._deadline = deadline

    async def body(self) -> bytes:
        """The body.

        Raises:
            Refusal: 408 when it comes too slowly, 413 when it is too long, 415 when it says that it is not JSON.
        """
        if not hasattr(self, "_body"):
            try:
                async with asyncio.timeout(self._deadline - time.monotonic()):
                    self._body = await self._bounded()
                # Nothing but the client's departure can come after the body.
                self.departure.watch()
            except TimeoutError as error:
                raise Refusal(
                    408,
                    "the body did not come in time",
                    do="send the request again, faster or with fewer texts",
                    headers={"Connection": "close"},
                ) from error
        return self._body

    async def json(self) -> Any:
        """The body's JSON value.

        Raises:
            Refusal: 400 when it is not UTF-8, not JSON, or nested too deeply.
        """
        raw = await self.body()
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

    async def _bounded(self) -> bytes:
        parts: list[bytes] = []
        declared = self.headers.get("content-length", "")
        size = 0
        # What says that it is too long need not be read to be refused.
        if declared.isdigit() and len(declared) <= 18 and int(declared) > self._most:
            raise self._too_long()
        async for part in self.stream():
            parts.append(part)
            size += len(part)
            if size > self._most:
                raise self._too_long()
        self._check_type(size)
        return b"".join(parts)

    def _too_long(self) -> Refusal:
        return Refusal(
            413,
            f"the body has more than {self._most} bytes",
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
    """A guarded route that reads its body as a `CheckedRequest`.

    Where it asks the model (it takes a body and needs the scope `predict`), what would wait too long has been refused
    at the door; here it gives up when the client leaves.
    """

    @property
    def asks_model(self) -> bool:
        """Whether answering takes the model."""
        return self.needed == "predict" and "POST" in (self.methods or ())

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def checked(request: Request) -> Response:
            settings = service_of(request).settings
            deadline = time.monotonic() + settings.timeout_seconds
            return await handler(CheckedRequest(request, most=settings.max_body_bytes, deadline=deadline))

        async def asking(request: Request) -> Response:
            most = service_of(request).settings.max_body_bytes
            asked = CheckedRequest(request, most=most, deadline=await deadline_of(request))
            with asked.departure:
                return await handler(asked)
            return Response(status_code=CLIENT_CLOSED_REQUEST)

        return asking if self.asks_model else checked


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
