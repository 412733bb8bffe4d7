"""The demo in one picture, for a page that is not ours: its own background, as SVG and PNG."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from perdure_services.demo.progress import Progress
from perdure_services.demo.scenario import Scenario
from perdure_services.demo.scoreboard import Scoreboard

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


def write_picture(folder: Path, scenario: Scenario, progress: Progress) -> tuple[Path, Path]:
    """Writes `accuracy.svg` and `accuracy.png` into `folder`: the exam's accuracy over the demo's time.

    Raises:
        OSError: `folder` cannot be written.
    """
    paths = folder / f"{NAME}.svg", folder / f"{NAME}.png"
    with rc_context(STYLE):
        figure = _drawn(scenario, progress)
        for path in paths:
            metadata = {"Date": None} if path.suffix == ".svg" else {"Software": None}
            figure.savefig(path, dpi=144, facecolor=PAPER, metadata=metadata)
    return paths


def _drawn(scenario: Scenario, progress: Progress) -> Figure:
    board = Scoreboard(scenario, progress)
    figure = Figure(figsize=(9.2, 4.4), layout="constrained")
    axes = figure.add_subplot()
    for index, wave in enumerate(scenario.waves):
        if (times := board.minutes(wave)) is None:
            continue
        if index % 2 == 0:
            axes.axvspan(*times, color=SOFT, alpha=0.07, linewidth=0)
        place = (sum(times) / 2, 0.015)
        name = f"wave {wave.number}\n{_news(len(wave.new_labels))}"
        axes.annotate(name, place, xycoords=("data", "axes fraction"), ha="center", va="bottom", fontsize=8, color=SOFT)
    lines = (
        (CONTINUAL, "-", "Perdure, learning from live traffic"),
        (FROZEN, (0, (5, 2)), "version 1, left as it was"),
    )
    for points, (colour, style, name) in zip(board.exam(), lines, strict=True):
        x, y = [point[0] for point in points], [point[1] for point in points]
        axes.plot(x, y, color=colour, linewidth=2.4, linestyle=style, label=name)
        if points:
            axes.annotate(
                f"{100 * y[-1]:.0f} %", (x[-1], y[-1]), xytext=(6, 0), textcoords="offset points", va="center",
                fontsize=11, fontweight="bold", color=colour,
            )  # fmt: skip
    promoted = [score for score in progress.scores if score.promotion]
    axes.plot(
        [score.seconds / 60 for score in promoted],
        [score.accuracy for score in promoted],
        linestyle="",
        marker="o",
        markersize=7,
        markerfacecolor=PAPER,
        markeredgecolor=CONTINUAL,
        markeredgewidth=2,
        label="a version that passed the judge and was swapped in",
    )
    first, last = progress.scores[0].seconds / 60, progress.scores[-1].seconds / 60
    axes.set_xlim(first, first + max(last - first, 0.01) * 1.06)
    axes.set_ylim(0, 1.02)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.grid(axis="y", color=SOFT, alpha=0.2, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("minutes since the start")
    axes.set_ylabel("right, on all intents that have come")
    figure.legend(loc="outside upper left", ncols=3, frameon=False, fontsize=9)
    return figure


def _news(count: int) -> str:
    return f"{count} new intents" if count else "new wording"
