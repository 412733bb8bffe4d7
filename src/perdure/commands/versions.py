"""`perdure versions`, `promote` and `rollback`: what is served, and why."""

from __future__ import annotations

import getpass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Column, Table

from perdure.commands.options import AsJson, ConfigFile, Overrides, print_json, stdout
from perdure.config import load_settings
from perdure.errors import VersionDamaged

if TYPE_CHECKING:
    from perdure.registry import Card, Promotion, Registry


def _said_something(reason: str) -> str:
    if not reason.strip():
        raise typer.BadParameter(f"{reason!r} says nothing: whoever reads the log of promotions wants to know why")
    return reason


Reason = Annotated[
    str, typer.Option("--reason", callback=_said_something, help="Why; it stands in the log of promotions.")
]


def versions(config: ConfigFile = None, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """List versions, what the judge said of each, and which one is served."""
    from perdure.registry import Registry

    registry = Registry(load_settings(config, overrides or ()).registry.url)
    champion = registry.champion()
    cards: list[Card] = []
    damaged: dict[str, str] = {}
    for name in registry.versions():
        try:
            cards.append(registry.card(name))
        except VersionDamaged as error:
            damaged[name] = str(error)
    if as_json:
        print_json(
            {
                "champion": champion.version if champion else None,
                "versions": [card.model_dump(mode="json", exclude={"files", "config"}) for card in cards],
                "damaged": damaged,
                "promotions": [entry.model_dump(mode="json") for entry in registry.promotions()],
            }
        )
        return
    if not cards and not damaged:
        stdout.print(f"No versions in {registry.name} yet. Make one: perdure fit --data FILE")
        return
    table = Table("", Column("version", no_wrap=True), "made", "labels", "accuracy", "verdict")
    for card in cards:
        verdict = card.verdict or {}
        accuracy = card.metrics.get("accuracy")
        table.add_row(
            "▶" if champion and card.name == champion.version else "",
            card.name,
            datetime.fromtimestamp(card.created, UTC).strftime("%Y-%m-%d %H:%M"),
            str(len(card.labels)),
            "–" if accuracy is None else f"{accuracy:.1%}",
            str(verdict.get("outcome", "–")),
        )
    for name in damaged:
        table.add_row("", name, "–", "–", "–", "damaged")
    stdout.print(table)
    # Below, as sentences beside the names would leave no room for either.
    for card in cards:
        if why := (card.verdict or {}).get("sentence"):
            stdout.print(f"{card.name}: {why}")
    for name, problem in damaged.items():
        stdout.print(f"{name}: {problem}")
    stdout.print("Accuracy is on the rows that the judge compared on; ▶ is what is served.")


def promote(
    version: Annotated[str, typer.Argument(help="The version to serve, as `perdure versions` names it.")],
    reason: Reason = "by hand",
    config: ConfigFile = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Serve a version, whatever the judge said of it. Serving swaps to it within a second or two."""
    from perdure.registry import Registry

    registry = Registry(load_settings(config, overrides or ()).registry.url)
    _said(registry.promote(version, reason=reason, by=getpass.getuser()), registry, as_json)


def rollback(
    reason: Reason = "by hand", config: ConfigFile = None, overrides: Overrides = None, as_json: AsJson = False
) -> None:
    """Go back to the version that was served before. Rolling back twice goes back further."""
    from perdure.registry import Registry

    registry = Registry(load_settings(config, overrides or ()).registry.url)
    _said(registry.rollback(by=getpass.getuser(), reason=reason), registry, as_json)


def _said(entry: Promotion, registry: Registry, as_json: bool) -> None:
    from perdure.lineage import knows_forgotten

    knows = knows_forgotten(entry.version, registry)
    if as_json:
        print_json({**entry.model_dump(mode="json"), "knows_forgotten": knows})
    else:
        stdout.print(f"Promotion {entry.number}: {entry.version} is served from now on ({entry.reason}).")
        if knows:
            stdout.print(
                "Its head still knows rows that were forgotten after it was made. The trainer's next turn makes one "
                "without them; where no trainer runs, run `perdure update`."
            )
        if knows is None:
            stdout.print("Whether its head knows what was forgotten since cannot be read just now.")
        if entry.kind == "rollback":
            stdout.print(
                f"The judge does not promote {', '.join(entry.rolled_back)} again by itself; it may promote what a "
                "later turn learns from the same labels. Stop the trainer where that must not be."
            )
