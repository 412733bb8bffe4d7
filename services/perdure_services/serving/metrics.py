"""What Prometheus reads: one registry an app, so that several apps may live in one process.

Names follow Prometheus' own rules (base units, `_total`, `_seconds`, `_info`) and, where there is one, the name that
people look for: an HTTP server's requests, their duration and those in flight; a model server's batch size, queue time
and inference duration. docs/metrics.md lists them all; `make metrics-table` writes it.
"""

from __future__ import annotations

import platform
import threading
from collections.abc import Callable, Sequence
from importlib.metadata import version as installed

from prometheus_client import (
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.exposition import choose_encoder

from perdure_services.monitor.registry import KnownRegistry

KEPT_VERSIONS = 3
"""What is counted by version is kept for this many versions served last; older series go."""

MAX_LABELS = 1000
"""Predictions are counted by label for this many labels of a version; those of all others together."""

OTHER_LABELS = "(other)"

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_WAITS = (0.0001, 0.0005, *_SECONDS)
_TEXTS = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """All series of one serving app."""

    def __init__(self) -> None:
        # When each series began is a series of its own that nobody asked for, and doubles them.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = KnownRegistry()
        self.requests = self._counter("http_requests", "Requests answered.", "method", "route", "status")
        self.request_seconds = self._histogram(
            "http_request_duration_seconds", "Time to answer a request.", _SECONDS, "method", "route"
        )
        self.in_flight = self._gauge("http_requests_in_flight", "Requests that are being answered.")
        self.queue = self._gauge("requests_waiting", "Requests that wait for the model.")
        self.queue_wait = self._gauge("queue_expected_seconds", "How long a new request is expected to wait.")
        self.shed = self._counter("requests_shed", "Requests refused because they would have waited too long.")
        self.abandoned = self._counter(
            "requests_abandoned", "Requests that left the queue uncomputed: their time was up, or the client had gone."
        )
        self.queue_seconds = self._histogram(
            "queue_time_seconds", "Time that a request waited for the model.", _WAITS, "version"
        )
        self.batch_texts = self._histogram("batch_size", "Texts answered at once.", _TEXTS, "version")
        self.batch_seconds = self._histogram(
            "inference_duration_seconds", "Time that the model took for a batch.", _SECONDS, "version"
        )
        self.record_seconds = self._histogram(
            "record_duration_seconds", "Time that an answer waited for its record to be durable.", _WAITS
        )
        self.predictions = self._counter(
            "predictions", f"Predictions served; labels beyond {MAX_LABELS} count as one.", "version", "label"
        )
        self.champion = self._gauge("champion_info", "1 for the version that is served.", "version", "promotion")
        self.swaps = self._counter("swaps", "Times that another version began to serve.")
        self.load_failures = self._counter("load_failures", "Tries to load a version that failed.")
        self.registry_failures = self._counter("registry_failures", "Looks at the registry that failed.")
        self.registry_reachable = self._gauge("registry_reachable", "1 while looks at the registry succeed, else 0.")
        self.registry_read = self._gauge(
            "registry_read_timestamp_seconds", "When the registry was last read, in seconds since the epoch."
        )
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
        build = self._gauge("build_info", "1 for what runs here.", "version", "python")
        build.labels(installed("perdure"), platform.python_version()).set(1)
        ProcessCollector(registry=self.registry)
        GCCollector(registry=self.registry)
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
                for by_version in (self.queue_seconds, self.batch_texts, self.batch_seconds):
                    by_version.remove(old)

    def predicted(self, version: str, labels: Sequence[str]) -> None:
        """`version` has answered `labels`."""
        with self._lock:
            known = self._served.get(version)
            # The last answers of a version whose series are gone already are not counted.
            if known is not None:
                for label in labels:
                    shown = label if label in known or len(known) < MAX_LABELS else OTHER_LABELS
                    known.add(shown)
                    self.predictions.labels(version, shown).inc()

    def computed(self, version: str, texts: int, seconds: float) -> None:
        """`version` took `seconds` for a batch of `texts`."""
        with self._lock:
            if version in self._served:
                self.batch_texts.labels(version).observe(texts)
                self.batch_seconds.labels(version).observe(seconds)

    def waited(self, version: str, waits: Sequence[float]) -> None:
        """Requests that `version` has answered had waited for `waits` seconds each."""
        with self._lock:
            if version in self._served:
                histogram = self.queue_seconds.labels(version)
                for wait in waits:
                    histogram.observe(wait)

    def watch(self, gauge: Gauge, value: Callable[[], float]) -> None:
        """Reads `gauge` from `value` whenever it is asked for."""
        gauge.set_function(value)

    def text(self) -> bytes:
        """All series in Prometheus' text format."""
        return generate_latest(self.registry)

    def exposed(self, accept: str) -> tuple[bytes, str]:
        """All series, and their content type: OpenMetrics where `accept` asks for it, else Prometheus' text format."""
        encode, kind = choose_encoder(accept)
        return encode(self.registry), kind

    def _counter(self, name: str, meaning: str, *labels: str) -> Counter:
        return Counter(f"perdure_{name}", meaning, labels, registry=self.registry)

    def _gauge(self, name: str, meaning: str, *labels: str) -> Gauge:
        return Gauge(f"perdure_{name}", meaning, labels, registry=self.registry)

    def _histogram(self, name: str, meaning: str, buckets: Sequence[float], *labels: str) -> Histogram:
        return Histogram(f"perdure_{name}", meaning, labels, buckets=buckets, registry=self.registry)
