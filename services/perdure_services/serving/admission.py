"""Which requests may wait for the model: those that will be answered in time."""

from __future__ import annotations

import math
from dataclasses import dataclass

from perdure_services.serving.pace import Pace, TextSize
from perdure_services.serving.refusal import Refusal
from perdure_services.serving.waiting_line import T, WaitingLine

MAX_QUEUE_CHARS = 64_000_000
"""Characters of text that wait at most, however many requests they belong to."""

BURST = 2.0
"""Times the longest wait that a burst may lead to."""

STANDING_BATCHES = 2.0
"""Batches that may always wait, so that a bound on the wait never leaves the model idle."""

CAUTION = 1.25
"""Times the expected wait that a deadline must leave room for: an answer that comes too late was computed in vain."""

NEWEST = 0.1
"""Weight of the newest batch in running means."""

MOST_DRIFT = 4.0
"""Times that one batch may have taken more, or less, than it should: beyond, it was the machine and not the model."""


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """A batch that is being run."""

    size: TextSize
    batches: int
    begun: float
    """Monotonic seconds."""
    expected: float
    """Seconds that it was expected to take."""

    def left(self, now: float) -> float:
        """Seconds that it is expected to take still."""
        # What should have ended already is expected to be late by as much again.
        return abs(self.expected - (now - self.begun))


class Admission:
    """Reckons how long a request would wait, and refuses the one that would wait too long.

    Up to `max_seconds` of work may wait, and `BURST` times that in a burst. When the queue has not been empty for as
    long as a burst may wait, it is no burst but more than the model can do: what is let in then is answered soon, and
    the rest is told at once. `STANDING_BATCHES` batches may always wait, and a request is never refused while nothing
    else waits. (After the controlled delay of B. Maurer, "Fail at Scale", ACM Queue 13(8), 2015, with the wait that is
    expected in place of the one that was suffered, so that nothing is refused after it has waited.) Not safe for
    threads.
    """

    def __init__(
        self, line: WaitingLine[T], pace: Pace, *, max_requests: int, max_seconds: float, max_batch: int, now: float
    ) -> None:
        self._line = line
        self._pace = pace
        self._max_requests = max_requests
        self._max_seconds = max_seconds
        self._fill = float(max_batch)
        self._drift = 1.0
        self._usual = 0.0
        self._runs: list[Run] = []
        self._empty_at = now
        self.lanes = 1
        """Batches that may run at once."""

    def begun(self, size: TextSize, batches: int, now: float) -> Run:
        """A batch of `size`, in that many parts, has left the line and is being run."""
        run = Run(size, batches, now, self._drift * self._pace.seconds(size.own, batches))
        self._runs.append(run)
        if len(self._line):
            self._fill += NEWEST * (size.texts / batches - self._fill)
        return run

    def ended(self, run: Run, now: float) -> None:
        """That batch is answered, or failed."""
        self._runs.remove(run)
        took = now - run.begun
        self._usual += (NEWEST if self._usual else 1.0) * (took / run.batches - self._usual)
        if (expected := self._pace.seconds(run.size.own, run.batches)) > 0.0:
            drift = min(max(took / expected, 1.0 / MOST_DRIFT), MOST_DRIFT)
            self._drift += NEWEST * (drift - self._drift)

    @property
    def running(self) -> int:
        """Batches that are being run."""
        return len(self._runs)

    @property
    def running_since(self) -> float | None:
        """When the oldest batch that is being run was begun (monotonic seconds); None where none is."""
        return min((run.begun for run in self._runs), default=None)

    def soonest(self, now: float) -> float:
        """Seconds until the first of the batches that are being run is expected to end; 0 where none is."""
        return min((run.left(now) for run in self._runs), default=0.0)

    def wait(self, now: float) -> float:
        """Seconds until what waits now is expected to be answered."""
        running = sum(run.left(now) for run in self._runs)
        line = self._line
        waiting = self._drift * self._pace.seconds(line.work, line.texts / max(self._fill, 1.0))
        return (running + waiting) / self.lanes

    def bound(self, now: float) -> float:
        """The longest wait that is accepted now, in seconds."""
        burst = BURST * self._max_seconds
        standing = len(self._line) > 0 and now - self._empty_at > burst
        return max(self._max_seconds if standing else burst, STANDING_BATCHES * self._usual)

    def refusal(self, now: float, deadline: float, chars: int = 0) -> Refusal | None:
        """Why a request that holds `chars` and wants its answer by `deadline` may not wait; None when it may."""
        waiting = len(self._line)
        if not waiting:
            self._empty_at = now
            return None
        wait = self.wait(now)
        if waiting >= self._max_requests or self._line.chars + chars > MAX_QUEUE_CHARS:
            return _crowded(f"{waiting} requests wait for the model already", waiting, wait)
        if wait > self.bound(now):
            return _crowded(f"{waiting} requests wait for the model, about {wait:.1f} seconds of work", waiting, wait)
        if now + wait * CAUTION + self._usual > deadline:
            left = max(deadline - now, 0.0)
            what = f"about {wait:.1f} seconds of work wait for the model, and this request has {left:.1f} left"
            return _crowded(what, waiting, wait)
        return None


def _crowded(what: str, waiting: int, wait: float) -> Refusal:
    return Refusal(
        429,
        what,
        value=waiting,
        do="send the request again after the seconds that Retry-After says, or start more processes",
        headers={"Retry-After": str(max(math.ceil(wait), 1))},
    )
