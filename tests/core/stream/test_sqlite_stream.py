"""What only the SQLite stream can get wrong: files, locks, other processes, and text that must really be gone."""

from __future__ import annotations

import functools
import random
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from perdure.errors import StreamError
from perdure.records import Feedback, Interaction, Record
from perdure.stream import SqliteStream
from perdure.stream.sqlite import APPLICATION_ID, MIGRATIONS

APPENDER = """
import sys
from perdure.records import Interaction
from perdure.stream import SqliteStream
path, name, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
print("ready", flush=True)
sys.stdin.readline()
with SqliteStream(path, busy_timeout=20) as stream:
    for number in range(count):
        stream.append([Interaction(id=f"{name}-{number}-{part}", time=1.0, text="x" * 300) for part in "ab"])
        print(number, flush=True)
"""


def said(text: str, id: str = "1", subject: str | None = None) -> Interaction:
    return Interaction(id=id, time=1.0, text=text, subject=subject)


def ids(stream: SqliteStream) -> list[str]:
    records = (entry.record() for entry in stream.read({}, 100_000).entries)
    return [record.id for record in records if isinstance(record, Interaction)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "stream.db"


@pytest.fixture
def stream(path: Path) -> Iterator[SqliteStream]:
    with SqliteStream(path, busy_timeout=0.1) as stream:
        yield stream


def appender(path: Path, name: str, count: int) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", APPENDER, str(path), name, str(count)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def let_go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


# ── several processes ──
def test_processes_append_at_once_into_a_file_that_none_has_made(path: Path) -> None:
    processes = [appender(path, name, 15) for name in "pqr"]
    for process in processes:
        let_go(process)
    for process in processes:
        process.communicate(timeout=60)
        assert process.returncode == 0
    with SqliteStream(path) as stream:
        seen = ids(stream)
    assert len(seen) == len(set(seen)) == 90
    for name in "pqr":
        own = [id for id in seen if id.startswith(name)]
        assert own == [f"{name}-{number}-{part}" for number in range(15) for part in "ab"]


@pytest.mark.parametrize("after", [1, 17])
def test_a_killed_process_loses_nothing_that_append_returned_for(path: Path, after: int) -> None:
    process = appender(path, "p", 100_000)
    let_go(process)
    assert process.stdout is not None
    for _ in range(after):
        process.stdout.readline()
    process.kill()
    rest = process.communicate(timeout=30)[0].split()
    returned = after + len(rest)
    assert process.returncode == -9
    with SqliteStream(path) as stream:
        seen = ids(stream)
    assert seen[: 2 * returned] == [f"p-{number}-{part}" for number in range(returned) for part in "ab"]
    assert len(seen) in (2 * returned, 2 * returned + 2), (
        "an append that did not return is there as a whole or not at all"
    )


def test_every_append_is_synced_to_disk(stream: SqliteStream) -> None:
    connection = stream._open()
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert connection.execute("PRAGMA synchronous").fetchone() == (2,)


# ── all or none ──
def test_a_full_disk_takes_nothing_and_leaves_what_was_there(stream: SqliteStream) -> None:
    stream.append([said("kept", id="kept")])
    (pages,) = stream._open().execute("PRAGMA page_count").fetchone()
    stream._open().execute(f"PRAGMA max_page_count = {pages + 2}")
    batch: list[Record] = [said("fits", id="small"), *(said("x" * 50_000, id=str(number)) for number in range(5))]
    with pytest.raises(StreamError, match=r"nothing was recorded: the disk is full: free some space") as caught:
        stream.append(batch)
    assert str(stream.path) in str(caught.value)
    assert ids(stream) == ["kept"]
    stream._open().execute("PRAGMA max_page_count = 1000000")
    stream.append(batch)
    assert len(ids(stream)) == 7


def test_a_file_that_cannot_be_written_is_reported(stream: SqliteStream) -> None:
    stream._open().execute("PRAGMA query_only = ON")
    with pytest.raises(StreamError, match=r"nothing was recorded: it cannot be written: make the file .* writable"):
        stream.append([said("x")])
    with pytest.raises(StreamError, match="nothing was removed: it cannot be written"):
        stream.forget("ann", 1.0)
    assert stream.read({}, 1).entries == ()


# ── locks ──
def test_a_lock_that_ends_in_time_is_waited_for(path: Path) -> None:
    with SqliteStream(path, busy_timeout=20) as stream:
        other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        other.execute("BEGIN IMMEDIATE")
        release = threading.Timer(0.2, lambda: other.execute("ROLLBACK"))
        release.start()
        started = time.monotonic()
        stream.append([said("waited")])
        assert time.monotonic() - started > 0.1
        release.join()
        other.close()
        assert ids(stream) == ["1"]


def test_a_lock_that_does_not_end_is_reported_and_nothing_is_written(stream: SqliteStream, path: Path) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StreamError, match=r"locked for more than 0\.1 s: end what holds it") as caught:
            stream.append([said("x")])
        assert str(path) in str(caught.value)
        with pytest.raises(StreamError, match="nothing was removed: another process held it locked"):
            stream.forget("ann", 1.0)
        assert stream.read({}, 1).entries == (), "a writer elsewhere does not stop reading"
        other.execute("ROLLBACK")
    stream.append([said("now")])
    assert ids(stream) == ["1"]


def test_opening_waits_for_a_locked_file_and_then_says_so(path: Path) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StreamError, match=r"cannot be opened: another process held it locked for more than 0\.1 s"):
            SqliteStream(path, busy_timeout=0.1)
        other.execute("ROLLBACK")
    SqliteStream(path, busy_timeout=0.1).close()


def test_opening_goes_on_when_another_process_switches_to_the_log_first(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two that switch a new file at once, SQLite refuses one without waiting."""
    refusals = ["first", "second"]

    class Racing(sqlite3.Connection):
        def execute(self, sql: str, parameters: Any = ()) -> sqlite3.Cursor:
            if "journal_mode" in sql and refusals:
                refusals.pop()
                error = sqlite3.OperationalError("database is locked")
                error.sqlite_errorname = "SQLITE_BUSY"
                raise error
            return super().execute(sql, parameters)

    monkeypatch.setattr(sqlite3, "connect", functools.partial(sqlite3.connect, factory=Racing))
    with SqliteStream(path, busy_timeout=5) as stream:
        stream.append([said("x")])
        assert refusals == []
        assert ids(stream) == ["1"]


def test_what_is_appended_while_a_page_is_read_is_read_next(stream: SqliteStream, path: Path) -> None:
    stream.append([said("one", id="one")])
    with SqliteStream(path) as other:
        late = [said("two", id="two")]

        def between(statement: str) -> None:
            if statement.startswith("SELECT position") and late:
                other.append([late.pop()])

        stream._open().set_trace_callback(between)
        page = stream.read({}, 10)
        stream._open().set_trace_callback(None)
    assert late == []
    assert [entry.position for entry in page.entries] == [1]
    assert dict(page.next) == {"0": 2}
    assert [entry.position for entry in stream.read(page.next, 10).entries] == [2]


def test_a_payload_that_a_shell_wrote_as_text_comes_as_bytes(stream: SqliteStream, path: Path) -> None:
    with closing(sqlite3.connect(path)) as shell, shell:
        shell.execute('INSERT INTO entry (payload) VALUES (\'{"kind": "é"}\')')
    (entry,) = stream.read({}, 1).entries
    assert entry.payload == '{"kind": "é"}'.encode()
    assert "kind" in (entry.reason() or "")


# ── files that are not what they should be ──
def test_a_file_that_is_no_database_is_refused_and_left_alone(path: Path) -> None:
    path.write_bytes(b"id,text\n1,hello\n" * 100)
    with pytest.raises(StreamError, match=r"is not an SQLite database: move the file away"):
        SqliteStream(path)
    assert path.read_bytes() == b"id,text\n1,hello\n" * 100


def test_a_database_of_something_else_is_refused_and_left_alone(path: Path) -> None:
    with closing(sqlite3.connect(path)) as other, other:
        other.execute("CREATE TABLE sample (text)")
        other.execute("PRAGMA user_version = 1")
    before = path.read_bytes()
    with pytest.raises(StreamError, match="is an SQLite database, but not a stream"):
        SqliteStream(path)
    assert path.read_bytes() == before


def test_a_newer_schema_is_refused(path: Path) -> None:
    SqliteStream(path).close()
    with closing(sqlite3.connect(path)) as other, other:
        other.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    with pytest.raises(StreamError, match=rf"schema {len(MIGRATIONS) + 1}, newer than the {len(MIGRATIONS)}.*upgrade"):
        SqliteStream(path)


def test_the_first_schema_still_opens(path: Path) -> None:
    """Written out by hand as it was in the first release: do not change it when the schema moves."""
    with closing(sqlite3.connect(path)) as other, other:
        other.executescript(
            """
            CREATE TABLE entry (
                position INTEGER PRIMARY KEY AUTOINCREMENT, payload BLOB NOT NULL,
                time REAL, interaction TEXT, subject TEXT
            );
            CREATE INDEX entry_subject ON entry (subject, time) WHERE subject IS NOT NULL;
            CREATE INDEX entry_interaction ON entry (interaction) WHERE interaction IS NOT NULL;
            PRAGMA user_version = 1;
            PRAGMA application_id = 1347568723;
            """
        )
        payload = b'{"schema":1,"time":1.0,"kind":"interaction","id":"old","text":"hello","subject":"ann"}'
        other.execute("INSERT INTO entry VALUES (5, ?, 1.0, 'old', 'ann')", (payload,))
    assert APPLICATION_ID == 1347568723
    with SqliteStream(path) as stream:
        assert ids(stream) == ["old"]
        stream.append([said("new", id="new")])
        assert [entry.position for entry in stream.read({}, 10).entries] == [5, 6]
        assert stream.forget("ann", 2.0) == 1


def test_a_damaged_file_is_reported(path: Path) -> None:
    with SqliteStream(path) as stream:
        stream.append([said("x" * 3000, id=str(number)) for number in range(30)])
    body = bytearray(path.read_bytes())
    body[3 * 4096 :] = bytes(random.Random(0).randbytes(len(body) - 3 * 4096))
    path.write_bytes(body)
    with SqliteStream(path) as stream, pytest.raises(StreamError, match="is damaged: restore it from a backup"):
        stream.read({}, 100)


def test_a_folder_that_cannot_be_made_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StreamError, match=r"the folder of the stream .* cannot be made: .*stream\.url"):
        SqliteStream(tmp_path / "file" / "stream.db")


def test_a_path_that_is_a_folder_is_reported(tmp_path: Path) -> None:
    with pytest.raises(StreamError, match="cannot be opened"):
        SqliteStream(tmp_path)


def test_a_file_deleted_under_an_open_stream_is_noticed(stream: SqliteStream, path: Path) -> None:
    stream.append([said("x")])
    path.unlink()
    with pytest.raises(StreamError, match="moved, deleted or replaced"):
        stream.append([said("lost")])
    path.write_bytes(b"")
    with pytest.raises(StreamError, match="moved, deleted or replaced"):
        stream.read({}, 1)


def test_a_reader_ahead_of_a_restored_file_is_not_left_waiting_for_ever(stream: SqliteStream) -> None:
    stream.append([said("x")])
    assert stream.read({"0": 2}, 10).entries == ()
    with pytest.raises(StreamError, match=r"at position 3, but the stream .* ends at 2"):
        stream.read({"0": 3}, 10)


def test_a_closed_stream_says_so(path: Path) -> None:
    stream = SqliteStream(path)
    stream.close()
    for use in (
        lambda: stream.append([said("x")]),
        lambda: stream.read({}, 1),
        stream.end,
        lambda: stream.forget("a", 1),
    ):
        with pytest.raises(StreamError, match=r"is closed: open it again"):
            use()


# ── forgetting ──
def on_disk(path: Path) -> bytes:
    return b"".join(file.read_bytes() for file in sorted(path.parent.iterdir()))


def test_forgotten_text_is_gone_from_the_files(stream: SqliteStream, path: Path) -> None:
    dice = random.Random(1)
    people = [f"person-{number:02d}" for number in range(20)]
    for number in range(200):
        person = dice.choice(people)
        text = f"<{person} wrote this> " * dice.choice([1, 5, 60, 400])
        stream.append([said(text, id=f"{person}/{number}", subject=person)])
        stream.append([Feedback(interaction=f"{person}/{number}", label=f"label of {person}", time=2.0)])
    assert all(person.encode() in on_disk(path) for person in people)
    dice.shuffle(people)
    for count, person in enumerate(people, 1):
        assert stream.forget(person, until=1.0) > 0
        content = on_disk(path)
        assert not [gone for gone in people[:count] if gone.encode() in content]


def test_forget_says_when_old_pages_are_still_in_use_and_works_later(stream: SqliteStream, path: Path) -> None:
    stream.append([said("a secret", subject="ann"), said("other", id="2")])
    with closing(sqlite3.connect(path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        assert reader.execute("SELECT count(*) FROM entry").fetchone() == (2,)
        with pytest.raises(
            StreamError, match=r"is removed from the stream .* in use for more than 0\.1 s.*forget again"
        ):
            stream.forget("ann", 1.0)
        assert ids(stream) == ["2"]
        reader.execute("ROLLBACK")
    assert b"a secret" in on_disk(path)
    assert stream.forget("ann", 1.0) == 0
    assert b"a secret" not in on_disk(path)


def test_forget_finds_a_subject_by_its_index(stream: SqliteStream) -> None:
    plan = stream._open().execute(
        "EXPLAIN QUERY PLAN DELETE FROM entry WHERE subject IS NULL AND interaction IN "
        "(SELECT interaction FROM entry WHERE subject = 'ann' AND time <= 1)"
    )
    steps = " | ".join(step[-1] for step in plan.fetchall())
    assert "entry_subject" in steps
    assert "entry_interaction" in steps
    assert "SCAN" not in steps
