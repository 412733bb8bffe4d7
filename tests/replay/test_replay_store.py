"""Locks, migrations, readers, damage, and a process killed while it writes."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from perdure.errors import StoreBusy, StoreCorrupt, StoreFull, UsageError
from perdure.memory import open_memory
from perdure.records import Feedback, Interaction
from perdure_replay import ReplayMemory
from perdure_replay.store import FILE, migrate, migrations

Open = Callable[..., ReplayMemory]

WRITER = """
import sys
from perdure.config import Settings
from perdure.records import Feedback, Interaction, encode
from perdure.stream.base import Entry, Page
from perdure_replay import open_memory

memory = open_memory(Settings().with_values({"memory.path": sys.argv[1], "memory.per_class": 5}))
print("open", flush=True)
for number in range(memory.offset().get("p", 0) // 2, int(sys.argv[2])):
    records = [
        Interaction(id=str(number), text=f"text {number % 97}", time=1.7e9 + number),
        Feedback(interaction=str(number * 7 % 400), label=f"l{number % 5}", time=1.7e9 + number),
    ]
    entries = tuple(Entry("p", 2 * number + place, encode(record)) for place, record in enumerate(records))
    memory.ingest(Page(entries, {"p": 2 * number + 2}))
    print(number, flush=True)
if len(sys.argv) > 3:
    sys.stdin.read()
print(memory.digest(), sum(delta.sign for delta in memory.deltas(10**6)), memory.counts().totals)
"""


def start(folder: Path, pages: int, *more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(folder), str(pages), *more],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_a_killed_writer_goes_on_where_it_was(world: Any, opened: Open, tmp_path: Path) -> None:
    pages = 160
    records = [
        record
        for number in range(pages)
        for record in (
            Interaction(id=str(number), text=f"text {number % 97}", time=1.7e9 + number),
            Feedback(interaction=str(number * 7 % 400), label=f"l{number % 5}", time=1.7e9 + number),
        )
    ]
    clean = opened(records, name="clean", per_class=5)
    for upto in (3, 90):
        with start(tmp_path / "killed", pages) as writer:
            assert writer.stdout is not None
            while not (line := writer.stdout.readline().strip()).isdigit() or int(line) < upto:
                assert line
            writer.kill()
            assert writer.wait() == -signal.SIGKILL
    with start(tmp_path / "killed", pages) as writer:
        output = writer.communicate()[0].splitlines()
    assert 90 <= int(output[1]) < pages  # it did not begin anew
    net = sum(delta.sign for delta in clean.deltas(10**6))
    assert output[-1] == f"{clean.digest()} {net} {clean.counts().totals}"


def test_one_writer_at_a_time_and_readers_beside_it(world: Any, tmp_path: Path) -> None:
    folder = tmp_path / "memory"
    settings = world.settings(folder, per_class=5)
    with start(folder, 3, "wait") as writer:
        assert writer.stdout is not None
        while writer.stdout.readline().strip() != "2":
            pass
        with pytest.raises(StoreBusy, match=rf"{folder} is being written by process {writer.pid}:"):
            open_memory(settings)
        with open_memory(settings, read_only=True) as reader:
            assert reader.counts().totals.interactions == 3
            assert reader.turn().number == 1
            with pytest.raises(UsageError, match="for reading only"):
                reader.ingest(world.page([world.interaction("9", "nine")]))
            with pytest.raises(UsageError, match="for reading only"):
                reader.freeze(champion=None, promotion=1)
        writer.kill()
        writer.wait()
    with open_memory(settings) as memory:
        assert memory.counts().totals.interactions == 3


def test_a_reader_sees_what_was_committed_last(world: Any, opened: Open) -> None:
    memory = opened(world.labelled("1", "one", "a"))
    reader = opened(read_only=True)
    memory.embed("v", [memory.samples()[0].key], [[1.0, 0.0]])  # type: ignore[arg-type]
    assert reader.neighbours([[1.0, 0.0]], 5).samples == (memory.samples(),)  # type: ignore[arg-type]
    memory.ingest(world.page(world.labelled("2", "two", "a"), start=2))
    memory.embed("v", [sample.key for sample in memory.samples()], [[1.0, 0.0]] * 2)  # type: ignore[arg-type]
    assert reader.samples() == memory.samples()
    assert reader.samples()[0].weight == 0.5
    assert len(reader.neighbours([[1.0, 0.0]], 5).samples[0]) == 2  # type: ignore[arg-type]
    assert reader.deltas(5) == memory.deltas(5)


def test_two_in_one_process_exclude_each_other(opened: Open) -> None:
    first = opened()
    with pytest.raises(StoreBusy):
        opened()
    first.close()
    opened()


def test_a_database_locked_by_something_else_is_busy(world: Any, opened: Open, tmp_path: Path) -> None:
    memory = opened(busy_timeout=0.05)
    other = sqlite3.connect(tmp_path / "memory" / FILE, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    began = time.monotonic()
    with pytest.raises(StoreBusy, match="locked by another process"):
        memory.ingest(world.page([world.interaction("1", "one")]))
    assert time.monotonic() - began < 2
    other.execute("ROLLBACK")
    other.close()
    memory.ingest(world.page([world.interaction("1", "one")]))
    assert memory.counts().joinable == 1


def test_a_page_is_taken_whole_or_not_at_all(world: Any, opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = opened(world.labelled("1", "one", "a"))
    before = memory.offset(), memory.digest(), memory.counts()
    with monkeypatch.context() as patch:
        patch.setattr(memory._quarantine, "prune", lambda: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            memory.ingest(world.page([*world.labelled("2", "two", "a"), b"?", world.erasure("x")], start=2))
    assert (memory.offset(), memory.digest(), memory.counts()) == before
    memory.ingest(world.page(world.labelled("2", "two", "a"), start=2))
    assert len(memory.samples()) == 2


@pytest.mark.parametrize("first", range(len(migrations())))
def test_migrations_lead_from_any_schema_to_the_present_one(
    world: Any, opened: Open, tmp_path: Path, first: int
) -> None:
    numbers = [number for number, _ in migrations()]
    assert numbers == list(range(1, len(numbers) + 1))
    fresh = opened(name="fresh")
    shape = "SELECT type, name, tbl_name FROM sqlite_master ORDER BY name"
    folder = tmp_path / "memory"
    folder.mkdir()
    old = sqlite3.connect(folder / FILE, isolation_level=None)
    if first:
        migrate(old, through=1)
        old.execute("INSERT INTO state (only, hash_key, half_life, turn) VALUES (1, ?, 0, 7)", (bytes(32),))
        migrate(old, through=first)
    old.close()
    if first:
        with pytest.raises(UsageError, match="old schema"):
            opened(read_only=True)
    memory = opened()
    assert memory._store.rows(shape) == fresh._store.rows(shape)
    assert memory._store.rows("PRAGMA table_info(state)") == fresh._store.rows("PRAGMA table_info(state)")
    assert memory.turn().number == (7 if first else 1)
    assert memory._store.state("identity")
    memory.ingest(world.page(world.labelled("1", "one", "a")))
    assert len(memory.samples()) == 1


def test_what_waited_before_partitions_had_their_own_time_still_expires(
    world: Any, opened: Open, tmp_path: Path
) -> None:
    (tmp_path / "memory").mkdir()
    old = sqlite3.connect(tmp_path / "memory" / FILE, isolation_level=None)
    migrate(old, through=4)
    old.execute(
        "INSERT INTO state (only, hash_key, half_life, watermark, horizon_time, horizon_id) VALUES (1, ?, 0, ?, ?, ?)",
        (bytes(32), world.now, world.now - 9, "0"),
    )
    old.execute("UPDATE state SET identity = 'old'")
    old.execute("INSERT INTO offsets VALUES ('p', 2)")
    old.execute(
        "INSERT INTO interactions (id, time, hash, digest, erased, text, confidence, fresh, seen)"
        " VALUES ('1', ?, x'01', x'02', 0, 'one', 0.5, 1, 0)",
        (world.now,),
    )
    old.execute("INSERT INTO waiting VALUES ('2', ?, 'user', 'a')", (world.now,))
    old.close()
    memory = opened(join_ttl_hours=1.0)
    beyond = memory.ingest(world.page([world.interaction("0", "zero", at=-10)], start=2))
    later = memory.ingest(world.page([world.interaction("3", "three", at=7200.0)], start=3))
    assert (beyond.expired, later.expired) == (1, 2)


def test_a_broken_migration_leaves_the_old_schema(monkeypatch: pytest.MonkeyPatch) -> None:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    steps = ((1, "CREATE TABLE a (b);"), (2, "CREATE TABLE c (d); CREATE TABLE a (b);"))
    monkeypatch.setattr("perdure_replay.store.migrations", lambda: steps)
    with pytest.raises(sqlite3.OperationalError):
        migrate(connection)
    assert connection.execute("PRAGMA user_version").fetchone() == (1,)
    assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("a",)]
    connection.close()


def test_a_newer_schema_is_refused(opened: Open, tmp_path: Path) -> None:
    opened().close()
    connection = sqlite3.connect(tmp_path / "memory" / FILE)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(UsageError, match="schema 99, newer than"):
        opened()


def test_what_is_no_database_is_said_so_and_left_alone(opened: Open, tmp_path: Path) -> None:
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / FILE).write_bytes(b"not a database" * 100)
    for _ in range(2):  # the lock was given back
        with pytest.raises(StoreCorrupt, match="cannot be read"):
            opened()
    assert (tmp_path / "memory" / FILE).read_bytes() == b"not a database" * 100


def test_a_folder_that_cannot_be_is_refused(opened: Open, tmp_path: Path) -> None:
    (tmp_path / "memory").write_text("a file", encoding="utf-8")
    with pytest.raises(UsageError, match=r"cannot write the memory folder .* set memory\.path"):
        opened()
    with pytest.raises(UsageError, match="there is no memory in"):
        opened(name="nowhere", read_only=True)


def test_durability_is_not_traded_for_speed(opened: Open) -> None:
    store = opened()._store
    assert store.value("PRAGMA journal_mode") == "wal"
    assert store.value("PRAGMA synchronous") == 2
    assert store.value("PRAGMA secure_delete") == 1
    assert store.value("PRAGMA foreign_keys") == 1


def test_a_full_disk_is_said_so_and_loses_nothing(world: Any, opened: Open) -> None:
    memory = opened(world.labelled("0", "before", "a"))
    digest = memory.digest()
    pages = memory._store.value("PRAGMA page_count")
    memory._store.rows(f"PRAGMA max_page_count = {pages}")
    many = [record for number in range(1, 200) for record in world.labelled(f"{number}", "x" * 2000 + f"{number}", "a")]
    with pytest.raises(StoreFull, match="free some space"):
        memory.ingest(world.page(many, start=3))
    assert memory.digest() == digest
