"""The database of a memory: connection, migrations, transactions."""

from __future__ import annotations

import logging
import re
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

from perdure.errors import StoreBusy, StoreCorrupt, StoreFull, UsageError
from perdure_replay import before_migration
from perdure_replay.lock import WriterLock

log = logging.getLogger(__name__)

FILE = "memory.db"
LOCK = "memory.lock"
STATISTICS = "heads"
"""Folder beside the database, with the files of the head's statistics."""

BUSY_TIMEOUT = 5.0
"""Seconds to wait for a database that another process has locked."""

CACHE = 32 * 1024
"""KiB of the database that the connection keeps in memory: with SQLite's 2 MiB, a page of records spills to disk."""

LOG_PAGES = 8000
"""Database pages in the write-ahead log (32 MiB) before they are copied into the database: one page of records, whose
places lie everywhere, reaches SQLite's 1,000, and would wait for a copy each time."""

CHUNK = 500
"""Values in one IN list; SQLite takes at least 999."""

Rows = list[tuple[Any, ...]]


def migrations() -> tuple[tuple[int, str], ...]:
    """Number and SQL of each migration, in order."""
    found = []
    for file in (files("perdure_replay") / "migrations").iterdir():
        if match := re.fullmatch(r"(\d{4})_\w+\.sql", file.name):
            found.append((int(match[1]), file.read_text(encoding="utf-8")))
    return tuple(sorted(found))


def migrate(connection: sqlite3.Connection, through: int | None = None) -> None:
    """Applies what is missing, each migration in one transaction, up to number `through` (all when None)."""
    done = connection.execute("PRAGMA user_version").fetchone()[0]
    for number, sql in migrations():
        if done < number and (through is None or number <= through):
            try:
                connection.executescript(f"BEGIN IMMEDIATE; {sql}\nPRAGMA user_version = {number}; COMMIT;")
            except sqlite3.Error:
                if connection.in_transaction:
                    connection.rollback()
                raise


class Store:
    """One open database. A writer holds the lock of its folder; a reader sees what was committed last.

    It may be used from any thread, by one at a time.

    Raises:
        StoreBusy: another process writes it.
        StoreCorrupt: the file is no database.
        UsageError: the folder cannot be used, is missing (reader), or was written by a newer version.
    """

    def __init__(self, folder: Path, *, read_only: bool = False, busy_timeout: float = BUSY_TIMEOUT) -> None:
        self.folder = folder
        self.read_only = read_only
        self._path = folder / FILE
        self._lock: WriterLock | None = None
        if read_only and not self._path.is_file():
            raise UsageError(f"there is no memory in {folder}: check memory.path, or run the trainer first")
        try:
            if not read_only:
                folder.mkdir(parents=True, exist_ok=True)
                self._lock = WriterLock(folder / LOCK)
        except OSError as error:
            raise UsageError(
                f"cannot write the memory folder {folder}: {error.strerror}: make it writable, or set memory.path"
            ) from error
        try:
            with self._translated():
                self._connection = sqlite3.connect(
                    f"{self._path.resolve().as_uri()}?mode={'ro' if read_only else 'rwc'}",
                    uri=True,
                    timeout=busy_timeout,
                    isolation_level=None,
                    check_same_thread=False,
                )
                try:
                    self._connection.execute(f"PRAGMA cache_size = -{CACHE}")
                    self._prepare()
                except BaseException:
                    self._connection.close()
                    raise
        except BaseException:
            self._unlock()
            raise

    def _prepare(self) -> None:
        newest = migrations()[-1][0]
        version = self._connection.execute("PRAGMA user_version").fetchone()[0]
        if version > newest:
            raise UsageError(
                f"the memory {self.folder} has schema {version}, newer than the {newest} that this version reads: "
                "upgrade Perdure"
            )
        if self.read_only:
            if version < newest:
                raise UsageError(f"the memory {self.folder} has the old schema {version}: start the trainer once")
            return
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = FULL")
        self._connection.execute(f"PRAGMA wal_autocheckpoint = {LOG_PAGES}")
        self._connection.execute("PRAGMA foreign_keys = ON")
        # What was forgotten must not be readable in free pages.
        self._connection.execute("PRAGMA secure_delete = ON")
        if 0 < version < newest:
            kept = before_migration.keep(self._connection, self.folder, newest, file=FILE, statistics=STATISTICS)
            log.warning(
                "the memory %s moves from schema %d to %d; as it was it stays in %s for a week, or until somebody is "
                "forgotten",
                self.folder,
                version,
                newest,
                kept,
            )
        else:
            before_migration.drop(self.folder, older_than=before_migration.KEPT_SECONDS)
        migrate(self._connection)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Everything inside is written together, or not at all."""
        if self.read_only:
            raise UsageError(f"the memory {self.folder} was opened for reading only: open it for writing")
        with self._translated():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """All reads inside see the same state."""
        if self._connection.in_transaction:
            yield
            return
        with self._translated():
            self._connection.execute("BEGIN")
            try:
                yield
            finally:
                self._connection.execute("ROLLBACK")

    def rows(self, sql: str, values: Sequence[Any] = ()) -> Rows:
        with self._translated():
            return self._connection.execute(sql, values).fetchall()

    def value(self, sql: str, values: Sequence[Any] = ()) -> Any:
        """The first column of the first row; None when there is no row."""
        found = self.rows(sql, values)
        return found[0][0] if found else None

    def rows_in(self, sql: str, values: Iterable[Any]) -> Rows:
        """Rows of `sql`, whose `{}` stands for the list of `values`."""
        wanted = list(dict.fromkeys(values))
        found: Rows = []
        for start in range(0, len(wanted), CHUNK):
            chunk = wanted[start : start + CHUNK]
            found += self.rows(sql.format(",".join("?" * len(chunk))), chunk)
        return found

    def each(self, sql: str, values: Sequence[Any] = ()) -> Iterator[Rows]:
        """Rows of `sql`, some at a time, so that a large table is never in memory as a whole."""
        with self._translated():
            cursor = self._connection.execute(sql, values)
            while found := cursor.fetchmany(CHUNK):
                yield found

    def write(self, sql: str, values: Sequence[Any] = ()) -> int:
        """Number of rows changed."""
        with self._translated():
            return self._connection.execute(sql, values).rowcount

    def write_all(self, sql: str, rows: Iterable[Sequence[Any]]) -> None:
        with self._translated():
            self._connection.executemany(sql, rows)

    def state(self, name: str) -> Any:
        return self.value(f"SELECT {name} FROM state")

    def set_state(self, **values: Any) -> None:
        self.write(f"UPDATE state SET {', '.join(f'{name} = ?' for name in values)}", list(values.values()))

    def add_totals(self, counts: Mapping[str, int]) -> None:
        """Adds to what was counted since the memory was made."""
        self.write_all(
            "INSERT INTO totals VALUES (?, ?) ON CONFLICT DO UPDATE SET value = value + excluded.value", counts.items()
        )

    def data_version(self) -> int:
        """Changes when another connection has committed something, and only then."""
        return int(self.value("PRAGMA data_version"))

    def bytes_used(self) -> int:
        """Bytes of the pages in use; free pages, which the next rows fill, do not count."""
        pages = self.value("PRAGMA page_count") - self.value("PRAGMA freelist_count")
        return int(pages * self.value("PRAGMA page_size"))

    def copy(self, file: Path) -> None:
        """Writes what is committed to the new database `file`."""
        self.rows("VACUUM INTO ?", (str(file),))

    def checkpoint(self) -> None:
        """Lets go of what still holds what was deleted: the write-ahead log, and the copy of an older schema.

        What a reader needs of the log stays till later.
        """
        self.rows("PRAGMA wal_checkpoint(TRUNCATE)")
        before_migration.drop(self.folder)

    def close(self) -> None:
        self._connection.close()
        self._unlock()

    def _unlock(self) -> None:
        if self._lock is not None:
            self._lock.close()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                raise StoreBusy(
                    f"the memory {self._path} is locked by another process: close what holds it, then try again"
                ) from error
            if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
                raise StoreCorrupt(
                    f"the memory {self._path} cannot be read ({error}): restore it from a backup, or move it away "
                    "and start anew"
                ) from error
            if code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN):
                raise StoreFull(
                    f"the memory {self._path} cannot be written ({error}): free some space and make it writable; what "
                    "was committed before is whole, and the next turn goes on from there"
                ) from error
            raise
