"""Answers that say no, as errors."""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import Any

from pydantic import ValidationError

from perdure.client.operation import Operation, Reply
from perdure.client.retry_after import seconds_of
from perdure.errors import (
    ApiAnswerUnreadable,
    ApiBusy,
    ApiConflict,
    ApiKeyRefused,
    ApiNotFound,
    ApiRefused,
    ApiRequestInvalid,
)

MAX_DETAIL_CHARS = 500
"""An explanation is shown up to this length."""

REQUEST_ID = "x-request-id"
"""Header of every answer."""

_KINDS: dict[int, tuple[type[ApiRefused], str]] = {
    400: (ApiRequestInvalid, "correct the request"),
    401: (ApiKeyRefused, "give an API key that this API knows, as api_key or in PERDURE_API_KEY"),
    403: (ApiKeyRefused, "give an API key that may do this"),
    404: (ApiNotFound, "see versions() for what there is, and that the URL is the API's"),
    408: (ApiBusy, "send less in one request, or give it more time with timeout"),
    409: (ApiConflict, "look at versions() and decide again"),
    413: (ApiRequestInvalid, "send less in one request"),
    415: (ApiRequestInvalid, "correct the request"),
    422: (ApiRequestInvalid, "correct the request"),
    429: (ApiBusy, "send fewer requests at once, or try again later"),
    502: (ApiBusy, "try again later"),
    503: (ApiBusy, "try again later"),
    504: (ApiBusy, "try again later"),
}


def refusal(operation: Operation[Any], reply: Reply, url: str) -> ApiRefused:
    """The error for `reply`.

    Understood are problem details (RFC 9457: `title`, `detail`, and the members `value` and `do`), an `error` with
    `what`, `value` and `do`, and plain text, as a proxy may send it.
    """
    said = _said(reply.body)
    title = _text(said.get("title")) or _phrase(reply.status)
    detail = _text(said.get("detail")) or "no reason was given"
    value = said.get("value")
    kind, otherwise = _KINDS.get(reply.status, (ApiRefused, "see the API's log, or try again later"))
    if 300 <= reply.status < 400:
        otherwise = f"give the URL that it names: {reply.headers.get('location', 'none')}"
    do = _text(said.get("do")) or otherwise
    if not operation.repeatable and reply.status >= 500:
        do += ". It may have been done all the same: look at versions() before it is asked again"
    shown = "" if value is None else f" (value: {value!r})"
    id = reply.headers.get(REQUEST_ID)
    named = "" if id is None else f" (request {id})"
    return kind(
        f"the API at {url} refused {operation.name} with {reply.status} {title}: {detail}{shown}{named}. Do: {do}",
        status=reply.status,
        title=title,
        detail=detail,
        value=value,
        do=do,
        retry_after=seconds_of(reply.headers),
        request_id=id,
    )


def unreadable(operation: Operation[Any], reply: Reply, url: str, why: Exception) -> ApiAnswerUnreadable:
    """The error for an answer that says yes, but cannot be read."""
    if isinstance(why, ValidationError):
        first = why.errors(include_url=False)[0]
        reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}".removeprefix(": ")
    else:
        reason = str(why)
    start = reply.body[:80].decode("utf-8", "replace")
    return ApiAnswerUnreadable(
        f"the answer to {operation.name} from {url} cannot be read: {reason}. It begins with {start!r}. "
        "See that the URL is the API's, and that client and API are of the same version"
    )


def _said(body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return {"detail": " ".join(body.decode("utf-8", "replace").split())}
    if not isinstance(found, dict):
        return {}
    error = found.get("error")
    if isinstance(error, dict):
        return {"title": found.get("title"), "detail": error.get("what"), **error}
    # Readiness has a `reason`.
    return {"detail": error or found.get("reason"), **found}


def _text(value: Any) -> str:
    if value is None:
        return ""
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= MAX_DETAIL_CHARS else f"{text[:MAX_DETAIL_CHARS]}…"


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "unknown status"
