"""Plots as SVG, to stand inside a page: they take its text colour, so that light and dark both work."""

from __future__ import annotations

import hashlib
import io
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, PercentFormatter

from perdure.judge.calibration import Bin

COLOURS = ("#3b82f6", "#f59e0b", "#10a37f", "#e5484d", "#8e6be8", "#0ea5b7")
"""Legible on white and on near-black."""

WIDTH = 8.8
"""Inches of a plot that takes the whole page."""

MARKERS = "osD^vP"
LONGEST_LABEL = 28

# Stands for the page's text colour, and is replaced by it; no plot uses this colour otherwise.
_INK = "#010203"
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "perdure",
    "font.family": "sans-serif",
    "font.size": 10,
    # Labels come from people: a dollar sign in one is no formula.
    "text.parse_math": False,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.axisbelow": True,
    "figure.constrained_layout.use": True,
}


def accuracy_over_time(
    series: Mapping[str, Sequence[tuple[float, float]]],
    marks: Sequence[tuple[float, str]] = (),
    *,
    xlabel: str = "time",
    ylabel: str = "accuracy",
) -> str:
    """Lines of (x, accuracy as a fraction), with named vertical marks (promotions, rollbacks) at some x."""
    with _drawing(WIDTH, 3.4) as (figure, axes, answer):
        lines = []
        for index, points in enumerate(series.values()):
            x, y = [point[0] for point in points], [point[1] for point in points]
            dense = len(points) > 40
            lines += axes.plot(
                x,
                y,
                color=COLOURS[index % len(COLOURS)],
                marker="" if dense else MARKERS[index % len(MARKERS)],
                markersize=4,
                linewidth=2,
            )
        axes.set(xlabel=xlabel, ylabel=ylabel)
        _share_axis(axes, [y for points in series.values() for _, y in points])
        if _whole(x for points in series.values() for x, _ in points):
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        for at, name in marks:
            axes.axvline(at, color=_INK, alpha=0.35, linewidth=0.8, linestyle=(0, (3, 3)))
            axes.annotate(
                _short(name),
                (at, 1.0),
                xycoords=("data", "axes fraction"),
                xytext=(-2, 2),
                textcoords="offset points",
                fontsize=8,
                rotation=30,
                alpha=0.75,
            )
        _legend(figure, lines, list(series))
    return answer[0]


def bars_per_group(
    groups: Sequence[str], series: Mapping[str, Sequence[float | None]], *, ylabel: str = "accuracy"
) -> str:
    """For each group one bar of each series, as fractions; None leaves its place empty.

    Raises:
        ValueError: a series does not have one value for each group.
    """
    for name, values in series.items():
        if len(values) != len(groups):
            raise ValueError(f"series {name!r} has {len(values)} values for {len(groups)} groups: give one for each")
    wide = len(groups) > 12
    height = 3.3 if not wide else max(3.3, 0.9 + 0.16 * len(groups) * (len(series) + 0.6))
    with _drawing(WIDTH, height) as (figure, axes, answer):
        thickness = 0.8 / max(len(series), 1)
        handles = []
        for index, values in enumerate(series.values()):
            at = [place + (index - (len(series) - 1) / 2) * thickness for place in range(len(groups))]
            lengths = [math.nan if value is None else value for value in values]
            colour = COLOURS[index % len(COLOURS)]
            draw = axes.barh if wide else axes.bar
            draw(at, lengths, thickness * 0.92, color=colour)
            handles.append(Patch(color=colour))
        names = [_short(group) for group in groups]
        if wide:
            axes.set_yticks(range(len(groups)), names)
            axes.set_ylim(len(groups) - 0.4, -0.6)
            axes.set(xlim=(0, 1), xlabel=ylabel)
            axes.xaxis.set_major_formatter(PercentFormatter(1.0))
            axes.grid(axis="x", color=_INK, alpha=0.12, linewidth=0.6)
        else:
            tilted = sum(map(len, names)) > 80
            axes.set_xticks(range(len(groups)), names, rotation=30 if tilted else 0, ha="right" if tilted else "center")
            _share_axis(axes, (), bottom=0.0)
            axes.set(ylabel=ylabel)
        _legend(figure, handles, list(series))
    return answer[0]


def heatmap(
    matrix: Sequence[Sequence[float | None]],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    xlabel: str = "",
    ylabel: str = "",
) -> str:
    """A table of fractions as colours, with the numbers in percent where they fit; None leaves a cell empty.

    Raises:
        ValueError: the matrix is not rows × columns.
    """
    if len(matrix) != len(rows) or any(len(row) != len(columns) for row in matrix):
        raise ValueError(f"the matrix is not {len(rows)} x {len(columns)}: give one value for each row and column")
    values = np.array([[math.nan if cell is None else cell for cell in row] for row in matrix], dtype=np.float64)
    width = min(9.0, max(3.6, 1.6 + 0.56 * len(columns)))
    with _drawing(width, min(9.0, max(2.0, 1.0 + 0.36 * len(rows)))) as (_, axes, answer):
        if values.size:
            found = values[np.isfinite(values)]
            low = min(float(found.min()), 0.9) if found.size else 0.0
            axes.pcolormesh(np.ma.masked_invalid(values), cmap=_HEAT, vmin=low, vmax=1.0, linewidth=0)
            if len(columns) <= 12:
                for (row, column), value in np.ndenumerate(values):
                    if math.isfinite(value):
                        axes.text(
                            column + 0.5,
                            row + 0.5,
                            f"{100 * value:.1f}",
                            ha="center",
                            va="center",
                            fontsize=8,
                            color="#ffffff" if value > low + 0.45 * (1.0 - low) else "#1b2733",
                        )
        axes.set_xticks(np.arange(len(columns)) + 0.5, [_short(name) for name in columns])
        axes.set_yticks(np.arange(len(rows)) + 0.5, [_short(name) for name in rows])
        axes.invert_yaxis()
        axes.tick_params(length=0)
        axes.set(xlabel=xlabel, ylabel=ylabel)
        for spine in axes.spines.values():
            spine.set_visible(False)
    return answer[0]


def reliability(curves: Mapping[str, Sequence[Bin]]) -> str:
    """Accuracy against mean confidence, bin by bin; a calibrated model lies on the diagonal."""
    with _drawing(4.4, 3.9) as (figure, axes, answer):
        axes.plot([0, 1], [0, 1], color=_INK, alpha=0.4, linewidth=0.8, linestyle=(0, (3, 3)))
        lines = []
        for index, curve in enumerate(curves.values()):
            lines += axes.plot(
                [part.confidence for part in curve],
                [part.accuracy for part in curve],
                color=COLOURS[index % len(COLOURS)],
                marker=MARKERS[index % len(MARKERS)],
                markersize=5,
                linewidth=1.6,
            )
        axes.set(xlim=(0, 1.02), ylim=(0, 1.02), xlabel="confidence", ylabel="share right", aspect="equal")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(PercentFormatter(1.0))
        axes.grid(color=_INK, alpha=0.12, linewidth=0.6)
        _legend(figure, lines, list(curves))
    return answer[0]


_HEAT = LinearSegmentedColormap.from_list("perdure", ["#f4e3c1", "#8fc1c9", "#2f7fb0", "#1d4f91"])


@contextmanager
def _drawing(width: float, height: float) -> Iterator[tuple[Figure, Axes, list[str]]]:
    """A figure of that size in inches; its SVG is in the list when the block has ended."""
    answer: list[str] = []
    with rc_context(_STYLE), warnings.catch_warnings():
        # Labels may hold any sign; the browser has a font for it where matplotlib, which only measures, has none.
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from", category=UserWarning)
        warnings.filterwarnings(
            "ignore", message=r"Matplotlib currently does not support .* natively", category=UserWarning
        )
        figure = Figure(figsize=(width, height))
        yield figure, figure.add_subplot(), answer
        page = io.StringIO()
        figure.savefig(page, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    answer.append(_inline(page.getvalue()))


def _inline(svg: str) -> str:
    """The `<svg>` element alone, in the page's colours and fonts, with ids that no other plot in the page has."""
    svg = re.sub(r"<!--.*?-->", "", svg[svg.index("<svg") :], flags=re.DOTALL).strip()
    own = hashlib.blake2b(svg.encode("utf-8", "replace"), digest_size=4).hexdigest()
    svg = re.sub(r' id="([^"]+)"', rf' id="p{own}-\1"', svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\1p{own}-", svg)
    svg = svg.replace(_INK, "currentColor")
    svg = re.sub(r"'DejaVu Sans'[^;\"]*", "system-ui, sans-serif", svg)
    return re.sub(r'<svg ([^>]*?)height="[^"]*" ', r'<svg role="img" \1', svg, count=1)


def _legend(figure: Figure, handles: Sequence[Artist], names: Sequence[str]) -> None:
    if not names:
        return
    figure.legend(
        handles,
        [_short(name) for name in names],
        loc="outside upper left",
        ncols=min(len(names), 4),
        frameon=False,
        handlelength=1.4,
        borderaxespad=0.2,
    )


def _share_axis(axes: Axes, values: Sequence[float], bottom: float | None = None) -> None:
    found = [value for value in values if math.isfinite(value)]
    low = bottom if bottom is not None else max(0.0, min(found, default=0.0) - 0.05)
    axes.set_ylim(low, 1.02)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.grid(axis="y", color=_INK, alpha=0.12, linewidth=0.6)


def _whole(values: Iterator[float]) -> bool:
    return all(float(value).is_integer() for value in values)


def _short(name: str) -> str:
    """One printable line of bounded length. A leading underscore would hide it from a legend."""
    line = "".join(sign if sign.isprintable() else "·" for sign in " ".join(name.split()))
    line = line if len(line) <= LONGEST_LABEL else line[: LONGEST_LABEL - 1] + "…"
    return f"\u2009{line}" if line.startswith("_") else line
