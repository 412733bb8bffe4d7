"""The span of a call, by OpenTelemetry's conventions for gRPC.

https://opentelemetry.io/docs/specs/semconv/rpc/grpc/
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import grpc

from perdure_services.serving.route import OTHER
from perdure_services.serving.rpc.call import Call
from perdure_services.serving.tracing import Tracing

if TYPE_CHECKING:
    from opentelemetry.trace import Span

_UNKNOWN = "_OTHER"

FAILURES = frozenset(
    {
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DATA_LOSS,
    }
)
"""What the conventions count as failures of the server."""


class CallSpan:
    """One call's; without `tracing` there is none, and nothing is done."""

    def __init__(self, tracing: Tracing | None) -> None:
        self._tracing = tracing
        self._span: Span | None = None

    @contextmanager
    def around(self, service: str, name: str, call: Call) -> Iterator[None]:
        """A span around the answer to the call `name`, one of ours or `other`."""
        if self._tracing is None:
            yield
            return
        method = _UNKNOWN if name == OTHER else f"{service}/{name}"
        headers = {key.decode("latin-1"): value.decode("latin-1") for key, value in call.headers}
        attributes = {"rpc.system.name": "grpc", "rpc.method": method, "perdure.request_id": call.id}
        with self._tracing.request("grpc" if name == OTHER else method, headers, attributes) as self._span:
            yield

    def ended(self, code: grpc.StatusCode, cause: str) -> None:
        """The call has the status `code`; `cause` names the exception that led to it, if one did."""
        if self._span is None:
            return
        from opentelemetry.trace import StatusCode

        self._span.set_attribute("rpc.response.status_code", code.name)
        if code in FAILURES:
            self._span.set_status(StatusCode.ERROR)
            self._span.set_attribute("error.type", cause if code is grpc.StatusCode.INTERNAL else code.name)
