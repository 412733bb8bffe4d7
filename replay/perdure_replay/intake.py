"""What happens to the entries of a page: joined, refused, or taken as a request to forget."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from perdure.errors import RecordError
from perdure.records import Erasure, Feedback, Interaction, Record
from perdure.stream.base import Entry
from perdure_replay.join import Join
from perdure_replay.priority import Priorities
from perdure_replay.quarantine import Quarantine
from perdure_replay.reservoir import Reservoir
from perdure_replay.split import Split
from perdure_replay.statistics import Statistics
from perdure_replay.store import Store
from perdure_replay.turns import Turns

log = logging.getLogger(__name__)

CLOCK_SLACK = 86_400.0
"""Seconds that an event may lie ahead of this machine's clock; a later one would expire everything else."""


@dataclass(frozen=True, slots=True)
class Erased:
    """What one erasure reached."""

    interactions: int
    samples: int
    quarantined: int
    deltas: int
    """−1s that were added."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Intake:
    """The way in; every method runs inside the caller's transaction."""

    store: Store
    priorities: Priorities
    join: Join
    reservoir: Reservoir
    statistics: Statistics
    quarantine: Quarantine
    turns: Turns
    split: Split
    clock: Callable[[], float]

    def latest(self) -> float:
        """The latest event time, in seconds since the epoch, that can be meant seriously."""
        return self.clock() + CLOCK_SLACK

    def take(self, entries: Sequence[Entry], tally: Counter[str]) -> None:
        """Runs of interactions and feedback are joined together; an erasure stands between two runs."""
        latest = self.latest()
        run: list[tuple[Entry, Interaction | Feedback]] = []
        for entry in entries:
            try:
                record = entry.record()
            except RecordError as error:
                self._refuse(entry, str(error), latest, tally)
                continue
            if _has_lone_surrogate(entry, record):
                self._refuse(entry, "a string holds half of a surrogate pair: send valid Unicode", latest, tally)
            elif record.time > latest:
                reason = (
                    f"event time {record.time} is more than a day ahead of this machine's clock: check the sender's"
                )
                self._refuse(entry, reason, latest, tally)
            elif isinstance(record, Erasure):
                self._join_run(run, latest, tally)
                run = []
                self.join.see(entry.partition, record.time)
                self.erase(self.priorities.subject(record.subject), record.time)
                tally["erasures"] += 1
            else:
                run.append((entry, record))
        self._join_run(run, latest, tally)
        tally["expired"] += self.join.prune({entry.partition for entry in entries})
        self.quarantine.prune()

    def erase(self, subject: bytes, until: float) -> Erased:
        """Removes what is kept of a subject's interactions with a time up to `until` (s)."""
        interactions, deltas, places = self.join.erase(subject, until)
        samples = self.reservoir.forget(subject, until, places)
        deltas += self.statistics.forget(subject, until)
        quarantined = self.quarantine.forget(subject, until)
        self.turns.forget(subject, until)
        self.split.forget(subject, until)
        unlearned = deltas
        if self.store.state("evicted_subjects"):
            self.store.set_state(rebuild_due=1)
            unlearned += 1
        if unlearned:
            self.store.add_totals({"unlearned": unlearned})
        return Erased(interactions=interactions, samples=samples, quarantined=quarantined, deltas=deltas)

    def _join_run(
        self, run: Sequence[tuple[Entry, Interaction | Feedback]], latest: float, tally: Counter[str]
    ) -> None:
        if not run:
            return
        arrivals = [(entry.partition, record) for entry, record in run]
        clashes = {id(record) for record in self.join.enter(arrivals, tally)}
        seen: dict[str, float] = {}
        for partition, record in arrivals:
            seen[partition] = max(record.time, seen.get(partition, record.time))
        for partition, time in seen.items():
            self.join.see(partition, time)
        for entry, record in run:
            if id(record) in clashes:
                self._refuse(entry, "another interaction with another text has this id: make ids unique", latest, tally)

    def _refuse(self, entry: Entry, reason: str, latest: float, tally: Counter[str]) -> None:
        new = self.quarantine.refuse(entry, reason, latest)
        tally["quarantined" if new else "repeated"] += 1
        log.debug("record %s:%d is in quarantine: %s", entry.partition, entry.position, reason)


def _has_lone_surrogate(entry: Entry, record: Record) -> bool:
    """JSON can spell strings that UTF-8, and so SQLite, cannot keep; only its escapes can, and they are rare."""
    if b"\\ud" not in entry.payload.lower():
        return False
    try:
        json.dumps(record.model_dump(), ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False
