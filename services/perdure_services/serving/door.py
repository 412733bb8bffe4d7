"""The first thing that a request for the model meets: whether it may come in."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

from starlette.types import ASGIApp, Receive, Scope, Send

from perdure_services.serving.body import CheckedRoute
from perdure_services.serving.deadline import deadline_in, mark
from perdure_services.serving.loop_lag import LoopLag
from perdure_services.serving.refusal import Refusal, answer
from perdure_services.serving.service import Service

KNOWN_PATHS = 256
"""Paths of which it is remembered whether they ask the model."""


class Door:
    """ASGI middleware that refuses what would wait too long.

    It stands before everything that costs: routing, keys, and the body, of which not a byte is read.
    """

    def __init__(self, app: ASGIApp, service: Service, lag: LoopLag, routes: Sequence[object]) -> None:
        self._app = app
        self._service = service
        self._lag = lag
        self._routes = [route for route in routes if isinstance(route, CheckedRoute) and route.asks_model]
        self._route_at = lru_cache(KNOWN_PATHS)(self._find)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST" or not (route := self._route_at(scope["path"])):
            await self._app(scope, receive, send)
            return
        try:
            deadline = deadline_in(scope["headers"], self._service.settings.timeout_seconds)
            self._lag.check()
            self._service.batcher.check(deadline)
        except Refusal as error:
            # For those who count by route: no router has seen this.
            scope["route"] = route
            response = answer(error.status_code, error.what, value=error.value, do=error.do, headers=error.headers)
            await response(scope, receive, send)
            return
        mark(scope, deadline)
        self._lag.under_way += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._lag.under_way -= 1

    def _find(self, path: str) -> CheckedRoute | None:
        return next((route for route in self._routes if re.match(route.path_regex, path)), None)
