"""The embedded stream: one SQLite file, shared by the processes of one machine."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from perdure.errors import StreamError
from perdure.stream.base import Offset, Page, Stream
from perdure.stream.partition import FIRST, PARTITION, page, start_of
from perdure.stream.payload import Payload

APPLICATION_ID = 0x50524453
"""'PRDS' in the file's header: tells a stream from any other SQLite file."""

RETRY_SECONDS = 0.02

MIGRATIONS = (
    # 1: entries, and what they are found by when somebody asks to be forgotten. AUTOINCREMENT: a position is never
    # used twice, even after the last entries were removed.
    (
        """
        CREATE TABLE entry (
            position INTEGER PRIMARY KEY AUTOINCREMENT,
            payload BLOB NOT NULL,
            time REAL,
            interaction TEXT,
            subject TEXT
        )
        """,
        "CREATE INDEX entry_subject ON entry (subject, time) WHERE subject IS NOT NULL",
        "CREATE INDEX entry_interaction ON entry (interaction) WHERE interaction IS NOT NULL",
    ),
)
"""Statements that bring a file from each schema version to the next. Only ever add to the end."""

_ADVICE = {
    "SQLITE_BUSY": "another process held it locked for more than {timeout:g} s: end what holds it (a backup, a shell "
    "with an open transaction), or raise stream.busy_timeout",
    "SQLITE_READONLY": "it cannot be written: make the file and its folder writable for this user",
    "SQLITE_PERM": "it cannot be opened: make the file and its folder readable and writable for this user",
    "SQLITE_CANTOPEN": "it cannot be opened: make it a file in a folder that this user may write, or give another path",
    "SQLITE_FULL": "the disk is full: free some space",
    "SQLITE_NOTADB": "it is not an SQLite database: move the file away, or give another path in stream.url",
    "SQLITE_CORRUPT": "it is damaged: restore it from a backup, or move it away to start a new one",
    # A full disk too: where the index of the write-ahead log cannot grow.
    "SQLITE_IOERR": "the disk is full, or reports an error: free some space, or look at the system's log",
}
_ADVICE["SQLITE_LOCKED"] = _ADVICE["SQLITE_BUSY"]


class SqliteStream(Stream):
    """A stream in the file `path`, made when missing, its folder too.

    `append` returns when the operating system says that the records are on disk (write-ahead log, one fsync for each
    call). Several processes may append and read at once, each with its own instance; one instance may be used from
    several threads. Do not carry an instance over a fork, and do not put the file on a network share.

    Args:
        path: The file.
        busy_timeout: Seconds to wait while another process writes.

    Raises:
        StreamError: the file cannot be opened, is no stream, or was written by a newer version.
    """

    def __init__(self, path: str | Path, *, busy_timeout: float = 5.0) -> None:
        self.path = Path(path)
        self._busy_timeout = busy_timeout
        self._lock = threading.Lock()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StreamError(
                f"the folder of the stream {self.path} cannot be made: {error.strerror or error}. "
                "Give another path in stream.url, or make the folder by hand"
            ) from error
        self._connection: sqlite3.Connection | None = None
        with self._explained("cannot be opened"):
            self._connection = self._connect()
            self._identity = _identity(self.path)

    def end(self) -> Offset:
        with self._lock, self._explained("cannot be read"):
            return {PARTITION: _end(self._open())}

    def forget(self, subject: str, until: float) -> int:
        """As the base class says; the text is gone from the file and its write-ahead log when this returns.

        Raises:
            StreamError: nothing was removed; or it was, but another process kept the write-ahead log in use for the
                whole of `busy_timeout`. The message says which. Forgetting again is always safe.
        """
        theirs = "SELECT interaction FROM entry WHERE subject = :subject AND time <= :until"
        values = {"subject": subject, "until": until}
        with self._lock, self._explained("could not forget, nothing was removed"):
            connection = self._open()
            with _transaction(connection):
                # Feedback first: it is found through the interactions, which go next.
                feedback = connection.execute(
                    f"DELETE FROM entry WHERE subject IS NULL AND interaction IN ({theirs})", values
                )
                interactions = connection.execute(
                    "DELETE FROM entry WHERE subject = :subject AND time <= :until", values
                )
            removed = feedback.rowcount + interactions.rowcount
            self._empty_log(connection)
        return removed

    def copy(self, file: Path) -> None:
        """Writes what is committed to the new file `file`, positions included; others may go on appending.

        Raises:
            StreamError: it cannot be written.
        """
        with self._lock, self._explained(f"could not be copied to {file}"):
            self._open().execute("VACUUM INTO ?", (str(file),))

    def subjects(self) -> tuple[str, ...]:
        """Whose data there is."""
        with self._lock, self._explained("cannot be read"):
            found = self._open().execute(
                "SELECT DISTINCT subject FROM entry WHERE subject IS NOT NULL ORDER BY subject"
            )
            return tuple(subject for (subject,) in found)

    def close(self) -> None:
        with self._lock, self._explained("cannot be closed"):
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def _append(self, added: Sequence[Payload]) -> None:
        rows = [(payload.body, payload.time, payload.interaction, payload.subject) for payload in added]
        with self._lock, self._explained("could not be written, nothing was recorded"):
            connection = self._open()
            self._check_in_place()
            with _transaction(connection):
                connection.executemany(
                    "INSERT INTO entry (payload, time, interaction, subject) VALUES (?, ?, ?, ?)", rows
                )

    def _read(self, offset: Offset, limit: int) -> Page:
        start = start_of(offset)
        with self._lock, self._explained("cannot be read"):
            connection = self._open()
            self._check_in_place()
            # One snapshot for both: what is committed between them must not be skipped.
            with _transaction(connection, "DEFERRED"):
                end = _end(connection)
                found = connection.execute(
                    "SELECT position, CAST(payload AS BLOB) FROM entry WHERE position >= ? ORDER BY position LIMIT ?",
                    (start, limit),
                ).fetchall()
        return page(found, start=start, limit=limit, end=end, stream=f"the stream {self.path}")

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            raise StreamError(f"the stream {self.path} is closed: open it again")
        return self._connection

    def _check_in_place(self) -> None:
        # SQLite goes on writing to a file that was deleted or moved under it, and all of that would be lost.
        if _identity(self.path) != self._identity:
            raise StreamError(
                f"the stream {self.path} was moved, deleted or replaced while it was open: put it back, "
                "or start this process again"
            )

    def _connect(self) -> sqlite3.Connection:
        deadline = time.monotonic() + self._busy_timeout
        while True:
            connection = sqlite3.connect(
                self.path, timeout=self._busy_timeout, isolation_level=None, check_same_thread=False
            )
            try:
                self._prepare(connection)
            except sqlite3.OperationalError as error:
                connection.close()
                # Switching to the write-ahead log does not wait for others by itself.
                if _family(error) != "SQLITE_BUSY" or time.monotonic() > deadline:
                    raise
                time.sleep(RETRY_SECONDS)
            except BaseException:
                connection.close()
                raise
            else:
                return connection

    def _prepare(self, connection: sqlite3.Connection) -> None:
        connection.execute("PRAGMA secure_delete = ON")
        self._check_ours(connection)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        if _pragma(connection, "user_version") == len(MIGRATIONS):
            return
        with _transaction(connection):
            # Again, now that no other process can be doing the same.
            version = self._check_ours(connection)
            for number, statements in enumerate(MIGRATIONS[version:], version + 1):
                for statement in statements:
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {number}")
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")

    def _check_ours(self, connection: sqlite3.Connection) -> int:
        version = _pragma(connection, "user_version")
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        if (tables or version) and _pragma(connection, "application_id") != APPLICATION_ID:
            raise StreamError(f"{self.path} is an SQLite database, but not a stream: give another path in stream.url")
        if version > len(MIGRATIONS):
            raise StreamError(
                f"the stream {self.path} has schema {version}, newer than the {len(MIGRATIONS)} that this version "
                "knows: upgrade Perdure"
            )
        return version

    def _empty_log(self, connection: sqlite3.Connection) -> None:
        """Moves the write-ahead log into the file and cuts it to nothing, old pages with forgotten text included."""
        deadline = time.monotonic() + self._busy_timeout
        while True:
            (busy, _, _) = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            if not busy:
                return
            if time.monotonic() > deadline:
                raise StreamError(
                    f"what was to be forgotten is removed from the stream {self.path}, but another process has kept "
                    f"the old pages in {self.path.name}-wal in use for more than {self._busy_timeout:g} s: "
                    "end what reads it (a backup, a shell with an open transaction) and forget again"
                )
            time.sleep(RETRY_SECONDS)

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            family = _family(error)
            advice = _ADVICE.get(family, f"{error}: look at the file and its folder").format(timeout=self._busy_timeout)
            raise StreamError(f"the stream {self.path} {what}: {advice} ({error}; {family})") from error
        except OSError as error:
            raise StreamError(f"the stream {self.path} {what}: {error.strerror or error}") from error


@contextmanager
def _transaction(connection: sqlite3.Connection, kind: str = "IMMEDIATE") -> Iterator[None]:
    connection.execute(f"BEGIN {kind}")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        # Some errors (a full disk) have already rolled back.
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _end(connection: sqlite3.Connection) -> int:
    # Not the greatest position: the last entries may have been forgotten.
    row = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'entry'").fetchone()
    return FIRST if row is None else int(row[0]) + 1


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    (value,) = connection.execute(f"PRAGMA {name}").fetchone()
    return int(value)


def _family(error: sqlite3.Error) -> str:
    """The primary error code's name, such as SQLITE_BUSY for SQLITE_BUSY_SNAPSHOT."""
    name = getattr(error, "sqlite_errorname", None) or type(error).__name__
    return "_".join(name.split("_")[:2])


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino
