"""The command line: finds commands, sets up logging, turns errors into sentences and exit codes."""

from __future__ import annotations

import logging
import os
import sys
from functools import cache
from importlib.metadata import entry_points
from typing import Annotated

import typer

from perdure import __version__, logs
from perdure.commands import backtest, keeping, learning, remembering, versions
from perdure.commands.options import stderr
from perdure.errors import ExtraMissing, LeaseLost, PerdureError, StoreBusy, UsageError

ENTRY_POINTS = "perdure.commands"

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_BUSY = 3
EXIT_FENCED = 4
EXIT_INTERRUPTED = 130

EPILOG = (
    "Every setting also comes from --config FILE, PERDURE_SECTION__NAME and --set section.name=value. "
    "Exit codes: 0 done, 1 failed, 2 wrong usage or input, 3 another process is at it, 130 interrupted."
)

app = typer.Typer(
    name="perdure",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    epilog=EPILOG,
)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def perdure(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and leave.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log what happens inside.")] = False,
) -> None:
    """Models that keep learning, and keep what they learned.

    Start with `perdure demo`. With your own data: `perdure fit --data FILE`, then `perdure serve` and `perdure train`.
    """
    logs.begin(logging.INFO if verbose else logging.WARNING)
    if not verbose:
        # A broker that is away is told once, in our words; its client shouts at every try.
        logging.getLogger("kafka").setLevel(logging.CRITICAL)


@cache
def build() -> typer.Typer:
    """The application with all commands that are installed."""
    services = {point.name: point for point in entry_points(group=ENTRY_POINTS)}
    first = [name for name in ("demo",) if name in services]
    for name in first:
        app.command(name)(services.pop(name).load())
    app.command("fit")(learning.fit)
    for name in sorted(services):
        command = services[name].load()
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=name)
        else:
            app.command(name)(command)
    app.command("update")(learning.update)
    app.command("backtest")(backtest.backtest)
    app.command("versions")(versions.versions)
    app.command("promote")(versions.promote)
    app.command("rollback")(versions.rollback)
    app.command("memory")(remembering.memory)
    app.command("forget")(remembering.forget)
    app.command("backup")(keeping.backup)
    app.command("restore")(keeping.restore)
    return app


def main() -> None:
    """Runs the command line; errors become one sentence and an exit code."""
    # Threads that wait by spinning take the cores from the process beside them: the API from the trainer, say.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Evidently counts its users unless told not to.
    os.environ.setdefault("DO_NOT_TRACK", "1")
    try:
        # Typer itself tells of wrong options (2), and turns what commands raise with `typer.Exit` into exit codes.
        build()(prog_name="perdure")
    except KeyboardInterrupt:
        code = EXIT_INTERRUPTED
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in ("perdure", "perdure_replay", "perdure_services"):
            raise
        code = _failed(ExtraMissing("this command", (error.name or "").partition(".")[0]), EXIT_USAGE)
    except StoreBusy as error:
        code = _failed(error, EXIT_BUSY)
    except LeaseLost as error:
        code = _failed(error, EXIT_FENCED)
    except UsageError as error:
        code = _failed(error, EXIT_USAGE)
    except (PerdureError, OSError) as error:
        code = _failed(error, EXIT_FAILED)
    sys.exit(code)


def _failed(error: Exception | str, code: int) -> int:
    """Says what went wrong on one line, whatever the message looks like."""
    stderr.print(f"perdure: {' '.join(str(error).split())}")
    return code
