"""The OpenAPI description: what FastAPI derives from routes and types, and what it cannot know.

That is how requests are refused: always as a problem of RFC 9457, with statuses that follow from what an operation is
(one that asks for a key may answer 401, one with a body 415), so that they are right for routes to come as well.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel

from perdure_services.serving.access import SECURITY_SCHEMES
from perdure_services.serving.request_id import HEADER

PROBLEM = "application/problem+json"

METRICS = "/metrics"

STATES = re.compile(r"/(\w+z|live|ready)$")
"""Paths that tell a state: they answer 503 with the same content as 200."""

CONFLICTS = frozenset(
    {
        "/v1/feedback",
        "/v1/predict",
        "/v1/rollback",
        "/v1/versions/{version}/promote",
        "/v2/models/{name}/infer",
        "/v2/models/{name}/versions/{version}/infer",
    }
)
"""Paths that answer 409 where what is asked for does not go with the state of things."""

BEYOND_VERSIONS = frozenset({"/v1/embeddings", "/v1/predict"})
"""Paths that answer 501 where the version that serves cannot do it, or what is installed here."""

MAY_BE_ABSENT = frozenset({"name", "version"})
"""Path parameters that name something which must be there."""

_BODY = (400, 408, 413, 415, 422)
_GUARDED = (401, 403, 429)
_WORKING = (500, 503, 504)
_SAYS_WHEN = frozenset({429, 503})


class ProblemCause(BaseModel):
    """What happened, the value received, and what to do."""

    what: str
    value: str | bool | int | None
    do: str


class Problem(BaseModel):
    """Why a request was refused, as RFC 9457 has it."""

    type: str
    title: str
    status: int
    detail: str
    request_id: str | None
    """The same as in the header X-Request-ID; the server's log knows the request by it."""
    error: ProblemCause | str
    """A sentence where the inference protocol wants one."""


def described(app: FastAPI) -> dict[str, Any]:
    """The description of `app`, computed once."""
    if app.openapi_schema is None:
        description = FastAPI.openapi(app)
        components = description.setdefault("components", {})
        components["securitySchemes"] = SECURITY_SCHEMES
        schemas = components.setdefault("schemas", {})
        for theirs in ("HTTPValidationError", "ValidationError"):
            schemas.pop(theirs, None)
        schemas["Problem"] = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas["ProblemCause"] = schemas["Problem"].pop("$defs")["ProblemCause"]
        for path, operations in description["paths"].items():
            for operation in operations.values():
                _complete(path, operation)
        app.openapi_schema = description
    return app.openapi_schema


def _complete(path: str, operation: dict[str, Any]) -> None:
    responses = operation["responses"]
    # FastAPI's own kind of refusal is never sent.
    responses.pop("422", None)
    if path == METRICS:
        text = {"schema": {"type": "string"}}
        responses["200"]["content"] = {"text/plain": text, "application/openmetrics-text": text}
    for status in sorted(_refusals(path, operation)):
        responses.setdefault(str(status), _refusal(status))
    if STATES.search(path):
        responses["503"] = {**responses["200"], "description": "It is not so; the answer says why, where it can."}
    for response in responses.values():
        response.setdefault("headers", {})[HEADER] = {
            "description": "The id of the request: the one that it came with, or a new one.",
            "schema": {"type": "string"},
            "required": True,
        }


def _refusals(path: str, operation: dict[str, Any]) -> Iterator[int]:
    yield 500
    if "security" in operation:
        yield from _GUARDED
        if path != METRICS:
            yield from _WORKING
    if "requestBody" in operation:
        yield from _BODY
    if path in CONFLICTS:
        yield 409
    if path in BEYOND_VERSIONS:
        yield 501
    for parameter in operation.get("parameters", ()):
        if parameter["in"] == "path" and parameter["name"] in MAY_BE_ABSENT:
            yield 404
        else:
            yield 422


def _refusal(status: int) -> dict[str, Any]:
    response: dict[str, Any] = {
        "description": HTTPStatus(status).phrase,
        "content": {PROBLEM: {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }
    if status in _SAYS_WHEN:
        response["headers"] = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}}
    if status == HTTPStatus.UNAUTHORIZED:
        response["headers"] = {"WWW-Authenticate": {"schema": {"type": "string"}, "required": True}}
    return response
