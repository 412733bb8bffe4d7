"""A registry of series that can be asked what is in it."""

from __future__ import annotations

from prometheus_client import CollectorRegistry
from prometheus_client.registry import Collector


class KnownRegistry(CollectorRegistry):
    """A registry that tells what is registered in it."""

    def __init__(self) -> None:
        super().__init__()
        self.collectors: list[Collector] = []

    def register(self, collector: Collector) -> None:
        super().register(collector)
        self.collectors.append(collector)
