"""What a request is called in metrics, logs and traces."""

from __future__ import annotations

from starlette.types import Scope

OTHER = "other"

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


def route_of(scope: Scope) -> str:
    """The template of the route that answers, such as `/v1/subjects/{subject}`.

    Never the path, which may name a person, and of which clients make as many as they like.
    """
    template: str = getattr(scope.get("route"), "path_format", OTHER)
    return template


def method_of(scope: Scope) -> str:
    """The method, if it is one of HTTP's."""
    method: str = scope["method"]
    return method if method in _METHODS else OTHER
