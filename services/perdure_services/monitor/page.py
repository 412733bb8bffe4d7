"""The tables of all series, as docs/metrics.md shows them: `python -m perdure_services.monitor.page`."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from perdure.config import TrainerSettings
from perdure_services.ingester.metrics import IngesterMetrics
from perdure_services.monitor.series import Series, series_of
from perdure_services.serving.series import all_series
from perdure_services.trainer.metrics import TrainerMetrics

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

"""

TABLE = """\
| series | type | by | |
|---|---|---|---|
"""

TRAINER = """\

## The trainer

What `/metrics` of `perdure train` tells, at `trainer.host` and `trainer.port`. There is no API there, and no keys are
asked for: nothing of what was sent is told. `/healthz` says 503, with its reason, where only a restart helps: a turn
that goes on long after its limit, a thread that has ended, a look at the stream or at the lease that hangs. A trainer
that waits for the lease is well.

"""

INGESTER = """\

## The ingester

What `/metrics` of `perdure ingest` tells, at `ingest.host` and `ingest.port`. `/healthz` says 503, with its reason,
where it does not hear from the broker whose the partitions are, or does not come forward with reading them. A broker
that cannot be reached is no reason: a restart would not help.

"""


def page() -> str:
    """docs/metrics.md."""
    trainer = series_of(TrainerMetrics(TrainerSettings()).registry)
    ingester = IngesterMetrics()
    # One partition, so that its labels are seen.
    ingester.lag.labels("0")
    return "".join(
        (HEAD, _table(all_series()), TRAINER, _table(trainer), INGESTER, _table(series_of(ingester.registry)))
    )


def _table(series: Iterable[Series]) -> str:
    return TABLE + "".join(f"{each.row}\n" for each in series)


if __name__ == "__main__":
    sys.stdout.write(page())
