"""Interactions whose records lie in several shards, as they do after the number of partitions has grown.

Each shard has counted such an interaction by what it saw of it. What one memory would have counted differs by a
correction: its label by all feedback, less the labels that the shards know it under. The corrections stay after the
shards have let go of the interaction, because what the shards counted stays too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import Any

from perdure_replay.priority import Priorities
from perdure_replay.reservoir import Claim, Reservoir
from perdure_replay.statistics import Statistics
from perdure_replay.store import Store

CLASH = "another interaction with another text has this id in another partition: make ids unique"

HEARD = """
INSERT INTO split_labels (interaction, label, time, source) VALUES (?, ?, ?, ?)
ON CONFLICT DO UPDATE SET time = excluded.time, source = excluded.source
WHERE (excluded.time, excluded.source) > (split_labels.time, split_labels.source)
"""


@dataclass(frozen=True, slots=True)
class Shard:
    """One shard, opened for reading, and what it says of itself."""

    store: Store
    identity: str
    rebuilt: int
    statistics: str | None
    partitions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Part:
    """What one shard makes of an interaction; fields in the order that decides which text is the interaction's."""

    forgotten: bool
    time: float
    digest: bytes
    text: str | None
    shard: str
    subject: bytes | None
    label: str | None
    counted: str | None

    @property
    def rank(self) -> tuple[Any, ...]:
        return self.forgotten, self.time, self.digest, self.text or "", self.shard


class Split:
    """The corrections; every method runs inside the caller's transaction."""

    def __init__(self, store: Store, priorities: Priorities, reservoir: Reservoir, statistics: Statistics) -> None:
        self._store = store
        self._priorities = priorities
        self._reservoir = reservoir
        self._statistics = statistics

    def join(self, shards: Sequence[Shard], before: dict[str, int], doubled: Iterable[str], ttl: float) -> Counter[str]:
        """Corrects what was copied from `shards`: places, provenance, deltas, interactions, waiting feedback.

        Feedback finds an interaction of another shard when their event times are at most `ttl` (s) apart.

        Args:
            shards: all of them.
            before: how far each had rebuilt its statistics when this memory was assembled last, by identity.
            doubled: interactions that more than one shard has.
            ttl: time limit of joining, in seconds.

        Returns:
            What the shards' totals have too much or lack.
        """
        # A shard that began anew has counted nothing of what its forerunner had.
        self._store.write("DELETE FROM split_parts WHERE shard NOT IN (SELECT identity FROM shards)")
        wanted = {identifier for (identifier,) in self._store.rows("SELECT DISTINCT interaction FROM split_parts")}
        wanted.update(doubled)
        wanted.update(
            identifier
            for (identifier,) in self._store.rows(
                """
                SELECT DISTINCT w.interaction FROM waiting w JOIN interactions i ON i.id = w.interaction
                WHERE abs(w.time - i.time) <= ?
                """,
                (ttl,),
            )
        )
        for shard in shards:
            self._look(shard, wanted, before.get(shard.identity, shard.rebuilt))
        self._hear(ttl)
        # What nobody has said anything of needs no correction once no shard has it any more.
        self._store.write(
            """
            DELETE FROM split_parts WHERE interaction NOT IN (SELECT interaction FROM split_labels)
                AND interaction NOT IN (SELECT id FROM interactions)
            """
        )
        self._store.write("DELETE FROM split_labels WHERE interaction NOT IN (SELECT interaction FROM split_parts)")
        return self._correct()

    def forget(self, subject: bytes, until: float) -> None:
        """Blinds a subject's interactions up to `until` (s); their shards take back themselves what they counted."""
        self._store.write(
            """
            UPDATE split_parts SET subject = NULL, text = NULL, label = NULL, counted = NULL
            WHERE subject = ? AND time <= ?
            """,
            (subject, until),
        )

    def _look(self, shard: Shard, wanted: Iterable[str], rebuilt: int) -> None:
        """Brings up to date what `shard` makes of the interactions `wanted`."""
        rows = shard.store.rows_in(
            """
            SELECT id, time, digest, subject, text, label, counted, label_time, label_source FROM interactions
            WHERE id IN ({})
            """,
            wanted,
        )
        self._store.write_all(
            "INSERT OR REPLACE INTO split_parts (shard, interaction, time, digest, subject, text, label, counted)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            [(shard.identity, *row[:7]) for row in rows],
        )
        self._store.write_all(HEARD, [(row[0], row[5], row[7], row[8]) for row in rows if row[5] is not None])
        if shard.rebuilt == rebuilt:
            return
        # A rebuild keeps of the interactions that the shard let go of only those that are alive in its places.
        here = {row[0] for row in rows}
        gone = {
            identifier: self._priorities.place(counted, digest)
            for identifier, counted, digest in self._store.rows(
                "SELECT interaction, counted, digest FROM split_parts WHERE shard = ? AND counted IS NOT NULL",
                (shard.identity,),
            )
            if identifier not in here
        }
        alive = {
            key
            for (key,) in shard.store.rows_in("SELECT key FROM places WHERE living = 1 AND key IN ({})", gone.values())
        }
        self._store.write_all(
            "UPDATE split_parts SET counted = NULL WHERE shard = ? AND interaction = ?",
            [(shard.identity, identifier) for identifier, key in gone.items() if key not in alive],
        )

    def _hear(self, ttl: float) -> None:
        heard = self._store.rows(
            """
            SELECT DISTINCT w.interaction, w.label, w.time, w.source FROM waiting w
            JOIN split_parts p ON p.interaction = w.interaction WHERE abs(w.time - p.time) <= ?
            """,
            (ttl,),
        )
        self._store.write_all(HEARD, heard)
        self._store.write_all(
            "DELETE FROM waiting WHERE interaction = ? AND label = ? AND time = ? AND source = ?", heard
        )

    def _correct(self) -> Counter[str]:
        said: dict[str, dict[str, tuple[float, str]]] = {}
        for identifier, label, time, source in self._store.rows(
            "SELECT interaction, label, time, source FROM split_labels"
        ):
            said.setdefault(identifier, {})[label] = (time, source)
        tally: Counter[str] = Counter()
        for identifier, found in groupby(
            self._store.rows(
                """
                SELECT interaction, text IS NULL, time, digest, text, shard, subject, label, counted FROM split_parts
                ORDER BY interaction
                """
            ),
            key=itemgetter(0),
        ):
            parts = sorted((_Part(*row[1:]) for row in found), key=lambda part: part.rank)
            self._correct_one(identifier, parts, said.get(identifier, {}), tally)
        return tally

    def _correct_one(
        self, identifier: str, parts: Sequence[_Part], said: dict[str, tuple[float, str]], tally: Counter[str]
    ) -> None:
        whole = parts[0]
        last = max(((*when, label) for label, when in said.items()), default=None) if whole.text is not None else None
        label = last[2] if last is not None else None
        support: Counter[bytes] = Counter()
        claims: dict[bytes, Claim] = {}
        for name, (time, _) in said.items():
            claim = self._claim(identifier, whole, name, time, backs=name == label)
            claims[claim.place] = claim
            support[claim.place] += claim.backs
        for part in parts:
            if part.label is None:
                continue
            place = self._priorities.place(part.label, part.digest)
            support[place] -= 1
            if place not in claims:
                # Another text under the same id: what the shard let in under it is not this interaction's.
                claims[place] = self._claim(identifier, part, part.label, said[part.label][0], backs=False)
        self._reservoir.correct(list(claims.values()), support)
        counted = self._recount(identifier, whole, label, parts)
        if last is not None:
            self._store.write(
                """
                UPDATE interactions SET time = ?, digest = ?, subject = ?, erased = 0, text = ?, label = ?,
                    label_time = ?, label_source = ?, counted = ?, fresh = 1 WHERE id = ?
                """,
                (
                    *(whole.time, whole.digest, whole.subject, whole.text),
                    *(label, last[0], last[1], counted, identifier),
                ),
            )
        clashing = [part for part in parts if not part.forgotten and part.digest != whole.digest]
        self._store.write_all(
            "INSERT OR IGNORE INTO quarantine (id, time, reason, text, subject) VALUES (?, ?, ?, ?, ?)",
            [(identifier, part.time, CLASH, part.text, part.subject) for part in clashing],
        )
        tally["quarantined"] += len(clashing)
        tally["interactions"] -= len(parts) - 1
        tally["repeated"] += len(parts) - 1 - len(clashing)
        tally["joined"] += (label is not None) - sum(part.label is not None for part in parts)

    def _recount(self, identifier: str, whole: _Part, label: str | None, parts: Sequence[_Part]) -> str | None:
        """Makes the shards' deltas and sums add up to one count of `label`; returns it, or None if it has no count."""
        due = int(label is not None)
        if any(part.label == label and part.counted is None for part in parts):
            # A shard's rebuild has left it out; it comes back when something new is said of it, as it would there.
            due = min(due, sum(part.counted == label for part in parts))
        change: Counter[tuple[str, str]] = Counter()
        if label is not None and whole.text is not None:
            change[whole.text, label] += due
        for part in parts:
            if part.counted is not None and part.text is not None:
                change[part.text, part.counted] -= 1
        self._statistics.adjust(identifier, whole.subject, whole.time, change)
        return label if due else None

    def _claim(self, identifier: str, part: _Part, label: str, time: float, *, backs: bool) -> Claim:
        return Claim(
            place=self._priorities.place(label, part.digest),
            label=label,
            hash=self._priorities.interaction(identifier),
            interaction=None if part.forgotten else identifier,
            subject=part.subject,
            made=part.time,
            time=time,
            backs=backs,
            backed=False,
            text=part.text,
        )
