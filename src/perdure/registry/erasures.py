"""Who was forgotten, kept beside versions: a memory that is put back from an old copy must not bring anybody back.

    erasures/1763856000.25-9f86d081884c7d659a2feaa0c55ad015     forgotten up to that time (s), and the alias

An alias is the keyed hash by which memory knows a subject; nobody's name stands here.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping

from perdure.registry.store import Store

log = logging.getLogger(__name__)

FOLDER = "erasures"

_NAME = re.compile(r"^(?P<until>-?[0-9.e+-]+)-(?P<alias>[0-9a-f]{2,})$")


class Erasures:
    """What is under `erasures/` in a store. One listing reads it all; entries never change."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def read(self) -> dict[str, float]:
        """The time (s) up to which each alias was forgotten."""
        until: dict[str, float] = {}
        for item in self._store.items(FOLDER):
            found = _decode(item.path.rpartition("/")[2])
            if found is None:
                log.warning("%s in the registry %s names no erasure: it is passed over", item.path, self._store.name)
                continue
            alias, time = found
            until[alias] = max(time, until.get(alias, time))
        return until

    def add(self, erasures: Mapping[str, float]) -> None:
        """Adds the time (s) up to which each alias was forgotten; what stands there already stays."""
        for alias, until in erasures.items():
            self._store.create(f"{FOLDER}/{until!r}-{alias}", b"{}")


def _decode(name: str) -> tuple[str, float] | None:
    found = _NAME.match(name)
    if found is None:
        return None
    try:
        until = float(found["until"])
    except ValueError:
        return None
    return (found["alias"], until) if math.isfinite(until) else None
