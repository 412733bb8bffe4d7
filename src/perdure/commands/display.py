"""Progress of a turn, for a person who waits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from perdure.commands.options import stderr, stdout
from perdure.turn import TurnResult

_COLOURS = {"promote": "green", "keep": "yellow", "inconclusive": "cyan", "stale": "red"}


class TurnDisplay:
    """Shows the stage that a turn is in, and how far LoRA has come."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("starting", total=None)

    def stage(self, name: str) -> None:
        self._progress.update(self._task, description=name, total=None, completed=0)

    def steps(self, step: int, steps: int) -> None:
        self._progress.update(self._task, total=steps, completed=step)

    def say(self, text: str) -> None:
        self._progress.console.print(text)


@contextmanager
def turn_display() -> Iterator[TurnDisplay]:
    """A line on standard error that vanishes when the work is done."""
    columns = SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn()
    # A log file wants no line that moves.
    with Progress(*columns, console=stderr, transient=True, disable=not stderr.is_terminal) as progress:
        yield TurnDisplay(progress)


def show_turn(result: TurnResult) -> None:
    """What came out of a turn, on standard output."""
    if result.empty:
        stdout.print(f"Nothing new to learn from. Serving: {result.champion or 'nothing yet'}.")
        return
    table = Table("candidate", "verdict", "why", "seconds", title=f"Turn {result.number}", title_justify="left")
    for one in result.candidates:
        colour = _COLOURS.get(one.outcome, "white")
        table.add_row(one.version, Text(one.outcome, style=colour), one.sentence, f"{one.seconds:.1f}")
    if result.candidates:
        stdout.print(table)
    gate = ", ".join(f"{name} {count}" for name, count in result.gate.items())
    stdout.print(f"Gate: {gate}.")
    if result.drift:
        stdout.print(f"Drift: {result.drift}")
    if result.note:
        stdout.print(f"No candidate: {result.note}.")
    stdout.print(f"Serving: {result.champion or 'nothing yet'}.")
