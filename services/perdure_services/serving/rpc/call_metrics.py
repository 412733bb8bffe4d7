"""What Prometheus reads of calls over gRPC."""

from __future__ import annotations

import grpc
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class CallMetrics:
    """Counts and times every call."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._handled = Counter(
            "perdure_grpc_requests", "Calls over gRPC that ended, by status.", ("method", "code"), registry=registry
        )
        self._seconds = Histogram(
            "perdure_grpc_request_duration_seconds",
            "Time to answer a call over gRPC.",
            ("method",),
            buckets=_SECONDS,
            registry=registry,
        )
        self.in_flight = Gauge(
            "perdure_grpc_requests_in_flight", "Calls over gRPC that are being answered.", registry=registry
        )

    def ended(self, method: str, code: grpc.StatusCode, seconds: float) -> None:
        """A call of `method`, one of ours or `other`, took `seconds`."""
        self._handled.labels(method, code.name).inc()
        self._seconds.labels(method).observe(seconds)
