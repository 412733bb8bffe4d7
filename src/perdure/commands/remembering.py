"""`perdure memory` and `perdure forget`: what is kept of the past."""

from __future__ import annotations

import logging
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import ValidationError
from rich.table import Table

from perdure.commands.options import AsJson, ConfigFile, Overrides, print_json, stdout
from perdure.config import load_settings
from perdure.errors import StoreBusy, UsageError

if TYPE_CHECKING:
    from perdure.memory import MemoryCounts, Quarantined

logger = logging.getLogger(__name__)

NOT_REACHED = (
    "the version that serves, until the next turn's head is promoted",
    "weights of an adapter that were already trained, until an update replaces them",
    "reports of versions already written, until those versions are collected",
    "backups made before now: `perdure restore` forgets again, as the registry keeps who was forgotten",
)
NOT_REACHED_REMOTE = (
    "the topic's records, until its retention ends; memory refuses them if they come again",
    "the spools of serving processes, until they have sent: DELETE /v1/subjects/SUBJECT at each of them reaches those",
    "snapshots of ingesters, until newer ones replace them",
)


def memory(
    quarantine: Annotated[
        bool, typer.Option("--quarantine", help="List what was kept out of learning, and why.")
    ] = False,
    config: ConfigFile = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Show what memory holds: samples of each label, what waits, what is in quarantine. Safe while the trainer runs."""
    from perdure.memory import open_memory

    settings = load_settings(config, overrides or ())
    with open_memory(settings, read_only=True) as remembered:
        counts, doubtful = remembered.counts(), remembered.quarantined()
    if as_json:
        print_json(
            {**asdict(counts), "quarantine": [asdict(one) for one in doubtful]} if quarantine else asdict(counts)
        )
    elif quarantine:
        _show_quarantine(doubtful)
    else:
        _show_counts(counts)


def forget(
    subject: Annotated[str, typer.Argument(help="Whose data: the `subject` that predictions were recorded with.")],
    config: ConfigFile = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Remove a person's data from the stream and from memory, and say what cannot be reached."""
    from perdure.memory import open_memory
    from perdure.oblivion import reconcile
    from perdure.records import Erasure, now
    from perdure.registry import Registry
    from perdure.stream import open_stream

    settings = load_settings(config, overrides or ())
    until = now()
    try:
        erasure = Erasure(time=until, subject=subject)
    except ValidationError as error:
        said = f"has {len(subject):,} characters" if subject else "is empty"
        raise UsageError(f"the subject {subject[:40]!r} {said}: give 1 to 1,000 characters") from error
    with open_stream(settings.stream) as stream:
        stream.append([erasure])
        removed = stream.forget(subject, until)
        not_reached = NOT_REACHED + (NOT_REACHED_REMOTE if stream.remote else ())
    samples, when, head = 0, "with the next turn: the trainer has the memory open", "gives the labels back"
    try:
        with open_memory(settings) as remembered:
            forgotten = remembered.forget(subject, until)
            reconcile(remembered, Registry(settings.registry.url))
        samples, when = forgotten.samples, "now"
        if forgotten.rebuild_head:
            head = "has some labels only as sums, and is rebuilt from memory"
    except StoreBusy:
        # The erasure stands in the stream, and whoever has the memory open will read it there.
        logger.info("the memory is in use: the erasure waits in the stream")
    told = {
        "subject": subject,
        "stream_entries_removed": removed,
        "samples_removed": samples,
        "memory": when,
        "head": f"{head}, with the next turn",
        "not_reached": not_reached,
    }
    if as_json:
        print_json(told)
        return
    stdout.print(f"Stream: {removed} entries removed. Memory: {samples} samples removed, {when}.")
    if not removed and not samples and when == "now":
        stdout.print(f"Nothing of {subject!r} was found: check the name, if something should have been.")
    stdout.print(f"The analytic head {head}, with the next turn.")
    for one in not_reached:
        stdout.print(f"Not reached: {one}.")


def _show_counts(counts: MemoryCounts) -> None:
    table = Table("label", "samples")
    for label, count in counts.labels.items():
        table.add_row(label, str(count))
    for label, count in counts.pending.items():
        table.add_row(f"{label} (too few to be a class)", str(count))
    stdout.print(table)
    stdout.print(
        f"{counts.samples:,} samples ({counts.held_out:,} held out), {counts.fresh:,} rows wait for a turn, "
        f"{counts.waiting_feedback:,} labels wait for their prediction, {counts.quarantined:,} in quarantine, "
        f"{counts.memory_bytes / 1e6:,.1f} MB."
    )


def _show_quarantine(doubtful: tuple[Quarantined, ...]) -> None:
    table = Table("id", "label", "text", "reason")
    for one in doubtful:
        table.add_row(one.id, one.label or "–", one.text[:80], one.reason)
    stdout.print(table if doubtful else "Nothing is in quarantine.")
