"""`perdure demo`."""

from __future__ import annotations

import importlib.util
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from perdure.errors import UsageError

if TYPE_CHECKING:
    from perdure.config import Settings
    from perdure_services.demo.folder import DemoFolder
    from perdure_services.demo.interruption import Interruption
    from perdure_services.demo.progress import Progress
    from perdure_services.demo.report import Written
    from perdure_services.demo.scenario import Scenario
    from perdure_services.demo.view import View

EXIT_INTERRUPTED = 130

PLAIN_WIDTH = 150
"""Characters in a line where there is no terminal to say so."""


def demo(
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Where stream, memory, registry and the report go.")
    ] = Path("var/demo"),
    keep: Annotated[bool, typer.Option("--keep", help="Leave the API up at the end; Ctrl-C ends it.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start anew, even where an earlier start got far.")] = False,
    waves: Annotated[int | None, typer.Option("--waves", min=1, help="Send only the first so many waves.")] = None,
    rate: Annotated[float, typer.Option("--rate", min=0.1, help="Requests a second.")] = 20.0,
    plain: Annotated[
        bool, typer.Option("--plain", help="Lines instead of the live view; so too where there is no terminal.")
    ] = False,
    data: Annotated[
        Path | None,
        typer.Option("--data", metavar="DIR", help="A folder with stream.jsonl and eval.jsonl instead of the example."),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SECTION.NAME=VALUE", help="One setting; may be given several times."),
    ] = None,
) -> None:
    """See the whole loop on this machine, live, in a few minutes; it ends with a report.

    Fits version 1 from a few intents of a support desk, starts the API and the trainer as they run in production, and
    sends live requests in waves that bring new intents, new wording and some wrong labels. The trainer learns from
    them by itself; each version that the judge lets through is swapped in while requests keep flowing.

    Ctrl-C stops everything at any moment; the next start goes on where it was.
    """
    _check_installed()
    # Imported here: an installation that only serves has none of this, and its `--help` must still work.
    from perdure_services.demo.folder import DemoFolder
    from perdure_services.demo.interruption import Interruption
    from perdure_services.demo.scenario import find_data, read_scenario
    from perdure_services.demo.view import LiveView, PlainView

    scenario = read_scenario(find_data(data), waves)
    with DemoFolder(out) as folder, Interruption() as interruption:
        if fresh:
            folder.fresh()
        console = Console(highlight=False)
        if not console.is_terminal:
            console = Console(highlight=False, width=PLAIN_WIDTH)
        view = PlainView(console) if plain or not console.is_terminal else LiveView(console)
        try:
            _run(folder, scenario, folder.settings(overrides or ()), interruption, console, view, rate=rate, keep=keep)
        except KeyboardInterrupt:
            console.print("Stopped. The next start goes on where it was.")
            raise typer.Exit(EXIT_INTERRUPTED) from None


def _run(
    folder: DemoFolder,
    scenario: Scenario,
    settings: Settings,
    interruption: Interruption,
    console: Console,
    view: View,
    *,
    rate: float,
    keep: bool,
) -> None:
    from perdure_services.demo.demo import Demo, Parts
    from perdure_services.demo.folder import identity
    from perdure_services.demo.lookout import Lookout
    from perdure_services.demo.processes import Processes
    from perdure_services.demo.progress import Progress
    from perdure_services.demo.report import keep_reports, write_results

    with Progress(folder.path, identity(settings, scenario)) as progress:
        config, data = folder.write(settings, scenario)
        lookout = Lookout(settings)
        processes = Processes(folder.path, config, threads=settings.model.threads)
        parts = Parts(scenario, settings, progress, processes, lookout, view, interruption, rate)
        story = Demo(parts, folder.path / "cache", lambda turn: keep_reports(lookout.registry, turn, folder.path))
        # The processes end first: an exam may be busy for a while before it notices.
        with closing(story), processes, interruption.stopping():
            url = None
            if story.finished:
                console.print(f"The demo in {folder.path} is over; this is what came of it (--fresh starts anew).")
            else:
                progress.begin()
                with view:
                    story.fit(data)
                    url = story.start()
                    story.waves(url)
            written = write_results(folder.path, scenario, settings, progress, lookout.quarantined())
            _show(console, scenario, progress, written)
            if keep:
                url = url or story.start()
                console.print(
                    f"The API stays up at {url} (try {url}/docs), and the trainer beside it. Ctrl-C ends both."
                )
                with suppress(KeyboardInterrupt):
                    story.wait()


def _show(console: Console, scenario: Scenario, progress: Progress, written: Written) -> None:
    from perdure_services.demo.report import headline
    from perdure_services.demo.scoreboard import Scoreboard
    from perdure_services.demo.view import clock, verdicts_table, waves_table

    board = Scoreboard(scenario, progress)
    console.print()
    console.print(waves_table(board.waves()))
    console.print()
    console.print(verdicts_table(progress.turns))
    console.print()
    console.print(headline(progress, board))
    console.print(f"It took {clock(progress.seconds)}. Report: {written.report}. Figures: {written.figures}.")


def _check_installed() -> None:
    for module in ("apscheduler", "matplotlib", "jinja2"):
        if importlib.util.find_spec(module) is None:
            raise UsageError(f"the demo needs {module}, which is not installed: install perdure[cpu,demo]")
