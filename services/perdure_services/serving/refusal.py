"""What the API answers instead of what was asked: one shape, whatever went wrong."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Coroutine, Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from perdure.errors import PerdureError, RegistryError, StalePromotion, UsageError, VersionDamaged, VersionNotFound
from perdure_services.keys import redacted
from perdure_services.serving.request_id import request_id
from perdure_services.serving.route import route_of
from perdure_services.serving.security_headers import ALWAYS, DATA_POLICY, POLICY

MAX_VALUE_CHARS = 120
"""A refused value is shown up to this length."""

TOO_LARGE = "too_large"
"""Type of a validation error that is answered 413."""

HALF = "string_unicode"
"""Type of pydantic's error for a string that holds half of a surrogate pair."""

PROTOCOL = "/v2"
"""Below this path the Open Inference Protocol is spoken."""

_log = logging.getLogger(__name__)


class Refusal(HTTPException):
    """A request that is not answered: what happened, the value received, and what to do."""

    def __init__(
        self, status: int, what: str, *, do: str, value: Any = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(status, detail=what, headers=dict(headers) if headers else None)
        self.what = what
        self.value = value
        self.do = do


class RefusalResponse(JSONResponse):
    """A problem of RFC 9457, in ASCII: a lone surrogate in a refused value must not break the answer."""

    media_type = "application/problem+json"

    def render(self, content: Any) -> bytes:
        return json.dumps(content, ensure_ascii=True, separators=(",", ":")).encode("ascii")


Handler = Callable[[Request, Exception], Coroutine[Any, Any, RefusalResponse]]


def answer(
    status: int, what: str, *, do: str, value: Any = None, headers: Mapping[str, str] | None = None
) -> RefusalResponse:
    """The response of one refusal; the secrets of API keys that stand in what was received are not shown."""
    what = redacted(what)
    problem = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": what,
        "request_id": request_id(),
        "error": {"what": what, "value": _shown(value), "do": do},
    }
    return RefusalResponse(problem, status_code=status, headers=headers)


def install(app: FastAPI) -> None:
    """Gives every error of `app` the one shape."""
    handlers: dict[type[Exception], Handler] = {
        Refusal: _refusal,
        HTTPException: _http,
        RequestValidationError: _invalid,
        PerdureError: _perdure,
        Exception: _unexpected,
    }
    for kind, handler in handlers.items():
        app.add_exception_handler(kind, _in_protocol(handler))


def _in_protocol(handler: Handler) -> Handler:
    """Below /v2 the inference protocol wants `error` to be a string, and its clients take it for one."""

    async def handle(request: Request, error: Exception) -> RefusalResponse:
        refused = await handler(request, error)
        if not request.url.path.startswith(PROTOCOL):
            return refused
        problem = json.loads(bytes(refused.body))
        cause = problem["error"]
        problem = {**problem, "error": f"{cause['what']}: {cause['do']}", "value": cause["value"], "do": cause["do"]}
        headers = {name: value for name, value in refused.headers.items() if not name.startswith("content-")}
        return RefusalResponse(problem, status_code=refused.status_code, headers=headers)

    return handle


def _shown(value: Any) -> Any:
    if value is None or isinstance(value, bool | int):
        return value
    text = redacted(value if isinstance(value, str) else repr(value))
    return text if len(text) <= MAX_VALUE_CHARS else f"{text[:MAX_VALUE_CHARS]}…"


async def _refusal(request: Request, error: Exception) -> RefusalResponse:
    assert isinstance(error, Refusal)
    return answer(error.status_code, error.what, value=error.value, do=error.do, headers=error.headers)


async def _http(request: Request, error: Exception) -> RefusalResponse:
    assert isinstance(error, HTTPException)
    path = request.url.path
    if error.status_code == 404:
        return answer(404, f"there is nothing at {path}", value=path, do="see /docs for what there is")
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "another method")
        what = f"{request.method} is not allowed at {path}"
        return answer(405, what, value=request.method, do=f"use {allowed}", headers=error.headers)
    return answer(error.status_code, str(error.detail), do="see /docs", headers=error.headers)


def refusal_of(first: Mapping[str, Any]) -> Refusal:
    """What is said to the first of pydantic's errors on a request."""
    # Parts with a bracket are pydantic's names for the branches of a union.
    place = ".".join(str(part) for part in first["loc"] if part != "body" and "[" not in str(part))
    reason = "holds half of a surrogate pair, which is not Unicode" if first["type"] == HALF else str(first["msg"])
    if not place and first["type"] in {"missing", "model_attributes_type"}:
        return Refusal(422, "the body is not a JSON object", value=first["input"], do="send a JSON object; see /docs")
    what = f"{place}: {reason}" if place else reason
    status = 413 if first["type"] == TOO_LARGE else 422
    return Refusal(status, what, value=first["input"], do="correct it and send the request again; see /docs")


async def _invalid(request: Request, error: Exception) -> RefusalResponse:
    assert isinstance(error, RequestValidationError)
    return await _refusal(request, refusal_of(error.errors()[0]))


def refusal_for(error: PerdureError) -> Refusal:
    """What is said to an error of ours; 503 to one that another try, or an operator, may mend."""
    if isinstance(error, VersionNotFound):
        return Refusal(404, str(error), do="GET /v1/versions lists what there is")
    if isinstance(error, StalePromotion | VersionDamaged):
        return Refusal(409, str(error), do="look at GET /v1/versions and decide again")
    if isinstance(error, UsageError):
        return Refusal(422, str(error), do="correct it and send the request again; see /docs")
    do = "look at the registry and try again" if isinstance(error, RegistryError) else "try again later"
    return Refusal(503, str(error), do=do, headers={"Retry-After": "1"})


async def _perdure(request: Request, error: Exception) -> RefusalResponse:
    assert isinstance(error, PerdureError)
    refusal = refusal_for(error)
    if refusal.status_code == 503:
        _log.error("%s %s could not be done: %s", request.method, route_of(request.scope), redacted(str(error)))
    return await _refusal(request, refusal)


async def _unexpected(request: Request, error: Exception) -> RefusalResponse:
    _log.error("%s %s failed", request.method, route_of(request.scope), exc_info=error)
    what = f"the server failed on this request: {type(error).__name__}"
    # This answer is made outside of all middleware.
    return answer(500, what, do="try again; the server's log says more", headers={**ALWAYS, POLICY: DATA_POLICY})
