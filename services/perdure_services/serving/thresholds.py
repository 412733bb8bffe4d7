"""Below which confidence a version abstains."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict

from starlette.concurrency import run_in_threadpool

from perdure.errors import PerdureError
from perdure.judge.threshold import BELOW
from perdure.registry import Card, Registry
from perdure_services.serving.deadline import current_deadline, too_late
from perdure_services.serving.refusal import Refusal

KEPT = 8
"""Versions whose thresholds are remembered: those served last."""


class Thresholds:
    """Thresholds of versions, from their cards; each card is read once. For one event loop."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._known: OrderedDict[str, float | None] = OrderedDict()
        self._read: dict[str, asyncio.Task[Card]] = {}

    async def of(self, version: str) -> float | None:
        """The threshold of `version`; None where it has none: its judge had too few rows, or it is older than that.

        Raises:
            Refusal: 503 its card cannot be read; 504 it was not by the deadline (`current_deadline`).
        """
        if version not in self._known:
            try:
                async with asyncio.timeout(current_deadline() - time.monotonic()) as limit:
                    # Whoever gives up leaves it to the others: a thread cannot be stopped, and they are few.
                    card = await asyncio.shield(self._reading(version))
            except (PerdureError, OSError) as error:
                if isinstance(error, TimeoutError) and limit.expired():
                    raise too_late() from error
                raise Refusal(
                    503,
                    f"below which confidence version {version} abstains cannot be read: {error}",
                    do="send the request without `abstain`, or again later",
                    headers={"Retry-After": "1"},
                ) from error
            self._known[version] = card.metrics.get(BELOW)
            while len(self._known) > KEPT:
                self._known.popitem(last=False)
        self._known.move_to_end(version)
        return self._known[version]

    def _reading(self, version: str) -> asyncio.Task[Card]:
        """The one reading of the card of `version` that all wait for."""
        reading = self._read.get(version)
        if reading is None:
            reading = asyncio.create_task(run_in_threadpool(self._registry.card, version))
            self._read[version] = reading
            reading.add_done_callback(lambda _: self._read.pop(version))
        return reading
