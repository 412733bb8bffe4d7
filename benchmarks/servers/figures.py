"""What one load found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

RIGHT_SHARE = 0.9
"""Of the answers that are looked at, at least so many must be the model's: a quantised one may differ now and then."""


@dataclass(frozen=True, slots=True)
class LoadFigures:
    """Counts and latencies of the requests that fell into the measured time.

    Latency is in milliseconds: in a closed loop from sending to the last byte, in an open loop from the moment for
    which the request was scheduled. Of requests without an answer it is how long they had waited when the load ended.
    """

    seconds: float
    """The measured time."""
    requests: int
    """Those whose latency counts."""
    rps: float
    """Answers with status 200 a second."""
    p50_ms: float
    p90_ms: float
    p99_ms: float
    max_ms: float
    statuses: dict[str, int] = field(default_factory=dict)
    """Answers with another status than 200."""
    broken: int = 0
    """Connections that were lost, or could not be made."""
    unanswered: int = 0
    """Requests that had no answer when the load ended."""
    checked: int = 0
    """Answers that were looked at."""
    right: int = 0
    """Those that named the label that the model gives."""
    gave_up: bool = False
    """The server was so far behind that the load was ended early."""
    late_p99_ms: float = 0.0
    """How late the load itself was in sending what was due: part of the latency in an open loop."""
    generator_us: float = 0.0
    """CPU time of the load generator for one request, in microseconds."""

    @property
    def failures(self) -> int:
        """Requests without an answer of status 200."""
        return sum(self.statuses.values()) + self.broken + self.unanswered

    @property
    def wrong(self) -> bool:
        """Whether too many of the answers that were looked at are not the model's."""
        return self.checked > 0 and self.right < RIGHT_SHARE * self.checked

    def within(self, milliseconds: float) -> bool:
        """Whether every request was answered and the 99th percentile of latency is no more than this."""
        return not (self.failures or self.gave_up or self.wrong) and self.requests > 0 and self.p99_ms <= milliseconds


def quantile(ordered: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of the values do not exceed; 0 where there are none.

    Args:
        ordered: values, smallest first.
        share: in (0, 1].
    """
    if not ordered:
        return 0.0
    return ordered[max(0, -(-round(share * 10_000) * len(ordered) // 10_000) - 1)]
