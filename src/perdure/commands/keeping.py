"""`perdure backup` and `perdure restore`: copies of what is kept, and the way back."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from perdure.commands.options import AsJson, ConfigFile, Overrides, print_json, stdout
from perdure.config import load_settings
from perdure.errors import UsageError

if TYPE_CHECKING:
    from perdure.backup import Part

Chosen = Annotated[
    list[str] | None,
    typer.Option("--part", metavar="PART", help="memory, stream or registry alone; may be given several times."),
]


def backup(
    folder: Annotated[Path, typer.Argument(help="A new folder for this backup.")],
    part: Chosen = None,
    config: ConfigFile = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Copy memory, the embedded stream and the registry into a new folder, while everything runs.

    Every file is listed with its hash. A stream in Kafka is not copied: memory goes on from its offset there. Whoever
    can read the folder can read what people wrote: keep it as you keep the memory itself.
    """
    from perdure.backup import back_up

    manifest = back_up(load_settings(config, overrides or ()), folder, _parts(part))
    size = sum(entry.size for entry in manifest.files.values())
    if as_json:
        print_json({**manifest.model_dump(mode="json", exclude={"files"}), "files": len(manifest.files), "bytes": size})
        return
    stdout.print(
        f"Copied {', '.join(manifest.parts)} to {folder}: {len(manifest.files):,} files, {size / 1e6:,.1f} MB."
    )
    if manifest.offset:
        stdout.print(f"Memory goes on from {_positions(manifest.offset)}.")
    if manifest.champion:
        stdout.print(f"{manifest.champion} is served.")


def restore(
    folder: Annotated[Path, typer.Argument(help="A folder that `perdure backup` made.")],
    part: Chosen = None,
    forgotten: Annotated[
        Path | None,
        typer.Option("--forgotten", metavar="FILE", help="Subjects to forget beside those known, one a line."),
    ] = None,
    config: ConfigFile = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Put a backup back where nothing is; stop everything else before. Who was forgotten since is forgotten again.

    Every file is checked before anything is written, and nothing is overwritten.
    """
    from perdure.backup import restore as put_back

    settings = load_settings(config, overrides or ())
    done = put_back(settings, folder, _parts(part), _subjects(forgotten))
    if as_json:
        print_json(
            {
                "parts": done.parts,
                "made": done.made,
                "champion": done.champion,
                "offset": dict(done.offset),
                "erasures": done.erasures,
            }
        )
        return
    made = datetime.fromtimestamp(done.made, UTC).strftime("%Y-%m-%d %H:%M:%S")
    stdout.print(f"Put back {', '.join(done.parts)} as of {made} UTC.")
    if "memory" in done.parts:
        stdout.print(
            f"Memory goes on from {_positions(done.offset)}; {done.erasures} erasures since then were carried out."
        )
    stdout.print(f"{done.champion} is served." if done.champion else "Nothing is served yet.")


def _parts(names: list[str] | None) -> tuple[Part, ...] | None:
    from perdure.backup import PARTS

    if not names:
        return None
    for name in names:
        if name not in PARTS:
            raise UsageError(f"--part cannot be {name!r}: give one of {', '.join(PARTS)}")
    return tuple(cast("Part", name) for name in names)


def _subjects(file: Path | None) -> list[str]:
    if file is None:
        return []
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{file} with those who are to be forgotten cannot be read ({error}): give a text file"
        ) from error
    return [line.strip() for line in lines if line.strip()]


def _positions(offset: object) -> str:
    positions = dict(offset) if isinstance(offset, dict) else {}
    return ", ".join(f"position {at:,} of partition {name}" for name, at in positions.items()) or "the beginning"
