"""The series of all processes of a server, as one of them tells them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import choose_encoder

from perdure_services.serving.siblings import Siblings, Told

QUESTION = "metrics"

ANSWER_SECONDS = 1.0
"""How long a process may take to tell its series; one that does not is told as down."""

LABEL = "process"
"""What tells the series of the processes apart: their places, from 0."""

UP = "perdure_process_up"
RESTARTS = "perdure_process_restarts"

Family = tuple[str, str, str, str, list[tuple[str, dict[str, str], float]]]
"""Name, help, type, unit, and samples (name, labels, value): a family of series that travels as JSON."""


class Merged(CollectorRegistry):
    """Families that were collected elsewhere.

    Args:
        told: what each process has told, and how often it was started again.
    """

    def __init__(self, told: Sequence[Told]) -> None:
        super().__init__()
        self._told = told

    def collect(self) -> Iterator[Metric]:
        """Each family once, with the samples of all processes."""
        merged: dict[str, Metric] = {}
        for one in self._told:
            for name, help_text, kind, unit, samples in one.answer["families"] if one.answer else ():
                family = merged.setdefault(name, Metric(name, help_text, kind, unit))
                for sample, labels, value in samples:
                    family.add_sample(sample, {**labels, LABEL: str(one.place)}, value)
        yield from merged.values()
        up = GaugeMetricFamily(UP, "1 for a process that told its series, 0 for one that did not.", labels=[LABEL])
        restarts = CounterMetricFamily(RESTARTS, "Times that a process was started again.", labels=[LABEL])
        for one in self._told:
            up.add_metric([str(one.place)], 1.0 if one.answer else 0.0)
            if one.answer:
                restarts.add_metric([str(one.place)], one.answer["restarts"])
        yield from (up, restarts)


def told_here(registry: CollectorRegistry, restarts: int) -> dict[str, Any]:
    """What this process answers to `QUESTION`."""
    return {"families": list(_families(registry.collect())), "restarts": restarts}


async def exposed_by_all(registry: CollectorRegistry, siblings: Siblings, accept: str) -> tuple[bytes, str]:
    """The series of all processes, and their content type, as `Metrics.exposed`."""
    others = await siblings.ask_all(QUESTION, None, ANSWER_SECONDS)
    here = Told(siblings.place, told_here(registry, siblings.restarts))
    encode, kind = choose_encoder(accept)
    return encode(Merged(sorted((here, *others), key=lambda one: one.place))), kind


def _families(collected: Iterable[Metric]) -> Iterator[Family]:
    for metric in collected:
        samples = [(sample.name, sample.labels, sample.value) for sample in metric.samples]
        yield metric.name, metric.documentation, metric.type, metric.unit, samples
