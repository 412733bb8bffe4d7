"""What one more process brings, and what a unit costs meanwhile."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from contestants.plot import STYLE

SIZE = (12.5, 4.6)
GREY = "#9aa7b5"


def draw(result: Mapping[str, Any], path: Path) -> None:
    """Writes the picture of a result as SVG, the same bytes for the same figures."""
    with rc_context({**STYLE, "svg.hashsalt": "scale"}):
        figure = Figure(figsize=SIZE)
        figure.suptitle(f"One more process, on {result['setup']['cores']} cores that load and broker share")
        left, right = figure.subplots(1, 2)
        _panel(left, result["serving"], "replicas", "rps", "requests a second", "light_cpu_ms", "a request")
        _panel(right, result["ingest"], "ingesters", "per_second", "records a second", "cpu_ms", "a record")
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="svg", metadata={"Date": None})


def _panel(
    axes: Axes, found: Sequence[Mapping[str, Any]], count: str, rate: str, unit: str, cost: str, each: str
) -> None:
    counts = [one[count] for one in found]
    bars = axes.bar(counts, [one[rate] for one in found], color=GREY, width=0.55)
    axes.bar_label(bars, labels=[f"{one[rate]:,.0f}" for one in found], padding=2)
    axes.set_xticks(counts)
    axes.set_xlabel(count)
    axes.set_ylabel(unit)
    costs = axes.twinx()
    costs.plot(counts, [one[cost] for one in found], color="black", marker="o")
    costs.set_ylim(0, 1.6 * max(one[cost] for one in found))
    costs.set_ylabel(f"CPU milliseconds {each} (line)")
    costs.spines["right"].set_visible(True)
