"""The demo in one picture, for a page that is not ours: its own background, as SVG and PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from perdure_services.demo.progress import Score
from perdure_services.demo.scenario import Scenario

NAME = "accuracy"
INK, SOFT, PAPER = "#17202b", "#5c6875", "#ffffff"
CONTINUAL, FROZEN = "#3b82f6", "#f59e0b"
STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 10,
    "text.parse_math": False,
    "svg.hashsalt": "perdure",
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": SOFT,
    "xtick.color": INK,
    "ytick.color": INK,
}


def write_picture(folder: Path, scenario: Scenario, scores: Sequence[Score]) -> tuple[Path, Path]:
    """Writes `accuracy.svg` and `accuracy.png` into `folder`: the exam's accuracy over the requests answered.

    Raises:
        OSError: `folder` cannot be written.
    """
    paths = folder / f"{NAME}.svg", folder / f"{NAME}.png"
    with rc_context(STYLE):
        figure = _drawn(scenario, scores)
        for path in paths:
            metadata = {"Date": None} if path.suffix == ".svg" else {"Software": None}
            figure.savefig(path, dpi=144, facecolor=PAPER, metadata=metadata)
    return paths


def _drawn(scenario: Scenario, scores: Sequence[Score]) -> Figure:
    figure = Figure(figsize=(9.2, 4.4), layout="constrained")
    axes = figure.add_subplot()
    sent = [score.sent for score in scores]
    continual = [score.accuracy for score in scores]
    frozen = [score.first for score in scores]
    for index, wave in enumerate(scenario.waves):
        if index % 2 == 0:
            axes.axvspan(wave.first, wave.end, color=SOFT, alpha=0.07, linewidth=0)
        axes.annotate(
            f"wave {wave.number}\n{_news(len(wave.new_labels))}",
            ((wave.first + wave.end) / 2, 0.015),
            xycoords=("data", "axes fraction"),
            ha="center",
            va="bottom",
            fontsize=8,
            color=SOFT,
        )
    axes.plot(sent, continual, color=CONTINUAL, linewidth=2.4, label="Perdure, learning from live traffic")
    axes.plot(sent, frozen, color=FROZEN, linewidth=2.4, linestyle=(0, (5, 2)), label="version 1, left as it was")
    marks = [score for score in scores if score.promotion]
    axes.plot(
        [score.sent for score in marks],
        [score.accuracy for score in marks],
        linestyle="",
        marker="o",
        markersize=7,
        markerfacecolor=PAPER,
        markeredgecolor=CONTINUAL,
        markeredgewidth=2,
        label="a version that passed the judge and was swapped in",
    )
    if scores:
        for value, colour in ((continual[-1], CONTINUAL), (frozen[-1], FROZEN)):
            axes.annotate(
                f"{100 * value:.0f} %",
                (sent[-1], value),
                xytext=(6, 0),
                textcoords="offset points",
                va="center",
                fontsize=11,
                fontweight="bold",
                color=colour,
            )
    axes.set_xlim(0, max(len(scenario.requests), 1) * 1.06)
    axes.set_ylim(0, 1.02)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.grid(axis="y", color=SOFT, alpha=0.2, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("live requests answered")
    axes.set_ylabel("right, on all intents seen so far")
    figure.legend(loc="outside upper left", ncols=3, frameon=False, fontsize=9)
    return figure


def _news(count: int) -> str:
    return f"{count} new intents" if count else "new wording"
