"""How far the event loop is behind: the queue that stands before the queue."""

from __future__ import annotations

import asyncio
import math
import time

from prometheus_client import Counter

from perdure_services.serving.refusal import Refusal

BEAT_SECONDS = 0.05

LATE_SECONDS = 0.1
"""A beat that comes later than this says that there is more to do than is done."""

MORE, LESS = 1.0, 0.05
"""Of all requests, what is refused more for each second that a beat is late, and less after a beat in time."""

FEW = 64
"""With so many requests under way or fewer nothing is refused: what is late then has another reason."""


class LoopLag:
    """Refuses a share of the requests while the event loop cannot keep up, where no other queue shows it.

    The share grows as long as beats are late, one that is overdue included, and shrinks when they are not: so a lasting
    overload refuses just what is too much. To be used in the event loop.
    """

    def __init__(self, shed: Counter) -> None:
        self._shed = shed
        self._refused = 0.0
        self._due = math.inf
        self.share = 0.0
        """Of all requests, what is refused now, but for a beat that is overdue."""
        self.under_way = 0
        """Requests that were let in and are not answered yet; whoever lets them in counts them."""

    async def beat(self) -> None:
        """Watches the loop until cancelled."""
        while True:
            self._due = time.monotonic() + BEAT_SECONDS
            await asyncio.sleep(BEAT_SECONDS)
            self.note(time.monotonic() - self._due)

    def note(self, late: float) -> None:
        """A beat came `late` seconds late."""
        change = MORE * late if late > LATE_SECONDS else -LESS
        self.share = min(max(self.share + change, 0.0), 1.0)

    def check(self) -> None:
        """Refuses its share of the requests.

        Raises:
            Refusal: 429.
        """
        if self.under_way <= FEW:
            return
        share = self.share
        # The loop may be in the middle of a long turn, and the beat that tells of it far away.
        if (overdue := time.monotonic() - self._due) > LATE_SECONDS:
            share = min(share + MORE * overdue, 1.0)
        self._refused += share
        if self._refused < 1.0:
            return
        self._refused -= 1.0
        self._shed.inc()
        raise Refusal(
            429,
            "more requests come than this process can read",
            do="send the request again after the seconds that Retry-After says, or start more processes",
            headers={"Retry-After": "1"},
        )
