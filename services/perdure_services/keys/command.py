"""`perdure keys`: who may call the API."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, get_args

import typer
from pydantic import ValidationError
from rich.table import Table

from perdure.commands.options import AsJson, ConfigFile, Overrides, print_json, stdout
from perdure.config import load_settings
from perdure.errors import UsageError
from perdure_services.keys.key import SCOPES, Key, KeyScope, issue
from perdure_services.keys.key_file import add_key, read_keys, remove_key

Name = Annotated[str, typer.Argument(metavar="NAME", help="Whose key it is: letters, digits, dots and dashes.")]
File = Annotated[
    Path | None, typer.Option("--file", metavar="FILE", help="The file of keys; by default the setting serving.keys.")
]

keys = typer.Typer(
    no_args_is_help=True,
    help="Make, list and revoke the API keys that `perdure serve` asks for. "
    "A running API follows within seconds, without a restart.",
)


@keys.command()
def create(
    name: Name,
    scopes: Annotated[
        str,
        typer.Option(metavar="SCOPE,...", help=f"What the key may do: {', '.join(SCOPES)}; several with commas."),
    ],
    expires_days: Annotated[
        float | None, typer.Option("--expires-days", metavar="N", help="Days until it is refused; never by default.")
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option(metavar="R", help="Requests per second that each server answers; no limit by default."),
    ] = None,
    burst: Annotated[
        int | None, typer.Option(metavar="B", help="Requests that may come at once; by default one second's.")
    ] = None,
    file: File = None,
    config: ConfigFile = None,
    overrides: Overrides = None,
) -> None:
    """Make a key and print it, this once: only its hash is kept.

    The key alone goes to standard output, what there is to know about it to standard error.
    """
    place = _file(file, config, overrides)
    now = datetime.now(UTC).replace(microsecond=0)
    if burst is not None and rate is None:
        raise UsageError(f"--burst {burst} needs a rate: give --rate R too")
    try:
        issued = issue(name, _scopes(scopes), created=now, expires=_end(now, expires_days), rate=rate, burst=burst)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        what = first["loc"][0]
        option = what if what == "name" else f"--{what}"
        raise UsageError(f"{option} cannot be {first['input']!r}: {first['msg']}") from error
    add_key(place, issued.key)
    typer.echo(issued.text)
    typer.echo(
        f"This is the key {name!r}; it is not shown again. It may: {', '.join(issued.key.scopes)}. "
        f"Its hash stands in {place}. Send it as `Authorization: Bearer KEY`.",
        err=True,
    )


@keys.command(name="list")
def show(file: File = None, config: ConfigFile = None, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """List the keys: their names, what they may do, and until when."""
    place = _file(file, config, overrides)
    found = read_keys(place)
    if as_json:
        print_json({"file": str(place), "keys": [key.model_dump(mode="json", exclude={"sha256"}) for key in found]})
        return
    if not found:
        stdout.print(f"No keys in {place}: nobody may do anything. Make one: perdure keys create NAME --scopes predict")
        return
    table = Table("name", "id", "may", "made", "expires", "requests/s")
    now = datetime.now(UTC)
    for key in found:
        table.add_row(key.name, key.id, ", ".join(key.scopes), _day(key.created), _until(key, now), _rate(key))
    stdout.print(table)


@keys.command()
def revoke(name: Name, file: File = None, config: ConfigFile = None, overrides: Overrides = None) -> None:
    """Take a key back: a running API refuses it within seconds."""
    place = _file(file, config, overrides)
    removed = remove_key(place, name)
    stdout.print(f"The key {removed.name} (id {removed.id}) is revoked in {place}.")


def _file(file: Path | None, config: Path | None, overrides: list[str] | None) -> Path:
    if file is not None:
        return file
    named = load_settings(config, overrides or ()).serving.keys
    if not named:
        raise UsageError(
            "no file of keys is named: give --file FILE, or set serving.keys (in --config, as PERDURE_SERVING__KEYS, "
            "or --set serving.keys=FILE) to the one that `perdure serve` reads"
        )
    return Path(named)


def _scopes(text: str) -> tuple[KeyScope, ...]:
    asked = [part.strip() for part in text.split(",")]
    for part in asked:
        if part not in SCOPES:
            near = get_close_matches(part, SCOPES, n=1)
            meant = f": did you mean {near[0]!r}?" if near else f": choose of {', '.join(SCOPES)}"
            raise UsageError(f"--scopes cannot hold {part!r}{meant}")
    return tuple(scope for scope in get_args(KeyScope) if scope in asked)


def _end(now: datetime, days: float | None) -> datetime | None:
    if days is None:
        return None
    try:
        end = now + timedelta(days=days)
    except (OverflowError, ValueError) as error:
        raise UsageError(
            f"--expires-days cannot be {days:g}: give a number of days, or leave it out for never"
        ) from error
    if end <= now:
        raise UsageError(f"--expires-days cannot be {days:g}: a key must live for a while")
    return end


def _day(time: datetime) -> str:
    return time.astimezone(UTC).strftime("%Y-%m-%d %H:%M")


def _until(key: Key, now: datetime) -> str:
    if key.expires is None:
        return "never"
    return f"{_day(key.expires)} (expired)" if key.expires <= now else _day(key.expires)


def _rate(key: Key) -> str:
    if key.rate is None:
        return "–"
    return f"{key.rate:g}" if key.burst is None else f"{key.rate:g}, {key.burst} at once"
