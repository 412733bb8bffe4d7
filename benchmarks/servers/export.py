"""The exported model: the very files that Perdure serves, for those that serve them without it.

This file says where they are and `apps/exported.py` runs them; nothing else here knows what is inside.
"""

from __future__ import annotations

from pathlib import Path

from contestants.contest import Unavailable
from perdure.engine.served import Engine
from perdure.engine.served import exported as was_exported
from perdure.model.layout import ENGINE_FILE
from perdure.registry import Registry
from servers.version import champion


def exported(cache: Path, registry: Path) -> Path:
    """The folder with the files of a registry's champion, in `cache`.

    Raises:
        Unavailable: the version was made without an export.
    """
    name = champion(registry)
    folder = Registry(str(registry)).fetch(name, cache)
    if not was_exported(folder):
        raise Unavailable(f"version {name} has no exported graphs: its card in {registry} says why")
    return folder


def described(folder: Path) -> dict[str, str]:
    """How the model was exported."""
    engine = Engine.decode((folder / ENGINE_FILE).read_text(encoding="utf-8"))
    return {"files": "the version's own, as Perdure serves them", "precision": engine.precision}
