"""The turn under way: its rows, fixed once it is frozen, and the classes known by then."""

from __future__ import annotations

import json

from perdure.config import MemorySettings
from perdure.errors import UsageError
from perdure.memory import Row, TurnState
from perdure.stream.base import Offset
from perdure_replay.store import Store

HISTORY = 1000
"""Summaries of turns that are kept."""

COPY = """
INSERT INTO frozen (id, text, label, predicted, confidence, version, time, subject)
SELECT id, text, label, predicted, confidence, version, time, subject FROM interactions
WHERE fresh = 1 AND label IS {} NULL ORDER BY hash LIMIT ?
"""


class Turns:
    """Turn state. Methods that write run inside the caller's transaction."""

    def __init__(self, store: Store, settings: MemorySettings) -> None:
        self._store = store
        self._settings = settings

    def offset(self) -> Offset:
        return dict(self._store.rows("SELECT partition, position FROM offsets ORDER BY partition"))

    def state(self) -> TurnState:
        number, frozen, promotion, champion, offset = self._store.rows(
            "SELECT turn, frozen, promotion, champion, turn_offset FROM state"
        )[0]
        return TurnState(
            number=number,
            stage="frozen" if frozen else "open",
            promotion=promotion if frozen else 0,
            champion=champion,
            offset=json.loads(offset) if frozen else self.offset(),
        )

    def freeze(self, champion: str | None, promotion: int) -> None:
        """Copies the fresh rows, so that what comes later does not reach them.

        Of more rows than `memory.fresh_rows` those stay whose ids have the smallest keyed hashes; the labelled go
        first, and the unlabelled take what is left, at most half of the bound.
        """
        if self._store.state("frozen"):
            return
        bound = self._settings.fresh_rows
        labelled = self._store.write(COPY.format("NOT"), (bound,))
        self._store.write(COPY.format(""), (max(min(bound // 2, bound - labelled), 0),))
        self._store.write("UPDATE interactions SET fresh = 0, seen = 1, learned = label WHERE fresh = 1")
        self._store.write(
            """
            INSERT OR IGNORE INTO classes (label, turn)
            SELECT label, (SELECT turn FROM state) FROM places WHERE living = 1 GROUP BY label HAVING count(*) >= ?
            """,
            (self._settings.class_rows,),
        )
        self._store.set_state(
            frozen=1, champion=champion, promotion=promotion, turn_offset=json.dumps(dict(self.offset()))
        )

    def finish(self, summary: str) -> None:
        """Ends the frozen turn.

        Raises:
            UsageError: the turn is open.
        """
        number = self._store.state("turn")
        if not self._store.state("frozen"):
            raise UsageError(f"turn {number} is open and cannot be finished: freeze it first")
        self._store.write("INSERT INTO history VALUES (?, ?)", (number, summary))
        self._store.write("DELETE FROM history WHERE turn <= ?", (number - HISTORY,))
        self._store.write("DELETE FROM frozen")
        self._store.write(
            "UPDATE state SET turn = turn + 1, frozen = 0, champion = NULL, promotion = NULL, turn_offset = NULL"
        )

    def history(self, limit: int) -> tuple[str, ...]:
        if limit < 1:
            raise UsageError(f"limit must be at least 1, got {limit}")
        found = self._store.rows("SELECT summary FROM history ORDER BY turn DESC LIMIT ?", (limit,))
        return tuple(summary for (summary,) in reversed(found))

    def rows(self) -> tuple[Row, ...]:
        return tuple(
            Row(
                id=identifier,
                text=text,
                label=label,
                predicted=predicted,
                confidence=confidence,
                version=version,
                time=time,
            )
            for identifier, text, label, predicted, confidence, version, time in self._store.rows(
                "SELECT id, text, label, predicted, confidence, version, time FROM frozen ORDER BY id"
            )
        )

    def forget(self, subject: bytes, until: float) -> None:
        self._store.write("DELETE FROM frozen WHERE subject = ? AND time <= ?", (subject, until))

    def classes(self) -> dict[str, int]:
        return dict(self._store.rows("SELECT label, turn FROM classes ORDER BY label"))
