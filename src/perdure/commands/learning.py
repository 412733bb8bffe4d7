"""`perdure fit` and `perdure update`: one turn of the loop, now."""

from __future__ import annotations

from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from perdure.commands.options import AsJson, ConfigFile, Overrides, Seed, print_json, stderr, stdout
from perdure.config import Settings, load_settings
from perdure.errors import UsageError
from perdure.turn import TurnResult

if TYPE_CHECKING:
    from perdure.dataset import DataRow
    from perdure.records import Record


def fit(
    data: Annotated[
        Path, typer.Option("--data", metavar="FILE", help="Labelled rows: JSON Lines or CSV with text and label.")
    ],
    labels: Annotated[
        Path | None,
        typer.Option("--labels", metavar="FILE", help="The labels that rows may have; others are refused."),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", metavar="NAME", help="Encoder: a folder or a model name.")
    ] = None,
    config: ConfigFile = None,
    overrides: Overrides = None,
    seed: Seed = None,
    as_json: AsJson = False,
) -> None:
    """Make version 1 from labelled rows.

    Rows go the way that live traffic goes: into the stream, into memory, through one turn of the loop. Fitting the same
    file twice changes nothing. With a champion in place the rows are learned on top of it.
    """
    from perdure.dataset import file_digest, label_counts, read_labels, read_rows
    from perdure.stream import open_stream

    extra = [
        *(overrides or ()),
        *([f"model.name={model}"] if model else []),
        *([f"seed={seed}"] if seed is not None else []),
    ]
    settings = load_settings(config, extra)
    rows = read_rows(data, read_labels(labels) if labels else None)
    _check_labels(data, rows, settings)
    # An installation that only serves must say so before anything is recorded, not after; so must a wrong encoder.
    import_module("perdure.loop")
    classifier = import_module("perdure.model.classifier")
    classifier.shared_encoder(settings.model.name, settings.model.max_tokens, settings.lora.layers)
    waits = f"Recording {len(rows):,} rows in {settings.stream.url}"
    with open_stream(settings.stream) as stream, stderr.status(waits) if stderr.is_terminal else nullcontext():
        stream.append(_records(rows, file_digest(data)))
    if not as_json:
        stdout.print(f"{len(rows):,} rows with {len(label_counts(rows))} labels recorded from {data}.")
    _report(run_turn(settings), as_json)


def update(
    config: ConfigFile = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
    term: Annotated[
        int | None,
        typer.Option("--term", min=1, hidden=True, help="The trainer's term, outside which nothing is promoted."),
    ] = None,
) -> None:
    """Run one turn of the loop now: ingest, gate, learn, judge, promote or keep.

    What `perdure train` does on a schedule. A turn that was interrupted goes on where it was. Exit code 3 says that
    another process is at it.
    """
    _report(run_turn(load_settings(config, overrides or ()), term), as_json)


def run_turn(settings: Settings, term: int | None = None) -> TurnResult:
    """One turn, with a progress display on standard error; under a trainer's lease it ends with `term`."""
    from perdure.commands.display import turn_display
    from perdure.commands.opened import opened_loop

    with (
        turn_display() as display,
        opened_loop(settings, stage=display.stage, progress=display.steps, term=term) as loop,
    ):
        return loop.turn()


def _report(result: TurnResult, as_json: bool) -> None:
    if as_json:
        print_json(result.to_json())
        return
    from perdure.commands.display import show_turn

    show_turn(result)


def _check_labels(path: Path, rows: tuple[DataRow, ...], settings: Settings) -> None:
    """A first version needs two labels; one that is there can learn a third from a file that has nothing else."""
    from perdure.dataset import label_counts
    from perdure.registry import Registry

    found = label_counts(rows)
    if len(found) < 2 and Registry(settings.registry.url).champion() is None:
        raise UsageError(
            f"all {len(rows)} rows of {path} have the label {next(iter(found))!r}: a first version needs at least two"
        )


def _records(rows: tuple[DataRow, ...], source: str) -> list[Record]:
    from perdure.dataset import event_id
    from perdure.records import Feedback, Interaction, now

    records: list[Record] = []
    imported = now()
    for index, row in enumerate(rows):
        name = row.id or event_id(source, index)
        at = row.time if row.time is not None else imported
        records.append(Interaction(time=at, id=name, text=row.text, subject=row.subject))
        if row.labelled:
            records.append(Feedback(time=at, interaction=name, label=row.label, source="import"))
    return records
