"""Accuracy on what has been seen after each session, one line a contestant, one panel an order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

Curve = Sequence[tuple[float, float]]

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "continual",
    "font.family": "sans-serif",
    "font.size": 9,
    "text.parse_math": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "figure.constrained_layout.use": True,
}
MARKERS = "osD^vPX*"
PANEL = (6.6, 4.6)
FRAME = 0.2
"""Whoever ends so far below the best leaves the frame; else nothing could be told apart of the others."""
OURS = "perdure"
"""Drawn over the others."""


def draw(panels: Mapping[str, Mapping[str, Curve]], path: Path, *, title: str) -> None:
    """Writes the picture as SVG, the same bytes for the same figures.

    Args:
        panels: for each order, for each contestant, points (sessions seen, accuracy as a fraction).
        path: the file.
        title: stands above all.
    """
    names = sorted({name for curves in panels.values() for name in curves})
    styles = {name: _style(index, name) for index, name in enumerate(names)}
    with rc_context(STYLE):
        figure = Figure(figsize=(PANEL[0], PANEL[1] * max(len(panels), 1)))
        figure.suptitle(title)
        for index, (order, curves) in enumerate(panels.items()):
            axes = figure.add_subplot(len(panels), 1, index + 1)
            _panel(axes, order, curves, styles)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="svg", metadata={"Date": None})


def _panel(axes: Axes, order: str, curves: Mapping[str, Curve], styles: Mapping[str, dict[str, Any]]) -> None:
    ranked = sorted((name for name in curves if curves[name]), key=lambda name: -curves[name][-1][1])
    for name in ranked:
        places, shares = zip(*curves[name], strict=True)
        label = f"{name}  {100 * shares[-1]:.1f}"
        axes.plot(places, shares, label=label, markersize=4, **styles[name])
    axes.set_title(order)
    axes.set_xlabel("sessions seen")
    axes.set_ylabel("accuracy on the labels seen so far")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.grid(axis="y", linewidth=0.4, alpha=0.5)
    if ranked:
        near = [name for name in ranked if curves[name][-1][1] >= curves[ranked[0]][-1][1] - FRAME]
        lowest = min(share for name in near for _, share in curves[name])
        axes.set_ylim(lowest - 0.05 * (1 - lowest), 1.0)
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, title="after the last session, %")


def _style(index: int, name: str) -> dict[str, Any]:
    if name == OURS:
        return {"color": "black", "marker": "o", "linewidth": 2.2, "zorder": 5}
    colours = colormaps["tab20"]
    return {
        "color": colours((2 * index + (index >= 10)) % 20),
        "marker": MARKERS[index % len(MARKERS)],
        "linewidth": 1.1,
    }
