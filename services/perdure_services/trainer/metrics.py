"""What Prometheus reads of a trainer."""

from __future__ import annotations

import time

from prometheus_client import Counter, Gauge, GCCollector, Histogram, ProcessCollector, disable_created_metrics

from perdure.config import TrainerSettings
from perdure.turn import TurnResult
from perdure_services.monitor.registry import KnownRegistry
from perdure_services.trainer.turn_process import Outcome

OUTCOMES = (
    "promoted",
    "kept",
    "inconclusive",
    "stale",
    "nothing",
    "failed",
    "timed_out",
    "fenced",
    "busy",
    "stopped",
)

_SECONDS = (1.0, 5.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 7200.0, 14400.0)


class TrainerMetrics:
    """All series of one trainer.

    Args:
        settings: of the trainer.
    """

    def __init__(self, settings: TrainerSettings) -> None:
        # When each series began is a series of its own that nobody asked for, and doubles them.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = KnownRegistry()
        self._turns = Counter(
            "perdure_turns",
            "Turns that ended, by what came of them: promoted; kept (the judge refused a candidate), inconclusive (too "
            "little evidence for any), stale (somebody else had promoted meanwhile), nothing (too little to learn "
            "from), failed, timed_out (killed at trainer.turn_timeout_seconds), fenced (another trainer had taken the "
            "lease), busy (another process had the memory), stopped (with the trainer).",
            ("outcome",),
            registry=self.registry,
        )
        for outcome in OUTCOMES:
            # An alert on the increase of a series that is not there yet would miss the first.
            self._turns.labels(outcome)
        self._seconds = Histogram(
            "perdure_turn_seconds", "How long turns took.", buckets=_SECONDS, registry=self.registry
        )
        self._running = self._gauge("turn_running", "1 while a turn runs.")
        self._started = self._gauge(
            "turn_started_timestamp_seconds",
            "When the last turn began, in seconds since the epoch; 0 before the first.",
        )
        self._ended = self._gauge(
            "turn_ended_timestamp_seconds", "When the last turn ended, in seconds since the epoch; 0 before the first."
        )
        limit = self._gauge("turn_limit_seconds", "After so long a turn is killed: trainer.turn_timeout_seconds.")
        limit.set(settings.turn_timeout_seconds)
        self._drift = self._gauge("drift_alarm", "1 where the last turn that came to its end saw drift.")
        self.samples = self._gauge(
            "memory_samples", "Samples in memory, as of the last look at it; there is none while a turn runs."
        )
        self.quarantined = self._gauge(
            "memory_quarantined",
            "Records kept out of learning, as of the last look at memory; there is none while a turn runs.",
        )
        self.lag = self._gauge(
            "stream_lag_records",
            "Records in the stream that memory has not read yet (with ingest.shards: that are in snapshots, and not in "
            "memory yet), as of the last look. What a running turn reads counts as unread until its end.",
        )
        self.leader = self._gauge("trainer_leader", "1 while this process holds the trainers' lease.")
        ProcessCollector(registry=self.registry)
        GCCollector(registry=self.registry)

    def begun(self) -> None:
        """A turn begins."""
        self._started.set(time.time())
        self._running.set(1)

    def ended(self, outcome: Outcome) -> None:
        """A turn has ended so."""
        self._running.set(0)
        self._ended.set(time.time())
        self._turns.labels(outcome_of(outcome)).inc()
        if outcome.ending not in ("busy", "stopped"):
            self._seconds.observe(outcome.seconds)
        if outcome.result is not None and not outcome.result.empty:
            self._drift.set(outcome.result.drifted)

    def _gauge(self, name: str, meaning: str) -> Gauge:
        return Gauge(f"perdure_{name}", meaning, registry=self.registry)


def outcome_of(outcome: Outcome) -> str:
    """One of `OUTCOMES`."""
    if outcome.ending == "done" and outcome.result is not None:
        return _fate(outcome.result)
    return {"timeout": "timed_out"}.get(outcome.ending, outcome.ending)


def _fate(result: TurnResult) -> str:
    fates = {candidate.outcome for candidate in result.candidates}
    if result.promoted:
        return "promoted"
    for fate, name in (("stale", "stale"), ("keep", "kept"), ("inconclusive", "inconclusive")):
        if fate in fates:
            return name
    return "nothing"
