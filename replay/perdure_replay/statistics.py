"""What the head's statistics lack or have too much, and the pointer to their file."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from perdure.errors import StoreFull, UsageError
from perdure.memory import Delta
from perdure_replay.store import STATISTICS, Rows, Store

PREFIX = "head-"
PART = "part-"


class Statistics:
    """Deltas and the pointer; the files are immutable and made by the caller."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.folder: Path = store.folder / STATISTICS

    def add(self, rows: Iterable[tuple[str | None, bytes | None, float | None, str, str]]) -> None:
        """+1 for each (interaction, subject, interaction's time, text, label)."""
        self._store.write_all(
            "INSERT INTO deltas (interaction, subject, made, text, label, sign) VALUES (?, ?, ?, ?, ?, 1)", rows
        )

    def withdraw(self, interaction: str, text: str, label: str) -> bool:
        """Takes a counted label back: drops a delta that nobody has seen, else adds −1; says whether it added."""
        dropped = self._store.write(
            "DELETE FROM deltas WHERE interaction = ? AND label = ? AND sign = 1 AND sequence > ?",
            (interaction, label, self._store.state("handed")),
        )
        if dropped:
            return False
        self._take_back(interaction, text, label)
        self._store.write("UPDATE deltas SET subject = NULL WHERE interaction = ?", (interaction,))
        return True

    def forget(self, subject: bytes, until: float) -> int:
        """Takes back what waits of a subject's interactions that left the join state; returns the −1s added."""
        handed = self._store.state("handed")
        mine = self._store.rows(
            "SELECT sequence, interaction, text, label FROM deltas WHERE subject = ? AND made <= ? AND sign = 1",
            (subject, until),
        )
        added = 0
        for sequence, interaction, text, label in mine:
            if sequence > handed:
                self._store.write("DELETE FROM deltas WHERE sequence = ?", (sequence,))
            else:
                self._take_back(interaction, text, label)
                self._store.write("UPDATE deltas SET subject = NULL WHERE sequence = ?", (sequence,))
                added += 1
        return added

    def _take_back(self, interaction: str, text: str, label: str) -> None:
        self._store.write(
            "INSERT INTO deltas (interaction, text, label, sign) VALUES (?, ?, ?, -1)", (interaction, text, label)
        )

    def deltas(self, limit: int) -> tuple[Delta, ...]:
        """The first `limit` deltas. From now on they count as seen, and are taken back by −1 instead of dropped."""
        if limit < 1:
            raise UsageError(f"limit must be at least 1, got {limit}")
        found = tuple(
            Delta(sequence=sequence, text=text, label=label, sign=sign)
            for sequence, text, label, sign in self._store.rows(
                "SELECT sequence, text, label, sign FROM deltas ORDER BY sequence LIMIT ?", (limit,)
            )
        )
        if found and not self._store.read_only and found[-1].sequence > self._store.state("handed"):
            with self._store.transaction():
                self._store.set_state(handed=found[-1].sequence)
        return found

    def copy(self, rows: Rows) -> None:
        """Adds another memory's deltas: (interaction, subject, interaction's time, text, label, sign)."""
        self._store.write_all(
            "INSERT INTO deltas (interaction, subject, made, text, label, sign) VALUES (?, ?, ?, ?, ?, ?)", rows
        )

    def adjust(
        self, interaction: str, subject: bytes | None, made: float, change: Mapping[tuple[str, str], int]
    ) -> None:
        """Adds `change`, of (text, label), to the deltas of an interaction, and nets them."""
        net = Counter(change)
        for text, label, sign in self._store.rows(
            "SELECT text, label, sign FROM deltas WHERE interaction = ?", (interaction,)
        ):
            net[text, label] += sign
        self._store.write("DELETE FROM deltas WHERE interaction = ?", (interaction,))
        for (text, label), count in net.items():
            owner = (subject, made) if count > 0 else (None, None)
            self.copy([(interaction, *owner, text, label, 1 if count > 0 else -1)] * abs(count))

    def restart(self, parts: Sequence[str]) -> None:
        """Drops the deltas and the pointer; the files `parts` hold what the statistics are from now on."""
        last = self._last()
        self._store.write("DELETE FROM deltas")
        self._store.write("DELETE FROM parts")
        self._store.write_all("INSERT INTO parts VALUES (?)", [(name,) for name in parts])
        self._store.set_state(statistics=None, rebuilt=last, handed=last)

    def bring(self, source: Path, name: str) -> None:
        """Puts the immutable file `source` into the folder as `name`, whole or not at all.

        Raises:
            StoreFull: it cannot be written.
        """
        partial = self.folder / f"{name}.partial"
        try:
            partial.unlink(missing_ok=True)
            try:
                os.link(source, partial)
            except OSError:
                # Another file system, or one without links.
                shutil.copyfile(source, partial)
            with partial.open("rb") as file:
                os.fsync(file.fileno())
            partial.replace(self.folder / name)
            # Where both are one file already, the system leaves both names.
            partial.unlink(missing_ok=True)
        except OSError as error:
            raise StoreFull(
                f"cannot bring {source} to {self.folder} ({error.strerror}): free some space and make it writable; "
                "nothing has changed"
            ) from error

    def parts(self) -> tuple[str, ...]:
        """Names of the files, in the folder, whose sums the statistics are, with the deltas."""
        return tuple(name for (name,) in self._store.rows("SELECT name FROM parts ORDER BY name"))

    def _last(self) -> int:
        return int(self._store.value("SELECT seq FROM sqlite_sequence WHERE name = 'deltas'") or 0)

    def name(self) -> str | None:
        name: str | None = self._store.state("statistics")
        return name

    def point(self, name: str, through: int) -> None:
        """Points to file `name`, which has all deltas up to `through`, drops those, and then every other file."""
        if not name or Path(name).name != name:
            raise UsageError(f"a statistics file lies in {self.folder}: give its bare name, not {name!r}")
        if not (self.folder / name).is_file():
            raise UsageError(f"there is no file {self.folder / name}: write it before pointing to it")
        handed, rebuilt = self._store.state("handed"), self._store.state("rebuilt")
        if through > handed:
            raise UsageError(f"through is {through}, but deltas were handed out up to {handed} only: read them first")
        if through < rebuilt:
            raise UsageError(
                f"{name} ends with delta {through}, before the rebuild after delta {rebuilt}: make it anew"
            )
        with self._store.transaction():
            self._store.write("DELETE FROM deltas WHERE sequence <= ?", (through,))
            self._store.write("DELETE FROM parts")
            self._store.set_state(statistics=name)
        self.sweep()

    def export(self, names: Iterable[str], folder: Path, *, links: bool) -> None:
        """Puts the files `names` into `folder`; with `links` linked where that is possible, since they never change.

        Raises:
            FileNotFoundError: one was let go of meanwhile.
        """
        for name in names:
            folder.mkdir(exist_ok=True)
            source, target = self.folder / name, folder / name
            if links:
                try:
                    target.hardlink_to(source)
                    continue
                except OSError:
                    # Another file system, or one without links; or it is gone, which copying says too.
                    target.unlink(missing_ok=True)
            shutil.copyfile(source, target)

    def files(self) -> tuple[str, ...]:
        """Names of the files that are pointed to."""
        name = self.name()
        return (*self.parts(), *((name,) if name is not None else ()))

    def bytes_used(self) -> int:
        """Bytes of the files that are pointed to."""
        files = [self.folder / kept for kept in self.files()]
        return sum(file.stat().st_size for file in files if file.is_file())

    def sweep(self) -> None:
        """Removes the files that are not pointed to."""
        current = set(self.files())
        for prefix in (PREFIX, PART):
            for file in self.folder.glob(f"{prefix}*"):
                if file.name not in current:
                    file.unlink(missing_ok=True)

    def rebuild(self) -> None:
        """Drops the statistics and makes one delta for every living sample; inside the caller's transaction.

        The delta belongs to an interaction of that very text whose label may still change, where there is one, so that
        a correction takes out exactly what was put in. A sample without one, but of a known subject, can be forgotten
        later only by another rebuild.
        """
        last = self._last()
        self._store.write("DELETE FROM deltas")
        self._store.write("DELETE FROM parts")
        self._store.write("UPDATE interactions SET counted = NULL WHERE counted IS NOT NULL")
        samples = self._store.rows(
            """
            SELECT p.key, p.label, s.text FROM places p JOIN provenance s ON s.place = p.key AND s.hash = p.source
            WHERE p.living = 1 ORDER BY p.label, p.score, p.key
            """
        )
        owners: dict[bytes, list[tuple[Any, ...]]] = {}
        for place, *rest in self._store.rows(
            """
            SELECT s.place, i.id, i.subject, i.time, i.text FROM provenance s
            JOIN interactions i ON i.id = s.interaction
            WHERE s.backs = 1 ORDER BY s.place, s.hash
            """
        ):
            owners.setdefault(place, []).append(tuple(rest))
        added: list[tuple[str | None, bytes | None, float | None, str, str]] = []
        counted, nameless = [], []
        for key, label, text in samples:
            owner = next((o for o in owners.get(key, ()) if o[3] == text), None)
            if owner is None:
                nameless.append((key,))
                added.append((None, None, None, text, label))
            else:
                counted.append((label, owner[0]))
                added.append((owner[0], owner[1], owner[2], text, label))
        self.add(added)
        self._store.write_all("UPDATE interactions SET counted = ? WHERE id = ?", counted)
        subjects = {
            place for (place,) in self._store.rows("SELECT DISTINCT place FROM provenance WHERE subject IS NOT NULL")
        }
        self._store.set_state(
            statistics=None,
            rebuilt=last,
            handed=last,
            rebuild_due=0,
            evicted_subjects=int(any(key in subjects for (key,) in nameless)),
        )
