"""What a registry of series holds, for people to read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from perdure_services.monitor.registry import KnownRegistry


@dataclass(frozen=True, slots=True)
class Series:
    """One family of series."""

    name: str
    kind: str
    labels: tuple[str, ...]
    meaning: str

    @property
    def row(self) -> str:
        """Its row of the table."""
        return f"| `{self.name}` | {self.kind} | {', '.join(self.labels)} | {self.meaning} |"


def series_of(registry: KnownRegistry) -> Iterator[Series]:
    """Everything in `registry`, in the order in which it was made."""
    for collector in registry.collectors:
        labels = tuple(getattr(collector, "_labelnames", ()))
        for family in collector.collect():
            total = "_total" if family.type == "counter" else ""
            named = labels or tuple(sorted({name for sample in family.samples for name in sample.labels} - {"le"}))
            yield Series(f"{family.name}{total}", family.type, named, family.documentation)
