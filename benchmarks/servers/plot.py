"""Requests a second at a bounded latency, and latency at each rate."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from contestants.plot import MARKERS, STYLE
from servers.entrants import BARE_LOOP, PERDURE
from servers.goals import RATE
from servers.plan import P99_MS

SIZE = (12.5, 4.8)


def draw(contestants: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Writes the picture as SVG, the same bytes for the same figures.

    Args:
        contestants: figures by name, as in the result; those that are unavailable are left out.
        path: the file.
    """
    measured = {name: found for name, found in contestants.items() if RATE in found}
    with rc_context({**STYLE, "svg.hashsalt": "serving"}):
        figure = Figure(figsize=SIZE)
        figure.suptitle("One text classifier, the same cores, sentences and load")
        left, right = figure.subplots(1, 2, width_ratios=(1, 1.1))
        _rates(left, measured)
        _latencies(right, measured)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="svg", metadata={"Date": None})


def _rates(axes: Axes, measured: Mapping[str, Mapping[str, Any]]) -> None:
    ranked = sorted((name for name in measured if name != BARE_LOOP), key=lambda name: float(measured[name][RATE]))
    rates = [float(measured[name][RATE]) for name in ranked]
    bars = axes.barh(ranked, rates, color=["black" if name == PERDURE else "#9aa7b5" for name in ranked])
    axes.bar_label(bars, labels=[f"{rate:,.0f}" for rate in rates], padding=3)
    if BARE_LOOP in measured:
        floor = float(measured[BARE_LOOP][RATE])
        axes.axvline(floor, color="black", linewidth=0.8, linestyle=":")
        axes.text(floor, -0.5, f" {BARE_LOOP}\n {floor:,.0f}", va="bottom", ha="right", fontsize=7)
    axes.set_xlabel(f"requests/s at p99 <= {P99_MS:g} ms (bare loop: sentences/s in batches)")
    axes.margins(x=0.12)


def _latencies(axes: Axes, measured: Mapping[str, Mapping[str, Any]]) -> None:
    colours = colormaps["tab10"]
    for index, (name, found) in enumerate(sorted(measured.items())):
        points = [(step["rate"], step["p99_ms"]) for step in found.get("open", []) if step["requests"]]
        if not points:
            continue
        rates, latencies = zip(*sorted(points), strict=True)
        ours = name == PERDURE
        axes.plot(
            rates,
            latencies,
            label=name,
            marker=MARKERS[index % len(MARKERS)],
            markersize=4,
            color="black" if ours else colours(index % 10),
            linewidth=2.0 if ours else 1.0,
        )
    axes.axhline(P99_MS, color="grey", linewidth=0.8, linestyle="--")
    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.set_major_formatter("{x:,.0f}")
        axis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("requests/s, open loop")
    axes.set_ylabel("99th percentile of latency, ms")
    axes.grid(linewidth=0.4, alpha=0.5)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8)
