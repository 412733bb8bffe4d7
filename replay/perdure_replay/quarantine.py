"""Records kept out of learning, with their reasons."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable

from perdure.memory import Quarantined
from perdure.stream.base import Entry
from perdure_replay.priority import Priorities
from perdure_replay.store import Store

SHOWN = 2000
"""Characters kept of a payload that cannot be read."""

SUBJECT = re.compile(r'"subject"\s*:\s*("(?:[^"\\]|\\.)*")')
TIME = re.compile(r'"time"\s*:\s*(-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)')


class Quarantine:
    """A bounded table; every method that writes runs inside the caller's transaction."""

    def __init__(self, store: Store, priorities: Priorities, bound: int) -> None:
        self._store = store
        self._priorities = priorities
        self._bound = bound

    def refuse(self, entry: Entry, reason: str, latest: float) -> bool:
        """Keeps a payload that cannot be used; says whether it was new.

        Its time and subject are looked for even in what is not JSON: it leaves in its turn, and with its subject.
        A time after `latest` (s) counts as `latest`.
        """
        text = entry.payload.decode("utf-8", "replace")
        time = TIME.search(text)
        moment = float(time[1]) if time else latest
        subject = SUBJECT.search(text)
        name = _string(subject[1]) if subject else None
        hashed = self._priorities.subject(name) if name is not None else None
        moment = min(moment, latest) if math.isfinite(moment) else latest
        if hashed is not None and self._store.rows(
            "SELECT 1 FROM erasures WHERE subject = ? AND until >= ?", (hashed, moment)
        ):
            return True
        row = Quarantined(
            id=f"{entry.partition}:{entry.position}", reason=reason, text=text[:SHOWN], label=None, time=moment
        )
        return self._insert(row, hashed, own=False)

    def keep(self, rows: Iterable[Quarantined]) -> None:
        """Keeps `rows`, known ones and those of forgotten interactions excepted."""
        for row in rows:
            found = self._store.rows("SELECT subject, erased FROM interactions WHERE id = ?", (row.id,))
            found = found or self._store.rows("SELECT subject, 0 FROM frozen WHERE id = ?", (row.id,))
            subject, erased = found[0] if found else (None, 0)
            if not erased:
                self._insert(row, subject, own=True)

    def _insert(self, row: Quarantined, subject: bytes | None, *, own: bool) -> bool:
        return (
            self._store.write(
                """
                INSERT OR IGNORE INTO quarantine (id, time, reason, text, label, subject, own)
                VALUES (?, ?, ?, ?, ?, ?, ?)
                """,
                (row.id, row.time, _storable(row.reason), _storable(row.text), row.label, subject, own),
            )
            > 0
        )

    def prune(self) -> None:
        """Drops the oldest rows beyond the bound, and counts them."""
        surplus = self._store.value("SELECT count(*) FROM quarantine") - self._bound
        if surplus > 0:
            dropped = self._store.rows("SELECT id, own FROM quarantine ORDER BY time, id LIMIT ?", (surplus,))
            self._store.write_all("DELETE FROM quarantine WHERE id = ?", [(row[0],) for row in dropped])
            self._store.write(
                "UPDATE state SET quarantine_dropped = quarantine_dropped + ?, own_dropped = own_dropped + ?",
                (surplus, sum(row[1] for row in dropped)),
            )

    def forget(self, subject: bytes, until: float) -> int:
        return self._store.write("DELETE FROM quarantine WHERE subject = ? AND time <= ?", (subject, until))

    def rows(self) -> tuple[Quarantined, ...]:
        """Oldest first."""
        return tuple(
            Quarantined(id=identifier, reason=reason, text=text, label=label, time=time)
            for identifier, reason, text, label, time in self._store.rows(
                "SELECT id, reason, text, label, time FROM quarantine ORDER BY time, id"
            )
        )


def _string(literal: str) -> str | None:
    """The value of a JSON string; None for what only looks like one."""
    try:
        return str(json.loads(literal))
    except ValueError:
        return None


def _storable(text: str) -> str:
    """`text` without lone surrogates, which SQLite cannot keep."""
    return text.encode("utf-8", "replace").decode("utf-8")
