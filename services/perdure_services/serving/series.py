"""The table of all series, as docs/metrics.md shows it: `python -m perdure_services.serving.series`."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from perdure.config import ServingSettings
from perdure_services.keys.key_file import KeyDocument
from perdure_services.serving.access import Access
from perdure_services.serving.metrics import Metrics
from perdure_services.serving.rpc.call_metrics import CallMetrics

HEAD = """\
# Metrics

What `/metrics` of `perdure serve` tells, in Prometheus' text format or, where asked for, as OpenMetrics. `make
metrics-table` writes this page from the code. The number of series is bounded: routes are templates, what counts by
version is kept for the last few versions, and labels are counted up to a limit.

What is called `perdure_grpc_…` is told where `serving.grpc_port` is set. A histogram has `_bucket`, `_sum` and
`_count`. `route` is the template, such as `/v2/models/{name}/infer`, or `other`; `method` over gRPC is the call's name,
or `other`.

With several `serving.processes` whichever of them is asked tells the series of all, each with one label more:
`process`, its place from 0. Two families are added: `perdure_process_up`, 0 for a process that did not tell its
series within a second, and `perdure_process_restarts_total`, how often it was started again (its counters begin at 0
then). Sum over `process` for what the server did.

| series | type | by | |
|---|---|---|---|
"""


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


def all_series() -> Iterator[Series]:
    """Everything that a process tells, in the order in which it is made."""
    metrics = Metrics()
    with tempfile.TemporaryDirectory() as folder:
        keys = Path(folder) / "keys.json"
        keys.write_text(KeyDocument(format=1, keys=()).model_dump_json(), encoding="utf-8")
        Access(ServingSettings(keys=str(keys)), metrics.registry)
    CallMetrics(metrics.registry)
    for collector in metrics.registry.collectors:
        labels = tuple(getattr(collector, "_labelnames", ()))
        for family in collector.collect():
            total = "_total" if family.type == "counter" else ""
            named = labels or tuple(sorted({name for sample in family.samples for name in sample.labels} - {"le"}))
            yield Series(f"{family.name}{total}", family.type, named, family.documentation)


def page() -> str:
    """docs/metrics.md."""
    return HEAD + "".join(f"{series.row}\n" for series in all_series())


if __name__ == "__main__":
    sys.stdout.write(page())
