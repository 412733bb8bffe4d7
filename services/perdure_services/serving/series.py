"""All series that the API tells."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from perdure.config import ServingSettings
from perdure_services.keys.key_file import KeyDocument
from perdure_services.monitor.series import Series, series_of
from perdure_services.serving.access import Access
from perdure_services.serving.metrics import Metrics
from perdure_services.serving.rpc.call_metrics import CallMetrics


def all_series() -> Iterator[Series]:
    """Everything that a process tells, in the order in which it is made."""
    metrics = Metrics()
    with tempfile.TemporaryDirectory() as folder:
        keys = Path(folder) / "keys.json"
        keys.write_text(KeyDocument(format=1, keys=()).model_dump_json(), encoding="utf-8")
        Access(ServingSettings(keys=str(keys)), metrics.registry)
    CallMetrics(metrics.registry)
    return series_of(metrics.registry)
