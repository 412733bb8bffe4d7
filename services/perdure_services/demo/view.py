"""What a person sees while the demo runs."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from perdure_services.demo.progress import SeenTurn
from perdure_services.demo.scoreboard import WaveFigures

PLAIN_SECONDS = 10.0
"""How often the plain view says how far it is."""

VERDICTS_SHOWN = 4
COLOURS = {"promote": "green", "keep": "yellow", "inconclusive": "cyan", "stale": "red"}


@dataclass(frozen=True, slots=True)
class Said:
    """One verdict."""

    version: str
    outcome: str
    sentence: str


@dataclass(frozen=True, slots=True)
class Status:
    """How things stand."""

    activity: str
    wave: int = 0
    waves: int = 0
    answered: int = 0
    """Requests of this wave."""
    requests: int = 0
    sent: int = 0
    """Requests of all waves."""
    total: int = 0
    live: float | None = None
    """Share of the last answers that were right."""
    first_live: float | None = None
    """The same for version 1."""
    confidence: float | None = None
    exam: float | None = None
    """Share of the evaluation rows that what serves gets right."""
    first_exam: float | None = None
    """The same for version 1."""
    version: str | None = None
    trainer: str = ""
    failed: int = 0
    seconds: float = 0.0
    left: float | None = None
    """Seconds, about."""
    verdicts: tuple[Said, ...] = ()
    """Oldest first."""
    figures: tuple[WaveFigures, ...] = ()


class View(ABC):
    """Shows the demo."""

    @abstractmethod
    def show(self, status: Status) -> None:
        """How things stand now; called many times a second."""

    @abstractmethod
    def say(self, text: str) -> None:
        """Something that happened."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


class PlainView(View):
    """Lines, for a log."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._next = 0.0
        self._activity = ""

    def show(self, status: Status) -> None:
        now = time.monotonic()
        if status.activity == self._activity and now < self._next:
            return
        self._activity, self._next = status.activity, now + PLAIN_SECONDS
        parts = [status.activity]
        if status.sent:
            parts += [
                f"{status.sent} of {status.total} requests",
                f"exam {percent(status.exam)} (version 1: {percent(status.first_exam)})",
                f"live answers {percent(status.live)} (version 1: {percent(status.first_live)})",
                f"confidence {percent(status.confidence)}",
                f"{status.failed} failed",
            ]
        parts += [f"serving {status.version}"] if status.version else []
        parts += [f"trainer: {status.trainer}"] if status.trainer else []
        self._print(f"{clock(status.seconds)}  {'; '.join(parts)}")

    def say(self, text: str) -> None:
        self._print(text)

    def _print(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


class LiveView(View):
    """A picture that changes in place."""

    def __init__(self, console: Console) -> None:
        self._live = Live(console=console, refresh_per_second=4, transient=True)
        self._status = Status("starting")

    def show(self, status: Status) -> None:
        self._status = status
        self._live.update(dashboard(status))

    def say(self, text: str) -> None:
        # The dashboard shows what matters for as long as it matters.
        return None

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()


def dashboard(status: Status) -> RenderableType:
    """The whole picture."""
    head = Table.grid(expand=True)
    head.add_column(ratio=1)
    head.add_column(justify="right")
    time_left = f", about {clock(status.left)} left" if status.left is not None else ""
    head.add_row(Text(status.activity, style="bold"), Text(f"{clock(status.seconds)}{time_left}", style="dim"))
    parts: list[RenderableType] = [head]
    if status.total:
        parts += [Text(), _bars(status), Text(), _now(status)]
    if status.figures:
        parts += [Text(), waves_table(status.figures)]
    if status.verdicts:
        parts += [Text(), _verdicts(status.verdicts)]
    return Panel(Group(*parts), title="[bold]Perdure[/]  models that keep learning", title_align="left", padding=(1, 2))


def waves_table(figures: Sequence[WaveFigures]) -> Table:
    """One row for each wave."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("wave", justify="right")
    table.add_column("new intents", max_width=34)
    table.add_column("requests", justify="right")
    table.add_column("right when answered", justify="right")
    table.add_column("version 1 would be", justify="right")
    table.add_column("exam after it", justify="right")
    table.add_column("version 1", justify="right")
    table.add_column("serving", no_wrap=True)
    for one in figures:
        table.add_row(
            str(one.wave),
            named(one.new_labels),
            str(one.requests),
            percent(one.live),
            percent(one.first_live),
            Text(percent(one.accuracy), style="bold green" if _ahead(one) else ""),
            percent(one.first),
            one.version or "",
        )
    return table


def verdicts_table(turns: Sequence[SeenTurn]) -> Table:
    """One row for each candidate."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("turn", justify="right")
    table.add_column("candidate", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    table.add_column("why")
    for turn in turns:
        for one in turn.result.candidates:
            outcome = Text(one.outcome, style=COLOURS.get(one.outcome, ""))
            table.add_row(str(turn.result.number), one.version, outcome, Text(one.sentence))
    return table


def _ahead(one: WaveFigures) -> bool:
    return one.accuracy is not None and one.first is not None and one.accuracy > one.first


def _bars(status: Status) -> RenderableType:
    table = Table.grid(expand=True, padding=(0, 2, 0, 0))
    table.add_column(width=12)
    table.add_column(ratio=1)
    table.add_column(justify="right", width=14)
    rows = [(f"wave {status.wave} of {status.waves}", status.answered, status.requests)] if status.wave else []
    for name, done, total in (*rows, ("all requests", status.sent, status.total)):
        bar = ProgressBar(total=max(total, 1), completed=done, complete_style="cyan", finished_style="green")
        table.add_row(name, bar, f"{done:,} / {total:,}")
    return table


def _now(status: Status) -> RenderableType:
    table = Table.grid(expand=True, padding=(0, 2, 0, 0))
    for _ in range(4):
        table.add_column(ratio=1)
    table.add_row(
        _figure("exam", percent(status.exam), "bold green"),
        _figure("version 1", percent(status.first_exam), "yellow"),
        _figure("serving", status.version or "nothing yet", "bold"),
        _figure("trainer", status.trainer),
    )
    table.add_row(
        _figure("live answers", percent(status.live), "green"),
        _figure("version 1", percent(status.first_live), "yellow"),
        _figure("confidence", percent(status.confidence)),
        _figure("failed requests", str(status.failed), "bold red" if status.failed else "green"),
    )
    return table


def _figure(name: str, value: str, style: str = "") -> Text:
    return Text.assemble((f"{name}  ", "dim"), (value, style))


def _verdicts(verdicts: Sequence[Said]) -> RenderableType:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column()
    for one in verdicts[-VERDICTS_SHOWN:]:
        table.add_row(Text(one.version, style=COLOURS.get(one.outcome, "")), Text(one.sentence))
    return table


def named(labels: Sequence[str]) -> str:
    """Intents as words."""
    return ", ".join(labels).replace("_", " ") or "no new intents, but new wording"


def percent(share: float | None) -> str:
    """A share as percent; a dash where there is none."""
    return "–" if share is None else f"{100 * share:.1f} %"


def clock(seconds: float) -> str:
    """Minutes and seconds."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
