"""What surrounds every call: over HTTP, middleware does it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import Any

import grpc
from google.protobuf.message import Message

from perdure.errors import PerdureError
from perdure.logs import bind
from perdure_services.keys import KeyScope, redacted
from perdure_services.serving.access import Access
from perdure_services.serving.access_log import log_call
from perdure_services.serving.deadline import wanted_by
from perdure_services.serving.loop_lag import LoopLag
from perdure_services.serving.refusal import Refusal, refusal_for
from perdure_services.serving.request_id import HEADER
from perdure_services.serving.route import OTHER
from perdure_services.serving.rpc.call import Call, Context
from perdure_services.serving.rpc.call_metrics import CallMetrics
from perdure_services.serving.rpc.span import CallSpan
from perdure_services.serving.rpc.status import code_of, details_of, trailers_of
from perdure_services.serving.service import Service
from perdure_services.serving.tracing import Tracing

REQUEST_ID = HEADER.lower()
"""Metadata with the id of a call: of the request, if it brings one, and among the trailing ones of every answer."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Method:
    """One of the calls that can be made."""

    asked: type[Message]
    """The type of its message."""
    answer: Callable[[Any, Call], Awaitable[Message]]
    needed: KeyScope | None = None
    """The scope that its key must have; None where none is asked for."""
    asks_model: bool = False
    """Whether the answer takes the model: then it is let in only if that can be in time."""


class Handler(grpc.GenericRpcHandler):
    """Gives every call an id, a span, a deadline and a line in the log, and asks for its key.

    Of a call that may not come in no message is read, since that is asked for only afterwards: so for gRPC they are
    streams, of one message, which on the wire is the same.

    Args:
        methods: by the name of the call.
        of: the name of the service that they are of.
        service: what answers.
        access: who may ask.
        lag: of the event loop that answers.
        tracing: where spans go; None for nowhere.
    """

    def __init__(
        self,
        methods: Mapping[str, Method],
        *,
        of: str,
        service: Service,
        access: Access,
        lag: LoopLag,
        tracing: Tracing | None,
    ) -> None:
        self._service = service
        self._access = access
        self._lag = lag
        self._of = of
        self._tracing = tracing
        self._metrics = CallMetrics(service.metrics.registry)
        self._handlers = {
            f"/{of}/{name}": _streamed(partial(self._handle, name, method)) for name, method in methods.items()
        }
        self._unknown = _streamed(partial(self._handle, OTHER, None))

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any]:
        """What answers the call with these details; what is not there is refused in words."""
        return self._handlers.get(details.method, self._unknown)

    async def _handle(self, name: str, method: Method | None, messages: object, context: Context) -> Message:
        start = time.perf_counter()
        call = Call(context, self._access)
        # Never unbound: the task ends with the call.
        bind(request_id=call.id)
        named = ((REQUEST_ID, call.id),)
        context.set_trailing_metadata(named)
        span = CallSpan(self._tracing)
        with self._metrics.in_flight.track_inprogress(), span.around(self._of, name, call):
            code, cause = grpc.StatusCode.OK, ""
            try:
                return await self._answered(method, call)
            except asyncio.CancelledError:
                # Whoever asked has left, or waits no longer.
                late = context.time_remaining() == 0.0
                code = grpc.StatusCode.DEADLINE_EXCEEDED if late else grpc.StatusCode.CANCELLED
                raise
            except Exception as error:  # noqa: BLE001
                refusal = self._refusal(name, error)
                code, cause = code_of(refusal), type(error).__qualname__
            finally:
                seconds = time.perf_counter() - start
                self._metrics.ended(name, code, seconds)
                if self._service.settings.access_log:
                    log_call(name, code.name, seconds, call.key)
                span.ended(code, cause)
        return await context.abort(code, details_of(refusal, call.id), (*named, *trailers_of(refusal)))

    def _refusal(self, name: str, error: Exception) -> Refusal:
        """What is said to `error`; one that the server is to blame for is logged."""
        if isinstance(error, Refusal):
            return error
        if isinstance(error, PerdureError):
            refusal = refusal_for(error)
            if refusal.status_code == HTTPStatus.SERVICE_UNAVAILABLE:
                _log.error("%s could not be done: %s", name, redacted(str(error)))
            return refusal
        _log.error("%s failed", name, exc_info=error)
        what = f"the server failed on this request: {type(error).__name__}"
        return Refusal(500, what, do="try again; the server's log says more")

    async def _answered(self, method: Method | None, call: Call) -> Message:
        if method is None:
            raise Refusal(
                501, "there is no such method here", do="see the service's public definition for what there is"
            )
        deadline = call.deadline(self._service.settings.timeout_seconds)
        with wanted_by(deadline):
            if not method.asks_model:
                return await self._admitted(method, call, deadline)
            self._lag.check()
            self._service.batcher.check(deadline)
            self._lag.under_way += 1
            try:
                return await self._admitted(method, call, deadline)
            finally:
                self._lag.under_way -= 1

    async def _admitted(self, method: Method, call: Call, deadline: float) -> Message:
        if method.needed is not None:
            call.admit(method.needed)
        return await method.answer(await call.message(method.asked, deadline), call)


def _streamed(handle: Callable[[object, Context], Awaitable[Message]]) -> grpc.RpcMethodHandler[Any, Any]:
    return grpc.stream_unary_rpc_method_handler(handle, None, _serialised)


def _serialised(message: Message) -> bytes:
    return message.SerializeToString()
