"""A memory that the first schema wrote, with something in it, and the way back from the present one."""

from __future__ import annotations

import os
import shutil
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from perdure.errors import StoreFull, UsageError
from perdure_replay import ReplayMemory
from perdure_replay import store as store_module
from perdure_replay.before_migration import KEPT_SECONDS, PREFIX, copies
from perdure_replay.priority import Priorities, key_from_seed
from perdure_replay.store import FILE, migrate, migrations

Open = Callable[..., ReplayMemory]
NEWEST = migrations()[-1][0]
ROWS = (("1", "where is my parcel", "parcel", "ann"), ("2", "money back", "refund", None))
HEAD = "head-000000000002-abc.safetensors"


def first_memory(folder: Path, now: float) -> None:
    """What a memory of the first schema held after two labelled rows; the head has the first of them."""
    (folder / "heads").mkdir(parents=True)
    (folder / "heads" / HEAD).write_text('[["where is my parcel", "parcel", 1]]', encoding="utf-8")
    names = Priorities(key_from_seed(0), 0)
    old = sqlite3.connect(folder / FILE, isolation_level=None)
    migrate(old, through=1)
    old.execute(
        "INSERT INTO state (only, hash_key, half_life, watermark, statistics, handed, turn)"
        " VALUES (1, ?, 0, ?, ?, 1, 4)",
        (key_from_seed(0), now + 1, HEAD),
    )
    old.execute("INSERT INTO offsets VALUES ('p', 4)")
    for name, text, label, whose in ROWS:
        digest, subject = names.text(text), names.subject(whose) if whose else None
        place, key = names.place(label, digest), names.interaction(name)
        old.execute(
            "INSERT INTO interactions (id, time, hash, digest, subject, erased, text, confidence, label, label_time,"
            " label_source, counted, fresh, seen) VALUES (?, ?, ?, ?, ?, 0, ?, 0.5, ?, ?, 'user', ?, 1, 0)",
            (name, now, key, digest, subject, text, label, now + 1, label),
        )
        old.execute(
            "INSERT INTO places VALUES (?, ?, ?, ?, 1, 1, ?, ?)",
            (place, label, names.score(place, now + 1), now + 1, place.hex(), key),
        )
        old.execute(
            "INSERT INTO provenance VALUES (?, ?, ?, ?, ?, ?, 1, ?)", (place, key, name, subject, now, now + 1, text)
        )
    old.execute(
        "INSERT INTO deltas (sequence, interaction, made, text, label, sign)"
        " VALUES (3, '2', ?, 'money back', 'refund', 1)",
        (now,),
    )
    old.execute("INSERT INTO quarantine VALUES ('q', ?, 'no reason', 'what', NULL, NULL)", (now,))
    old.close()


def tables(file: Path) -> dict[str, list[Any]]:
    connection = sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True)
    names = [
        name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")
    ]
    found = {name: sorted(connection.execute(f"SELECT * FROM {name}"), key=repr) for name in names}
    found["version"] = connection.execute("PRAGMA user_version").fetchall()
    connection.close()
    return found


def test_what_the_first_schema_held_is_all_there_and_goes_on(world: Any, opened: Open, tmp_path: Path) -> None:
    first_memory(tmp_path / "memory", world.now)
    memory = opened()
    assert {(one.text, one.label) for one in memory.samples()} == {(text, label) for _, text, label, _ in ROWS}
    assert (memory.offset(), memory.turn().number, memory.statistics()) == ({"p": 4}, 4, HEAD)
    assert [one.id for one in memory.quarantined()] == ["q"]
    assert world.sums(memory) == {("where is my parcel", "parcel"): 1, ("money back", "refund"): 1}
    # Joins across the move: a correction of an old row, what is said again, and an erasure.
    page = world.page([world.feedback("2", "money", at=5), world.feedback("1", "parcel", at=1)], start=4)
    counts = memory.ingest(page)
    assert (counts.corrected, counts.repeated) == (1, 1)
    assert world.sums(memory) == {("where is my parcel", "parcel"): 1, ("money back", "money"): 1}
    told = memory.forget("ann", world.now + 9)
    assert (told.interactions, told.samples, told.deltas) == (1, 1, 1)
    assert world.sums(memory) == {("money back", "money"): 1}


def test_the_old_memory_stays_for_who_wants_to_go_back(
    world: Any, opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "memory"
    first_memory(folder, world.now)
    before = tables(folder / FILE)
    memory = opened()
    (copy,) = copies(folder)
    assert copy.name == f"{PREFIX}{NEWEST}"
    assert str(copy) in caplog.text
    assert tables(copy / FILE) == before
    assert before["version"] == [(1,)]
    # The newer release learns on, and lets go of the file that the older one points to.
    later = world.page([world.interaction("3", "password gone", at=7), world.feedback("3", "login", at=8)], start=4)
    memory.ingest(later)
    world.absorb(memory)
    assert not (folder / "heads" / HEAD).exists()
    memory.close()
    # An older release says that it cannot read this, and reads what was kept.
    known = migrations()
    with monkeypatch.context() as older:
        older.setattr(store_module, "migrations", lambda: known[:-1])
        with pytest.raises(UsageError, match=rf"schema {NEWEST}, newer than the {NEWEST - 1} that this version reads"):
            opened()
    assert tables(folder / FILE)["version"] == [(NEWEST,)], "refused, and left alone"
    shutil.move(copy, tmp_path / "back")
    shutil.rmtree(folder)
    with monkeypatch.context() as older:
        older.setattr(store_module, "migrations", lambda: known[:-1])
        store = store_module.Store(tmp_path / "back")
        assert store.value("PRAGMA user_version") == NEWEST - 1
        store.close()
    # And on the way forth again the stream gives what it has not seen.
    again = opened(name="back")
    assert (Path(again.folder) / HEAD).is_file()
    again.ingest(later)
    assert {one.text for one in again.samples()} == {"where is my parcel", "money back", "password gone"}


def test_the_copy_goes_with_the_first_erasure_and_after_a_week(world: Any, opened: Open, tmp_path: Path) -> None:
    folder = tmp_path / "memory"
    first_memory(folder, world.now)
    opened().close()
    (copy,) = copies(folder)
    opened().close()
    assert copies(folder) == (copy,)
    old = time.time() - KEPT_SECONDS - 1
    os.utime(copy, (old, old))
    opened().close()
    assert copies(folder) == ()
    shutil.rmtree(folder)
    first_memory(folder, world.now)
    memory = opened()
    assert copies(folder)
    memory.ingest(world.page([world.erasure("ann")], start=4))
    assert copies(folder) == ()


def test_a_new_memory_and_a_present_one_are_not_copied(opened: Open, tmp_path: Path) -> None:
    opened().close()
    opened().close()
    assert copies(tmp_path / "memory") == ()


def test_without_room_for_the_copy_nothing_moves(
    world: Any, small_disk: Callable[[int], Path], caplog: pytest.LogCaptureFixture
) -> None:
    disk = small_disk(400 * 1024)
    first_memory(disk / "memory", world.now)
    before = tables(disk / "memory" / FILE)
    room = shutil.disk_usage(disk).free
    ballast = disk / "ballast"
    ballast.write_bytes(bytes(room - 40 * 1024))
    with pytest.raises(StoreFull, match=r"free as much space as its database takes; nothing has changed"):
        world.open(disk / "memory")
    assert tables(disk / "memory" / FILE) == before
    assert copies(disk / "memory") == ()
    ballast.unlink()
    with world.open(disk / "memory") as memory:
        assert len(memory.samples()) == 2


def test_a_score_is_what_the_first_release_wrote(world: Any) -> None:
    """The keyed hashes decide places: another function would tear old memories apart."""
    names = Priorities(key_from_seed(0), 0)
    place = names.place("parcel", names.text("Where is  my parcel"))
    assert place == names.place("parcel", names.text("where is my parcel"))
    assert place.hex() == "d27b6385a0ed7a532c6ad8fbd90858da"
    assert names.subject("ann").hex() == "22f08990bc318c9e725ae95464bb8275"
