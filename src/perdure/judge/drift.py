"""Whether traffic still looks like the reference; Evidently writes the report."""

from __future__ import annotations

import html
import json
import logging
import os
import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from perdure.config import JudgeSettings
from perdure.judge.columns import Column, DriftInput, centre_distance, columns
from perdure.judge.distance import FALSE_ALARMS, histogram

__all__ = ["ColumnDrift", "DriftInput", "DriftSummary", "drift_report"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ColumnDrift:
    """Drift of one property of traffic."""

    name: str
    score: float
    """Jensen-Shannon distance, from 0 to 0.83."""
    threshold: float
    """The setting, or what chance alone would reach with so few rows, whichever is higher."""
    drifted: bool


@dataclass(frozen=True, slots=True)
class DriftSummary:
    """What the drift report says, in short."""

    drifted: bool
    """At least one column drifted."""
    columns: tuple[ColumnDrift, ...]
    rows_reference: int
    rows_current: int
    sentence: str
    enough: bool
    """False: too few rows to say; `columns` is empty then."""
    centre_distance: float | None = None
    """Cosine distance between the mean embeddings of both sides; for information."""

    def to_json(self) -> dict[str, Any]:
        """JSON types only."""
        return {**asdict(self), "columns": [asdict(column) for column in self.columns]}


def drift_report(reference: DriftInput, current: DriftInput, settings: JudgeSettings, folder: Path) -> DriftSummary:
    """Compares current traffic with the reference and writes `drift.html` and `drift.json` into `folder`.

    A column has drifted when its distance reaches `settings.drift_threshold` and is more than chance gives: where
    nothing has drifted, one report in a hundred may say otherwise. The mix of labels is part of what is compared, so
    a reference should be traffic, or weighted like it. `drift.json` holds the summary and, where there were rows
    enough, Evidently's own result under `evidently`.

    Raises:
        ValueError: the embeddings of both sides differ in length.
        OSError: `folder` cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = len(reference), len(current)
    least = max(settings.drift_min_rows, 2)
    if min(rows) < least:
        sentence = (
            f"Too few rows for a drift test: {rows[0]:,} reference and {rows[1]:,} current, {least:,} needed of each."
        )
        summary = DriftSummary(False, (), *rows, sentence, enough=False)
        (folder / "drift.html").write_text(_SMALL_PAGE.format(sentence=html.escape(sentence)), encoding="utf-8")
        _write_json(folder, summary, None)
        return summary
    started = time.perf_counter()
    measured = columns(reference, current)
    drifts = tuple(_drift(column, settings.drift_threshold, FALSE_ALARMS / len(measured)) for column in measured)
    found = [drift.name for drift in drifts if drift.drifted]
    between = f"({rows[0]:,} reference rows, {rows[1]:,} current)"
    sentence = (
        f"Drift in {len(found)} of {len(drifts)} columns: {', '.join(found)} {between}."
        if found
        else f"No drift in {len(drifts)} columns {between}."
    )
    summary = DriftSummary(bool(found), drifts, *rows, sentence, True, centre_distance(reference, current))
    _write_json(folder, summary, _evidently(measured, drifts, folder))
    logger.info("drift report on %d and %d rows in %.1f s: %s", *rows, time.perf_counter() - started, sentence)
    return summary


def _drift(column: Column, floor: float, level: float) -> ColumnDrift:
    counts = histogram(column)
    score = counts.distance()
    chance = counts.chance(level)
    # Chance itself reaches the quantile now and then, in steps where values are few: more than it is needed.
    threshold = max(floor, float(np.nextafter(chance, 1.0)))
    return ColumnDrift(column.name, score, threshold, score >= threshold)


def _evidently(measured: tuple[Column, ...], drifts: tuple[ColumnDrift, ...], folder: Path) -> Any:
    """Writes `drift.html`; Evidently's result as JSON types."""
    os.environ.setdefault("DO_NOT_TRACK", "1")
    with warnings.catch_warnings():
        # At import Evidently asks NumPy for `numpy.core`, and litestar for its own deprecated names.
        warnings.simplefilter("ignore", DeprecationWarning)
        # Its regular expressions hold invalid escapes, which newer Pythons report when they compile them.
        warnings.simplefilter("ignore", SyntaxWarning)
        # Imported here, as it takes seconds, which a turn with too few rows need not wait for.
        from evidently import DataDefinition, Dataset, Report
        from evidently.metrics import ValueDrift
    numeric = [column.name for column in measured if isinstance(column.reference, np.ndarray)]
    named = [column.name for column in measured if column.name not in numeric]
    definition = DataDefinition(numerical_columns=numeric, categorical_columns=named)
    before = Dataset.from_pandas(
        pd.DataFrame({column.name: _plain(column.reference) for column in measured}), data_definition=definition
    )
    after = Dataset.from_pandas(
        pd.DataFrame({column.name: _plain(column.current) for column in measured}), data_definition=definition
    )
    metrics = [ValueDrift(column=drift.name, method="jensenshannon", threshold=drift.threshold) for drift in drifts]
    snapshot = Report(metrics, include_tests=True).run(after, before)
    snapshot.save_html(str(folder / "drift.html"))
    return json.loads(snapshot.json())


def _plain(values: Any) -> Any:
    """Names go into a page with scripts in it: what could end a script there is replaced."""
    if isinstance(values, np.ndarray):
        return values
    return [_printable(value) for value in values]


def _printable(name: str) -> str:
    return name.translate(_SIGNS).encode("utf-8", "replace").decode("utf-8")


_SIGNS = str.maketrans({"<": "‹", ">": "›", "&": "＆"})


def _write_json(folder: Path, summary: DriftSummary, evidently: Any) -> None:
    content = {"summary": summary.to_json(), "evidently": evidently}
    (folder / "drift.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


_SMALL_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="color-scheme" content="light dark">
<title>Drift</title>
<style>body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 44rem; margin: 3rem auto; padding: 0 1rem; }}</style>
</head>
<body><h1>Drift</h1><p>{sentence}</p></body>
</html>
"""
