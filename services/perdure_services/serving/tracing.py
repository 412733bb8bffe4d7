"""OpenTelemetry traces, where they are asked for: a span a request, and within it queue, model and record.

What is sent where, and how much of it, is said by OpenTelemetry's own variables (`OTEL_EXPORTER_OTLP_ENDPOINT`,
`OTEL_SERVICE_NAME`, `OTEL_TRACES_SAMPLER`, `OTEL_PROPAGATORS` and so on). A request that comes with a `traceparent`
(W3C Trace Context) goes on in that trace. Spans hold nothing that was sent: no text, no label, no path, no message of
an exception. Without traces no SDK of OpenTelemetry is imported, and it need not be installed.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.metadata import version as installed
from typing import TYPE_CHECKING, Any

from starlette.types import ASGIApp, Receive, Scope, Send

from perdure.errors import SettingError
from perdure.logs import bind, bound
from perdure_services.serving.request_id import request_id
from perdure_services.serving.route import OTHER, method_of, route_of
from perdure_services.serving.watched_send import WatchedSend

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span, Tracer

SERVICE = "perdure"
"""Name of the service where OTEL_SERVICE_NAME gives none."""

PROTOCOL = "http/protobuf"

CLOSE_SECONDS = 2.0
"""How long the last spans may take to be sent when the process ends."""

_tracer: ContextVar[Tracer | None] = ContextVar("perdure_tracer", default=None)


def note(name: str, begin: float, end: float, attributes: Mapping[str, str | int] | None = None) -> None:
    """Adds a span to that of the request which is answered here, if there is one.

    Args:
        name: what was done.
        begin: when, in seconds of `time.perf_counter`.
        end: until when.
        attributes: more about it; nothing that a client sent.
    """
    tracer = _tracer.get()
    if tracer is None:
        return
    # Of the clock that stands still for nobody; spans are dated by that on the wall.
    wall = time.time() - time.perf_counter()
    span = tracer.start_span(name, start_time=int((wall + begin) * 1e9), attributes=attributes)
    span.end(end_time=int((wall + end) * 1e9))


class Tracing:
    """Where spans go."""

    def __init__(self, provider: TracerProvider) -> None:
        from opentelemetry.propagate import extract
        from opentelemetry.trace import SpanKind, use_span

        self._provider = provider
        self.tracer = provider.get_tracer("perdure.serving", installed("perdure"))
        self._extract = extract
        self._use = use_span
        self._kind = SpanKind.SERVER

    @contextmanager
    def request(self, name: str, headers: Mapping[str, str], attributes: Mapping[str, str | int]) -> Iterator[Span]:
        """A span around the answer to one request, in the trace that its `headers` (lower-case names) name.

        What is logged in it names it, and `note` puts its spans within it. To be used in a task of the request's own.
        """
        span = self.tracer.start_span(name, self._extract(headers), kind=self._kind, attributes=attributes)
        about = span.get_span_context()
        bind(**{**bound(), "trace_id": f"{about.trace_id:032x}", "span_id": f"{about.span_id:016x}"})
        _tracer.set(self.tracer)
        try:
            # What an exception says may quote the request.
            with self._use(span, record_exception=False, set_status_on_exception=False):
                yield span
        except Exception as error:
            span.set_attribute("error.type", type(error).__qualname__)
            raise
        finally:
            span.end()

    def close(self) -> None:
        """Sends what waits, if that takes no more than `CLOSE_SECONDS`."""
        # A collector that is away is tried again for longer than a process may take to end.
        last = threading.Thread(target=self._provider.shutdown, name="perdure-last-spans", daemon=True)
        last.start()
        last.join(CLOSE_SECONDS)


def open_tracing() -> Tracing:
    """What the environment's `OTEL_*` variables say.

    Raises:
        SettingError: OpenTelemetry is not installed, or is told to speak a protocol that is not.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ModuleNotFoundError as error:
        raise SettingError(
            f"serving.traces is true, but {error.name} is not installed: pip install 'perdure[otel]', or set it to "
            "false"
        ) from error
    for variable in ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        protocol = os.environ.get(variable, PROTOCOL)
        if protocol != PROTOCOL:
            raise SettingError(
                f"{variable} is {protocol!r}, but traces are sent as {PROTOCOL} only: unset it, and let "
                "OTEL_EXPORTER_OTLP_ENDPOINT name the collector's port for HTTP, often 4318"
            )
    resource = Resource.create({SERVICE_VERSION: installed("perdure")})
    if str(resource.attributes[SERVICE_NAME]).startswith("unknown_service"):
        resource = resource.merge(Resource({SERVICE_NAME: SERVICE}))
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Tracing(provider)


class Traced:
    """ASGI middleware that makes a span of every request."""

    def __init__(self, app: ASGIApp, tracing: Tracing) -> None:
        from opentelemetry.trace import Status, StatusCode

        self._app = app
        self._tracing = tracing
        self._failed = Status(StatusCode.ERROR)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        watched = WatchedSend(send)
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        method = method_of(scope)
        called = method
        if method == OTHER:
            # As OpenTelemetry's conventions have it.
            method, called = "_OTHER", "HTTP"
        attributes: dict[str, Any] = {
            "http.request.method": method,
            "url.scheme": scope["scheme"],
            "network.protocol.version": scope["http_version"],
            "perdure.request_id": request_id() or "",
        }
        with self._tracing.request(called, headers, attributes) as span:
            try:
                await self._app(scope, receive, watched)
            finally:
                route = route_of(scope)
                if route != OTHER:
                    span.update_name(f"{called} {route}")
                    span.set_attribute("http.route", route)
                span.set_attribute("http.response.status_code", watched.status)
                if watched.status >= 500:
                    span.set_status(self._failed)
