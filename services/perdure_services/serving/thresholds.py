"""Below which confidence a version abstains."""

from __future__ import annotations

from collections import OrderedDict

from starlette.concurrency import run_in_threadpool

from perdure.errors import PerdureError
from perdure.judge.threshold import BELOW
from perdure.registry import Registry
from perdure_services.serving.refusal import Refusal

KEPT = 8
"""Versions whose thresholds are remembered: those served last."""


class Thresholds:
    """Thresholds of versions, from their cards; each card is read once. For one event loop."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._known: OrderedDict[str, float | None] = OrderedDict()

    async def of(self, version: str) -> float | None:
        """The threshold of `version`; None where it has none: its judge had too few rows, or it is older than that.

        Raises:
            Refusal: 503 its card cannot be read.
        """
        if version not in self._known:
            try:
                card = await run_in_threadpool(self._registry.card, version)
            except (PerdureError, OSError) as error:
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
