"""What Prometheus reads: one registry an app, so that several apps may live in one process."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

KEPT_VERSIONS = 3
"""Predictions are counted by version and label for this many versions served last; older series go."""

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_TEXTS = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """All series of one serving app."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = self._counter("requests", "Requests answered.", "method", "route", "status")
        self.request_seconds = Histogram(
            "perdure_request_seconds",
            "Time to answer a request.",
            ("route",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.in_flight = self._gauge("requests_in_flight", "Requests that are being answered.")
        self.queue = self._gauge("queue_requests", "Requests that wait for the model.")
        self.queue_wait = self._gauge("queue_expected_seconds", "How long a new request is expected to wait.")
        self.shed = self._counter("requests_shed", "Requests refused because they would have waited too long.")
        self.abandoned = self._counter(
            "requests_abandoned", "Requests that left the queue uncomputed: their time was up, or the client had gone."
        )
        self.batch_texts = Histogram(
            "perdure_batch_texts", "Texts answered at once.", buckets=_TEXTS, registry=self.registry
        )
        self.batch_seconds = Histogram(
            "perdure_batch_seconds", "Time that the model took for a batch.", buckets=_SECONDS, registry=self.registry
        )
        self.predictions = self._counter("predictions", "Predictions served.", "version", "label")
        self.champion = self._gauge("champion_info", "1 for the version that is served.", "version", "promotion")
        self.swaps = self._counter("swaps", "Times that another version began to serve.")
        self.load_failures = self._counter("load_failures", "Tries to load a version that failed.")
        self.registry_failures = self._counter("registry_failures", "Looks at the registry that failed.")
        self.records = self._counter(
            "records",
            "Records by what became of them: recorded (durable here, or in a stream on this machine), withdrawn, or "
            "dropped (no room for them, or refused by the stream for good).",
            "outcome",
        )
        self.record_retries = self._counter(
            "record_retries", "Writes to a stream on this machine that failed and were tried again."
        )
        self.unsent = self._gauge("records_unsent", "Records queued in memory, not durable yet.")
        self.unsent_seconds = self._gauge("records_unsent_seconds", "Age of the oldest record queued in memory.")
        self.spooled = self._gauge("spool_records", "Records on disk that a remote stream has not acknowledged.")
        self.spooled_bytes = self._gauge("spool_bytes", "Bytes on disk that a remote stream has not acknowledged.")
        self.spooled_seconds = self._gauge(
            "spool_oldest_seconds", "Age of the oldest record on disk that a remote stream has not acknowledged."
        )
        self.spool_damaged = self._gauge("spool_damaged_segments", "Files of the spool found damaged since the start.")
        self.stream_acknowledged = self._counter("stream_acknowledged", "Records that a remote stream acknowledged.")
        self.stream_resent = self._counter(
            "stream_resent", "Records sent to a remote stream once more, because it did not acknowledge them."
        )
        self._lock = threading.Lock()
        self._served: dict[str, set[str]] = {}

    def swapped(self, version: str, promotion: int) -> None:
        """Another promotion is followed from now on."""
        self.champion.clear()
        self.champion.labels(version, str(promotion)).set(1)
        with self._lock:
            labels = self._served.pop(version, set())
            self._served[version] = labels
            for old in list(self._served)[:-KEPT_VERSIONS]:
                for label in self._served.pop(old):
                    self.predictions.remove(old, label)

    def predicted(self, version: str, labels: Sequence[str]) -> None:
        """`version` has answered `labels`."""
        with self._lock:
            known = self._served.get(version)
            # The last answers of a version whose series are gone already are not counted.
            if known is not None:
                known.update(labels)
                for label in labels:
                    self.predictions.labels(version, label).inc()

    def watch(self, gauge: Gauge, value: Callable[[], float]) -> None:
        """Reads `gauge` from `value` whenever it is asked for."""
        gauge.set_function(value)

    def text(self) -> bytes:
        """All series in Prometheus' text format."""
        return generate_latest(self.registry)

    def _counter(self, name: str, meaning: str, *labels: str) -> Counter:
        return Counter(f"perdure_{name}", meaning, labels, registry=self.registry)

    def _gauge(self, name: str, meaning: str, *labels: str) -> Gauge:
        return Gauge(f"perdure_{name}", meaning, labels, registry=self.registry)
