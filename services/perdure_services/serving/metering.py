"""Counts and times every request, whatever answers it."""

from __future__ import annotations

import time

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from perdure_services.serving.access import caller_of
from perdure_services.serving.access_log import log_request
from perdure_services.serving.metrics import Metrics
from perdure_services.serving.route import method_of, route_of
from perdure_services.serving.watched_send import WatchedSend


class Metering:
    """ASGI middleware that feeds `Metrics`, and the log of requests where `access_log` asks for one."""

    def __init__(self, app: ASGIApp, metrics: Metrics, *, access_log: bool = False) -> None:
        self._app = app
        self._metrics = metrics
        self._access_log = access_log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        watched = WatchedSend(send)
        start = time.perf_counter()
        with self._metrics.in_flight.track_inprogress():
            try:
                await self._app(scope, receive, watched)
            finally:
                seconds = time.perf_counter() - start
                method, route = method_of(scope), route_of(scope)
                self._metrics.requests.labels(method, route, str(watched.status)).inc()
                self._metrics.request_seconds.labels(method, route).observe(seconds)
                if self._access_log:
                    log_request(method, route, watched.status, seconds, caller_of(Request(scope)))
