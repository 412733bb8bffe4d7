"""Joins feedback to interactions, early or late, in any order, however often delivered."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import inf
from operator import attrgetter
from typing import Any

from perdure.config import MemorySettings
from perdure.records import Feedback, Interaction
from perdure_replay.priority import Priorities
from perdure_replay.reservoir import Claim, Reservoir
from perdure_replay.statistics import Statistics
from perdure_replay.store import Store

COLUMNS = (
    "id, partition, time, hash, digest, subject, erased, text, predicted, confidence, version, "
    "label, label_time, label_source, counted, fresh, seen, learned"
)

Arrival = tuple[str, Interaction | Feedback]
"""A record, and the partition that it came from."""

Said = tuple[float, str, str]
"""Time, source and label of one piece of feedback."""

SEEN = """
INSERT INTO partitions (name, watermark) VALUES (?, ?)
ON CONFLICT DO UPDATE SET watermark = max(watermark, excluded.watermark)
"""


@dataclass(slots=True)
class Joined:
    """One interaction and what was said of it; the fields of `COLUMNS`, in their order."""

    id: str
    partition: str
    time: float
    hash: bytes
    digest: bytes
    subject: bytes | None
    erased: int
    text: str | None
    predicted: str | None
    confidence: float
    version: str | None
    label: str | None = None
    label_time: float | None = None
    label_source: str | None = None
    counted: str | None = None
    fresh: int = 1
    seen: int = 0
    learned: str | None = None
    before: tuple[str, float] | None = None
    """Label and its time as the database has them."""
    said: dict[str, float] = field(default_factory=dict)
    """Labels asserted since then, with their latest times."""
    dirty: bool = False

    def columns(self) -> tuple[Any, ...]:
        return tuple(_columns(self))


_columns = attrgetter(*COLUMNS.split(", "))


class Join:
    """The join state; every method runs inside the caller's transaction.

    Time is event time, and passes in each partition by itself: a partition's watermark is the greatest one seen there.
    So what is too late does not depend on the order in which partitions are read.
    """

    def __init__(
        self,
        store: Store,
        priorities: Priorities,
        reservoir: Reservoir,
        statistics: Statistics,
        settings: MemorySettings,
    ) -> None:
        self._store = store
        self._priorities = priorities
        self._reservoir = reservoir
        self._statistics = statistics
        self._settings = settings
        self.ttl = settings.join_ttl_hours * 3600.0
        """How long an interaction and its feedback wait for each other, in seconds of event time."""

    def over(self) -> float:
        """The time before which, in every partition, everything is too late; minus infinity before the first event."""
        found: float | None = self._store.value("SELECT min(watermark) FROM partitions")
        return -inf if found is None else found - self.ttl

    def see(self, partition: str, time: float) -> None:
        """Moves the partition's watermark to `time` if that is later."""
        self._store.write(SEEN, (partition, time))

    def enter(self, records: Sequence[Arrival], tally: Counter[str]) -> list[Interaction]:
        """Joins `records` in order; returns interactions whose id another text has already."""
        return _Batch(self._store, self._priorities, self.ttl, records).run(
            records, tally, self._reservoir, self._statistics
        )

    def erase(self, subject: bytes, until: float) -> tuple[int, int, list[tuple[bytes, bytes]]]:
        """Leaves stubs of a subject's interactions up to `until` (s).

        Returns their number, the −1s that their labels added, and (place, interaction hash) of those labels.
        """
        self._store.write(
            "INSERT INTO erasures VALUES (?, ?) ON CONFLICT DO UPDATE SET until = max(until, excluded.until)",
            (subject, until),
        )
        mine = self._store.rows(
            "SELECT id, hash, digest, text, label, counted FROM interactions WHERE subject = ? AND time <= ?",
            (subject, until),
        )
        added = sum(self._statistics.withdraw(row[0], row[3], row[5]) for row in mine if row[5] is not None)
        self._store.write(
            """
            UPDATE interactions SET erased = 1, subject = NULL, text = NULL, predicted = NULL, confidence = 0,
                version = NULL, label = NULL, label_time = NULL, label_source = NULL, counted = NULL, fresh = 0,
                learned = NULL
            WHERE subject = ? AND time <= ?
            """,
            (subject, until),
        )
        return (
            len(mine),
            added,
            [(self._priorities.place(row[4], row[2]), row[1]) for row in mine if row[4] is not None],
        )

    def prune(self, partitions: Iterable[str]) -> int:
        """Lets go what waited too long in `partitions` and what is beyond the bound of each.

        Returns:
            what left without having been joined.
        """
        expired = 0
        for name, watermark in self._store.rows_in(
            "SELECT name, watermark FROM partitions WHERE name IN ({})", partitions
        ):
            expired += self._prune_late(name, watermark - self.ttl)
            expired += self._prune_surplus(name)
        # What these stood against is too old to be let in again.
        self._store.write("DELETE FROM erasures WHERE until < ?", (self.over(),))
        return expired

    def _prune_late(self, partition: str, cutoff: float) -> int:
        expired: int = self._store.value(
            "SELECT count(*) FROM interactions WHERE partition = ? AND time < ? AND label IS NULL AND erased = 0",
            (partition, cutoff),
        )
        self._evict("partition = ? AND time < ?", (partition, cutoff))
        return expired + self._store.write("DELETE FROM waiting WHERE partition = ? AND time < ?", (partition, cutoff))

    def _prune_surplus(self, partition: str) -> int:
        bound = self._settings.join_rows
        held = self._store.value("SELECT rows FROM interaction_counts WHERE partition = ?", (partition,)) or 0
        if held > bound:
            youngest_out = self._store.rows(
                "SELECT time, id FROM interactions WHERE partition = ? ORDER BY time, id LIMIT 1 OFFSET ?",
                (partition, held - bound - 1),
            )[0]
            self._evict("partition = ? AND (time, id) <= (?, ?)", (partition, *youngest_out))
            self._store.write(
                "UPDATE partitions SET horizon_time = ?, horizon_id = ? WHERE name = ?", (*youngest_out, partition)
            )
        surplus = self._store.value("SELECT count(*) FROM waiting WHERE partition = ?", (partition,)) - bound
        if surplus <= 0:
            return 0
        return self._store.write(
            """
            DELETE FROM waiting WHERE (interaction, time, source, label) IN
                (SELECT * FROM (SELECT interaction, time, source, label FROM waiting WHERE partition = ?)
                 ORDER BY time, interaction, source, label LIMIT ?)
            """,
            (partition, surplus),
        )

    def _evict(self, condition: str, values: Sequence[Any]) -> None:
        subjects = self._store.value(
            f"SELECT count(*) FROM interactions WHERE {condition} AND subject IS NOT NULL AND counted IS NOT NULL",
            values,
        )
        if subjects:
            self._store.set_state(evicted_subjects=1)
        self._store.write(f"DELETE FROM interactions WHERE {condition}", values)


class _Batch:
    """The rows that some records touch, changed in Python and written back at once."""

    def __init__(self, store: Store, priorities: Priorities, ttl: float, arrivals: Sequence[Arrival]) -> None:
        self._store = store
        self._priorities = priorities
        self._ttl = ttl
        self._watermarks: dict[str, float] = dict(store.rows("SELECT name, watermark FROM partitions"))
        self._horizons: dict[str, tuple[float, str]] = {
            name: (time, identifier)
            for name, time, identifier in store.rows(
                "SELECT name, horizon_time, horizon_id FROM partitions WHERE horizon_id IS NOT NULL"
            )
        }
        records = [record for _, record in arrivals]
        ids = [record.id if isinstance(record, Interaction) else record.interaction for record in records]
        self._rows: dict[str, Joined] = {}
        for values in store.rows_in(f"SELECT {COLUMNS} FROM interactions WHERE id IN ({{}})", ids):
            row = Joined(*values)
            if row.label is not None and row.label_time is not None:
                row.before = (row.label, row.label_time)
            self._rows[row.id] = row
        self._waiting: dict[str, set[Said]] = {}
        for identifier, *said in store.rows_in(
            "SELECT interaction, time, source, label FROM waiting WHERE interaction IN ({})", ids
        ):
            self._waiting.setdefault(identifier, set()).add((said[0], said[1], said[2]))
        self._came: dict[tuple[str, Said], str] = {}
        """New feedback that waits for its interaction, and its partition."""
        self._matched: list[tuple[str]] = []
        names = {record.subject for record in records if isinstance(record, Interaction) and record.subject is not None}
        self._subjects = {name: priorities.subject(name) for name in names}
        self._erased: dict[bytes, float] = dict(
            store.rows_in("SELECT subject, until FROM erasures WHERE subject IN ({})", self._subjects.values())
        )

    def run(
        self,
        arrivals: Sequence[Arrival],
        tally: Counter[str],
        reservoir: Reservoir,
        statistics: Statistics,
    ) -> list[Interaction]:
        clashes = []
        for partition, record in arrivals:
            self._watermarks[partition] = max(record.time, self._watermarks.get(partition, record.time))
            if isinstance(record, Feedback):
                self._take_feedback(partition, record, tally)
            elif not self._take_interaction(partition, record, tally):
                clashes.append(record)
        tally["waiting"] += sum(identifier not in self._rows for identifier, _ in self._came)
        self._flush(reservoir, statistics)
        return clashes

    def _cutoff(self, partition: str) -> float:
        return self._watermarks[partition] - self._ttl

    def _take_interaction(self, partition: str, record: Interaction, tally: Counter[str]) -> bool:
        known = self._rows.get(record.id)
        if known is not None:
            if known.digest != self._priorities.text(record.text):
                return False
            tally["repeated"] += 1
            return True
        horizon = self._horizons.get(partition)
        past = horizon is not None and (record.time, record.id) <= horizon
        if past or record.time < self._cutoff(partition):
            tally["expired"] += 1
            return True
        subject = self._subjects[record.subject] if record.subject is not None else None
        erased = subject is not None and record.time <= self._erased.get(subject, -float("inf"))
        row = Joined(
            id=record.id,
            partition=partition,
            time=record.time,
            hash=self._priorities.interaction(record.id),
            digest=self._priorities.text(record.text),
            subject=None if erased else subject,
            erased=int(erased),
            text=None if erased else record.text,
            predicted=None if erased else record.label,
            confidence=0.0 if erased else record.confidence,
            version=None if erased else record.version,
            fresh=int(not erased),
            dirty=True,
        )
        self._rows[row.id] = row
        tally["expired" if erased else "interactions"] += 1
        early = self._waiting.pop(record.id, None)
        if early is not None:
            self._matched.append((record.id,))
            for said in sorted(early):
                self._hear(row, said, tally)
        return True

    def _take_feedback(self, partition: str, record: Feedback, tally: Counter[str]) -> None:
        if record.time < self._cutoff(partition):
            tally["expired"] += 1
            return
        tally["feedback"] += 1
        said = (record.time, record.source, record.label)
        row = self._rows.get(record.interaction)
        if row is not None and row.time >= self._cutoff(row.partition):
            self._hear(row, said, tally)
            return
        early = self._waiting.setdefault(record.interaction, set())
        if said in early:
            tally["repeated"] += 1
        else:
            early.add(said)
            self._came[record.interaction, said] = partition

    def _hear(self, row: Joined, said: Said, tally: Counter[str]) -> None:
        time, source, label = said
        if row.label is None or row.label_time is None or row.label_source is None:
            current = None
        else:
            current = (row.label_time, row.label_source, row.label)
        if said == current:
            tally["repeated"] += 1
            return
        row.dirty = True
        row.said[label] = max(time, row.said.get(label, time))
        if row.erased:
            tally["repeated"] += 1
            return
        if current is not None and said < current:
            tally["repeated"] += 1
            return
        if row.label is None:
            tally["joined"] += 1
        elif label != row.label:
            tally["joined"] += 1
            tally["corrected"] += 1
        else:
            tally["repeated"] += 1
        row.label, row.label_time, row.label_source = label, time, source
        row.fresh = int(not row.seen or label != row.learned)

    def _flush(self, reservoir: Reservoir, statistics: Statistics) -> None:
        dirty = [row for row in self._rows.values() if row.dirty]
        claims = [claim for row in dirty for claim in self._claims(row)]
        added = []
        for row in dirty:
            if row.text is None or row.counted == row.label or row.label is None:
                continue
            if row.counted is not None:
                statistics.withdraw(row.id, row.text, row.counted)
            added.append((row.id, row.subject, row.time, row.text, row.label))
            row.counted = row.label
        statistics.add(added)
        marks = ",".join("?" * len(COLUMNS.split(", ")))
        self._store.write_all(
            f"""
            INSERT INTO interactions ({COLUMNS}) VALUES ({marks})
            ON CONFLICT (id) DO UPDATE SET label = excluded.label, label_time = excluded.label_time,
                label_source = excluded.label_source, counted = excluded.counted, fresh = excluded.fresh
            """,
            [row.columns() for row in dirty],
        )
        self._store.write_all("DELETE FROM waiting WHERE interaction = ?", self._matched)
        self._store.write_all(
            "INSERT OR IGNORE INTO waiting (interaction, time, source, label, partition) VALUES (?, ?, ?, ?, ?)",
            [
                (identifier, *said, partition)
                for (identifier, said), partition in self._came.items()
                if identifier in self._waiting
            ],
        )
        reservoir.apply(claims)

    def _claims(self, row: Joined) -> list[Claim]:
        """What the row says now of every label that it asserted, or no longer has."""
        said = dict(row.said)
        before = row.before[0] if row.before is not None else None
        if row.before is not None and before != row.label:
            said.setdefault(*row.before)
        return [
            Claim(
                place=self._priorities.place(label, row.digest),
                label=label,
                hash=row.hash,
                interaction=None if row.erased else row.id,
                subject=row.subject,
                made=row.time,
                time=time,
                backs=not row.erased and label == row.label,
                backed=label == before,
                text=row.text,
            )
            for label, time in said.items()
        ]
