"""What Prometheus reads of an ingester."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, GCCollector, ProcessCollector, disable_created_metrics

from perdure.memory import IngestCounts
from perdure_services.monitor.registry import KnownRegistry


class IngesterMetrics:
    """All series of one ingester."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = KnownRegistry()
        self.records = Counter(
            "perdure_ingest_records",
            "Records read, repeated and unreadable ones included.",
            registry=self.registry,
        )
        self.partitions = self._gauge("ingest_partitions", "Partitions that are this process's.")
        self.lag = self._gauge(
            "ingest_lag_records",
            "Records of a partition that this process has not read yet, as of its last look.",
            "partition",
        )
        self.snapshot = self._gauge(
            "ingest_snapshot_timestamp_seconds",
            "When all that this process had read was last in snapshots, in seconds since the epoch; 0 before that.",
        )
        ProcessCollector(registry=self.registry)
        GCCollector(registry=self.registry)

    def read(self, counts: IngestCounts) -> None:
        """So much was read."""
        fresh = counts.interactions + counts.feedback + counts.erasures
        self.records.inc(fresh + counts.repeated + counts.quarantined)

    def gone(self, partition: int) -> None:
        """The partition is not this process's any more."""
        # Not there yet where it was taken over and never read.
        self.lag.labels(str(partition))
        self.lag.remove(str(partition))

    def _gauge(self, name: str, meaning: str, *labels: str) -> Gauge:
        return Gauge(f"perdure_{name}", meaning, labels, registry=self.registry)
