"""The app: routes, errors and the life of what stands behind them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from starlette.concurrency import run_in_threadpool
from starlette.types import ASGIApp

from perdure.config import Settings
from perdure.errors import SettingError
from perdure.model.base import Classifier
from perdure.registry import Registry, Remembered
from perdure.stream.base import Stream
from perdure_services.serving import embeddings, health, open_inference, predictions, refusal, subjects, versions
from perdure_services.serving.access import Access, GuardedRoute, open_to_all
from perdure_services.serving.deadline import HEADER
from perdure_services.serving.description import described
from perdure_services.serving.door import Door
from perdure_services.serving.explanations import Explanations
from perdure_services.serving.farewell import Farewell
from perdure_services.serving.loop_lag import LoopLag
from perdure_services.serving.metering import Metering
from perdure_services.serving.request_id import RequestIds
from perdure_services.serving.security_headers import SecurityHeaders
from perdure_services.serving.service import Service, service_of
from perdure_services.serving.tracing import Traced, open_tracing

NO_TELEMETRY: Any = {"tracing": False, "metrics": False, "logs": False, "auto_configure": False}
"""For FastAPI, whose newer releases send spans and logs of their own wherever a provider of OpenTelemetry is set up:
with paths and with the messages of exceptions, and so with what clients sent. `tracing.py` does without those."""

DESCRIPTION = f"""Predictions by a model that keeps learning, and what people say of them.

How long you will wait for a prediction may be said in the header `{HEADER}`, in milliseconds: after them it is not
computed any more, and answered 504. Where more is asked than can be answered soon, the answer is 429, and `Retry-After`
says when there will be room.
"""

CLOSE_SECONDS = 1.0
"""How long an explanation under way may take when everything else has ended."""


class Application(FastAPI):
    """FastAPI, all of whose answers have a request id: also those that Starlette makes outside of all middleware."""

    def build_middleware_stack(self) -> ASGIApp:
        return RequestIds(super().build_middleware_stack())


def create_app(settings: Settings, *, registry: Registry, stream: Stream, load: Callable[[str], Classifier]) -> FastAPI:
    """The serving app, over a registry, a stream, and a way to load a version by its name.

    Its threads start and stop with the app's lifespan. Registry and stream stay the caller's to close. `load` is
    called in a thread of its own and may raise any `PerdureError` or `OSError`: what is served then stays.

    Raises:
        SettingError: the file of keys cannot be used; gRPC is wanted, or traces, and cannot be had.
        OSError: the port for gRPC is taken.
    """
    rpc = _rpc(settings) if settings.serving.grpc_port is not None else None
    service = Service(
        settings.serving,
        registry=registry,
        stream=stream,
        load=load,
        max_tokens=settings.model.max_tokens,
        # A registry in memory is never the one of the start before.
        remembered=None if registry.name == "memory://" else Remembered(Path(settings.registry.cache), registry.name),
    )
    access = Access(settings.serving, service.metrics.registry)
    explanations = Explanations(settings, service)
    lag = LoopLag(service.metrics.shed)
    tracing = open_tracing() if settings.serving.traces else None

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.start()
        beating = asyncio.create_task(lag.beat())
        try:
            async with AsyncExitStack() as stack:
                if rpc is not None:
                    app.state.grpc_port = await stack.enter_async_context(
                        rpc(settings.serving, service, access, lag, tracing)
                    )
                yield
        finally:
            beating.cancel()
            await run_in_threadpool(service.close)
            await run_in_threadpool(explanations.close, CLOSE_SECONDS)
            if tracing is not None:
                await run_in_threadpool(tracing.close)

    app = Application(
        title="Perdure",
        version=installed("perdure"),
        description=DESCRIPTION,
        lifespan=lifespan,
        telemetry=NO_TELEMETRY,
    )
    app.state.service = service
    app.state.access = access
    app.state.explanations = explanations
    app.router.route_class = GuardedRoute
    refusal.install(app)
    asking = [*predictions.router.routes, *embeddings.router.routes, *open_inference.router.routes]
    # Starlette answers exceptions that nobody expects outside of all middleware.
    expected = {kind: handler for kind, handler in app.exception_handlers.items() if kind is not Exception}
    app.add_middleware(Door, service=service, lag=lag, routes=asking, handlers=expected)
    app.add_middleware(Metering, metrics=service.metrics, access_log=settings.serving.access_log)
    app.add_middleware(Farewell, draining=lambda: service.draining)
    app.add_middleware(SecurityHeaders)
    if tracing is not None:
        app.add_middleware(Traced, tracing=tracing)
    for routes in (predictions, embeddings, versions, subjects, open_inference, health):
        app.include_router(routes.router)
    app.add_api_route("/", index, include_in_schema=False)
    app.openapi = partial(described, app)  # type: ignore[method-assign]
    return app


def _rpc(settings: Settings) -> Callable[..., AbstractAsyncContextManager[int]]:
    try:
        from perdure_services.serving.rpc.server import check_settings, running
    except ImportError as error:
        raise SettingError(
            f"serving.grpc_port is set, but gRPC is not installed ({error}): install perdure[grpc], or leave it out"
        ) from error
    check_settings(settings.serving)
    return running


@open_to_all
async def index(request: Request) -> dict[str, Any]:
    """What is here."""
    current = service_of(request).champions.current
    return {
        "name": "perdure",
        "version": installed("perdure"),
        "serving": current.version if current else None,
        "see": ["/docs", "/v1/versions", "/v2", "/metrics", "/healthz", "/readyz"],
    }
