"""The first thing that a request for the model meets: whether it may come in."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from starlette.responses import Response
from starlette.types import ASGIApp, ExceptionHandler, Receive, Scope, Send

from perdure_services.serving.access import GuardedRoute
from perdure_services.serving.deadline import deadline_in, wanted_by
from perdure_services.serving.departure import CLIENT_CLOSED_REQUEST, Departure
from perdure_services.serving.direct import DirectRoute
from perdure_services.serving.loop_lag import LoopLag
from perdure_services.serving.refusal import Refusal, answer
from perdure_services.serving.service import Service

KNOWN_PATHS = 256
"""Paths of which it is remembered whether they ask the model."""


def asks_model(route: GuardedRoute) -> bool:
    """Whether answering at `route` takes the model: it takes a body, and needs the scope `predict`."""
    return route.needed == "predict" and "POST" in (route.methods or ())


class Door:
    """ASGI middleware that refuses what would wait too long, and gives up what nobody waits for any more.

    It refuses before anything that costs: routing, keys, and the body, of which not a byte is read. What it lets in
    has a deadline, `current_deadline`, and is cancelled when its client leaves. A route that can be answered without
    the router is.

    Args:
        app: what answers all other routes.
        service: what is asked.
        lag: of the event loop.
        routes: of the app, among them those that ask the model.
        handlers: what is answered to exceptions, by their type.
    """

    def __init__(
        self,
        app: ASGIApp,
        service: Service,
        lag: LoopLag,
        routes: Sequence[object],
        handlers: Mapping[Any, ExceptionHandler],
    ) -> None:
        self._app = app
        self._service = service
        self._lag = lag
        self._routes = [route for route in routes if isinstance(route, GuardedRoute) and asks_model(route)]
        self._direct = {id(route): route.direct(handlers) for route in self._routes if isinstance(route, DirectRoute)}
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
        app = self._app
        if not scope["query_string"] and (direct := self._direct.get(id(route))) is not None:
            app = direct
            scope["route"] = route
        self._lag.under_way += 1
        try:
            with wanted_by(deadline), Departure(scope, receive):
                await app(scope, receive, send)
                return
        finally:
            self._lag.under_way -= 1
        # The client has left.
        await Response(status_code=CLIENT_CLOSED_REQUEST)(scope, receive, send)

    def _find(self, path: str) -> GuardedRoute | None:
        return next((route for route in self._routes if re.match(route.path_regex, path)), None)
