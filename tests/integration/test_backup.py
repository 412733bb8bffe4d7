"""A backup made while everything goes on, everything destroyed, and the way back."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from perdure.backup import Manifest, back_up, restore
from perdure.commands.keeping import backup
from perdure.errors import StoreCorrupt, StoreFull, UsageError
from perdure.memory import ingest
from perdure.oblivion import reconcile
from perdure.records import Feedback, Interaction
from perdure.registry import Registry
from perdure.stream import open_stream

SECRET = "my secret card four two"


def destroy(desk: Any) -> None:
    shutil.rmtree(desk.folder)


def held(desk: Any) -> dict[str, Any]:
    with desk.memory() as memory:
        counts = memory.counts()
        return {
            "digest": memory.digest(),
            "offset": dict(memory.offset()),
            "samples": memory.samples(),
            "statistics": Path(memory.folder, memory.statistics()).read_bytes(),
            "turn": memory.turn().number,
            "totals": counts.totals,
            "joinable": counts.joinable,
            "history": len(memory.history(10)),
        }


def everywhere(folder: Path) -> bytes:
    return b"".join(file.read_bytes() for file in folder.rglob("*") if file.is_file())


def test_what_was_destroyed_comes_back_and_goes_on_as_if_nothing_had_been(
    desk_at: Callable[..., Any], tmp_path: Path
) -> None:
    desk, spared = (desk_at(tmp_path / name, lora__enabled=False) for name in ("desk", "spared"))
    for one in (desk, spared):
        one.teach("refund", "parcel")
        assert one.turn().promoted
        # Read, but not learned from yet; and one that memory has not read.
        one.teach("login", name="more", at=100.0)
        with one.memory(read_only=False) as memory, one.stream() as stream:
            ingest(stream, memory)
        one.teach("card", name="last", at=200.0)
    before, champion = held(desk), desk.registry().champion()
    manifest = back_up(desk.settings, tmp_path / "backup")
    destroy(desk)
    done = restore(desk.settings, tmp_path / "backup")
    assert (done.champion, done.erasures) == (champion.version, 0)
    assert held(desk) == before
    assert manifest.digest == before["digest"]
    assert manifest.offset == done.offset == before["offset"]
    assert desk.registry().champion() == champion
    assert [entry.number for entry in desk.registry().promotions()] == [1]
    assert desk.turn().champion == spared.turn().champion
    assert held(desk) == held(spared)
    # Positions go on where they were: nothing is recorded under one that memory has read.
    desk.teach("phone", name="new", at=300.0)
    spared.teach("phone", name="new", at=300.0)
    assert desk.turn().ingested == spared.turn().ingested
    assert held(desk) == held(spared)


def test_backups_beside_writers_are_each_whole(desk_at: Callable[..., Any], tmp_path: Path) -> None:
    """Recording, ingesting, learning and promoting go on while copies are made."""
    desk = desk_at(tmp_path / "desk", lora__enabled=False, registry__retain=1)
    desk.teach("refund", "parcel")
    desk.turn()
    stop = threading.Event()
    failed: list[BaseException] = []

    def work() -> None:
        number = 0
        try:
            while not stop.is_set():
                number += 1
                desk.teach("login", "card", name=f"round{number}", at=100.0 * number, seed=number, count=4)
                desk.turn()
        except BaseException as error:  # noqa: BLE001
            failed.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    made = []
    try:
        for number in range(6):
            folder = tmp_path / f"backup{number}"
            manifest = back_up(desk.settings, folder)
            manifest.check(folder)
            made.append((folder, manifest))
    finally:
        stop.set()
        thread.join()
    assert not failed
    assert len({manifest.digest for _, manifest in made}) > 1, "nothing was written meanwhile"
    for folder, manifest in made:
        again = desk_at(tmp_path / f"again-{folder.name}", lora__enabled=False, registry__retain=1)
        restore(again.settings, folder)
        with again.memory() as memory, again.stream() as stream:
            assert memory.digest() == manifest.digest
            assert memory.offset()["0"] <= stream.end()["0"]
            assert memory.statistics() is None or Path(memory.folder, memory.statistics()).is_file()
        registry = again.registry()
        for name in registry.versions():
            registry.check(name)
        assert registry.champion().version in registry.versions()
        # A copy that was made while a turn was under way ends that one first, and reads on in the next.
        for result in (again.turn(), again.turn()):
            assert all(one.outcome != "stale" for one in result.candidates)
        # Each record once: what was read before the copy and what came after add up to what the stream has.
        with again.memory() as memory, again.stream() as stream:
            totals = memory.counts().totals
            assert dict(memory.offset()) == dict(stream.end())
            assert totals.interactions + totals.feedback == stream.end()["0"] - 1
            assert totals.repeated == 0
        shutil.rmtree(again.folder)


def test_a_turn_killed_after_its_promotion_is_a_consistent_backup_too(
    desk_at: Callable[..., Any], tmp_path: Path
) -> None:
    desk = desk_at(tmp_path / "desk")
    desk.teach("refund", "parcel")

    def stop_at(stage: str) -> None:
        if stage == "finish":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        desk.turn(stage=stop_at)
    back_up(desk.settings, tmp_path / "backup")
    destroy(desk)
    restore(desk.settings, tmp_path / "backup")
    assert desk.turn().promoted
    assert [entry.number for entry in desk.registry().promotions()] == [1]
    assert desk.registry().versions() == ("v000001-head", "v000001-lora")


@pytest.mark.parametrize("registry_lost", [True, False])
def test_who_was_forgotten_since_the_backup_stays_forgotten(
    desk_at: Callable[..., Any], tmp_path: Path, registry_lost: bool
) -> None:
    desk = desk_at(tmp_path / "desk", lora__enabled=False)
    desk.teach("refund", "parcel", "card")
    desk.send([(SECRET, "card"), (SECRET + " lost", None)], name="ann", at=50.0, subject="ann")
    desk.turn()
    back_up(desk.settings, tmp_path / "before")
    assert SECRET.encode() in everywhere(tmp_path / "before" / "memory")
    assert SECRET.encode() in everywhere(tmp_path / "before" / "stream")
    with open_stream(desk.settings.stream) as stream:
        stream.forget("ann", 60.0)
    desk.forget("ann", 60.0)
    desk.turn()
    assert SECRET.encode() not in everywhere(desk.folder / "memory")
    if registry_lost:
        # What is known of it is in a later copy of the registry, or in a list that somebody keeps.
        destroy(desk)
        (tmp_path / "list").write_text("bob\n\n  ann \n", encoding="utf-8")
        done = restore(desk.settings, tmp_path / "before", forgotten=["bob", "ann"])
        assert done.erasures == 2
    else:
        shutil.rmtree(desk.folder / "memory")
        (desk.folder / "stream.db").unlink()
        done = restore(desk.settings, tmp_path / "before", ["memory", "stream"])
        assert done.erasures == 1
    assert SECRET.encode() not in (desk.folder / "stream.db").read_bytes()
    with desk.memory() as memory:
        assert all(SECRET not in sample.text for sample in memory.samples())
        alias = memory.alias("ann")
    assert alias in desk.registry().erasures()
    assert not any("ann" in str(path.relative_to(desk.folder)) for path in desk.folder.rglob("erasures/*"))
    # The next turn takes what the head knew of it out, and serves that; unless what is served knows nothing of it.
    assert desk.turn().promoted == registry_lost
    assert SECRET.encode() not in everywhere(desk.folder / "memory")
    # And if somebody puts the old memory in place by hand, the next turn does the same.
    shutil.rmtree(desk.folder / "memory")
    shutil.copytree(tmp_path / "before" / "memory", desk.folder / "memory")
    desk.turn()
    assert SECRET.encode() not in everywhere(desk.folder / "memory")


def test_erasures_stand_in_the_registry_as_soon_as_a_turn_has_read_them(desk: Any) -> None:
    desk.teach("refund", "parcel")
    desk.send([(SECRET, "parcel")], name="ann", at=50.0, subject="ann")
    desk.turn()
    assert desk.registry().erasures() == {}
    desk.forget("ann", 60.0)
    desk.forget("ann", 70.0)
    desk.turn()
    with desk.memory() as memory:
        assert desk.registry().erasures() == {memory.alias("ann"): 70.0}
    with desk.memory(read_only=False) as memory:
        assert reconcile(memory, desk.registry()) == 0
        desk.registry().add_erasures({memory.alias("bob"): 65.0, memory.alias("ann"): 66.0, "ab": -1e9})
        # Older than anything that could still come: not carried out again with every turn.
        assert reconcile(memory, desk.registry()) == 1
        assert set(memory.erasures()) == {memory.alias("ann"), memory.alias("bob")}
        assert memory.erasures()[memory.alias("ann")] == 70.0


@pytest.mark.parametrize("part", ["memory", "stream", "registry"])
def test_nothing_is_overwritten(desk_at: Callable[..., Any], tmp_path: Path, part: str) -> None:
    desk = desk_at(tmp_path / "desk")
    desk.teach("refund", "parcel")
    desk.turn()
    back_up(desk.settings, tmp_path / "backup")
    with pytest.raises(UsageError, match="exists already"):
        back_up(desk.settings, tmp_path / "backup")
    kept = {"memory": "memory", "stream": "stream.db", "registry": "registry"}
    for name in set(kept) - {part}:
        path = desk.folder / kept[name]
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    before = everywhere(desk.folder)
    with pytest.raises(UsageError, match="move it away"):
        restore(desk.settings, tmp_path / "backup")
    assert everywhere(desk.folder) == before
    restore(desk.settings, tmp_path / "backup", [name for name in kept if name != part])
    with desk.memory() as memory:
        assert memory.digest() == Manifest.read(tmp_path / "backup").digest
    assert desk.registry().champion().version == "v000001-head"


@pytest.mark.parametrize("damage", ["altered", "missing", "added", "manifest", "none", "newer"])
def test_a_damaged_backup_is_refused_before_anything_is_written(
    desk_at: Callable[..., Any], tmp_path: Path, damage: str
) -> None:
    desk = desk_at(tmp_path / "desk")
    desk.teach("refund", "parcel")
    desk.turn()
    folder = tmp_path / "backup"
    back_up(desk.settings, folder)
    destroy(desk)
    one = next(folder.glob("memory/heads/*"))
    if damage == "altered":
        data = bytearray(one.read_bytes())
        data[len(data) // 2] ^= 1
        one.write_bytes(data)
    elif damage == "missing":
        one.unlink()
    elif damage == "added":
        (folder / "memory" / "memory.db-wal").write_bytes(b"x")
    elif damage == "manifest":
        (folder / "backup.json").write_text("{", encoding="utf-8")
    elif damage == "newer":
        fields = json.loads((folder / "backup.json").read_text(encoding="utf-8"))
        (folder / "backup.json").write_text(json.dumps({**fields, "schema": 2}), encoding="utf-8")
    else:
        (folder / "backup.json").unlink()
    says = {"none": "is no backup", "newer": "upgrade Perdure"}.get(damage, "take another backup")
    with pytest.raises(UsageError if damage in ("none", "newer") else StoreCorrupt, match=says):
        restore(desk.settings, folder)
    assert not desk.folder.exists()


def test_a_backup_that_finds_no_room_leaves_nothing(
    desk_at: Callable[..., Any], tmp_path: Path, small_disk: Callable[[int], Path]
) -> None:
    desk = desk_at(tmp_path / "desk")
    desk.teach("refund", "parcel")
    desk.turn()
    before = held(desk)
    disk = small_disk(256 * 1024)
    with pytest.raises(StoreFull, match="free some space"):
        back_up(desk.settings, disk / "backup")
    assert list(disk.iterdir()) == []
    assert held(desk) == before
    back_up(desk.settings, tmp_path / "backup")
    elsewhere = desk.settings.with_values({"memory.path": str(disk / "memory"), "registry.url": str(tmp_path / "r")})
    with pytest.raises(StoreFull, match="free some space"):
        restore(elsewhere, tmp_path / "backup", ["memory"])
    assert not list(disk.rglob("*.db"))


def test_the_commands_do_it_while_another_process_has_the_memory(desk_at: Callable[..., Any], tmp_path: Path) -> None:
    desk = desk_at(tmp_path / "desk")
    desk.teach("refund", "parcel")
    desk.turn()
    options = [
        option
        for name in ("stream.url", "registry.url", "memory.path", "model.name")
        for option in ("--set", f"{name}={_value(desk.settings, name)}")
    ]

    def perdure(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", "from perdure.cli import main; main()", *map(str, arguments), *options]
        return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})

    with desk.memory(read_only=False):
        made = perdure("backup", tmp_path / "backup", "--json")
    assert made.returncode == 0, made.stderr
    told = json.loads(made.stdout)
    assert (told["champion"], told["parts"]) == ("v000001-head", ["memory", "stream", "registry"])
    refused = perdure("restore", tmp_path / "backup")
    assert refused.returncode == 2
    assert "there is a memory in" in refused.stderr
    destroy(desk)
    (tmp_path / "gone").write_text("ann\n", encoding="utf-8")
    back = perdure("restore", tmp_path / "backup", "--forgotten", tmp_path / "gone")
    assert back.returncode == 0, back.stderr
    assert "Put back memory, stream, registry" in back.stdout
    assert "1 erasures" in back.stdout
    with desk.memory() as memory:
        assert memory.digest() == told["digest"]
    with pytest.raises(UsageError, match="--part cannot be 'spool'"):
        backup(tmp_path / "other", ["spool"])


def _value(settings: Any, name: str) -> str:
    section, key = name.split(".")
    return str(getattr(getattr(settings, section), key))


def test_what_a_registry_copy_misses_is_not_passed_off_as_whole(desk: Any, tmp_path: Path) -> None:
    desk.teach("refund", "parcel")
    desk.turn()
    folder = desk.folder / "registry" / "versions" / "v000001-head"
    next(file for file in folder.iterdir() if file.name.startswith("head")).unlink()
    with pytest.raises(Exception, match=r"v000001-head.*Restore it"):
        back_up(desk.settings, tmp_path / "backup")
    assert not (tmp_path / "backup").exists()


def test_a_memory_ahead_of_its_stream_is_refused_in_words(desk: Any, tmp_path: Path) -> None:
    """Why the stream is copied after the memory: the other way round would lose what comes next."""
    desk.teach("refund", "parcel")
    back_up(desk.settings, tmp_path / "backup", ["stream"])
    desk.record([Interaction(id="x", text="late", time=1.0), Feedback(interaction="x", label="refund", time=2.0)])
    desk.turn()
    (desk.folder / "stream.db").unlink()
    restore(desk.settings, tmp_path / "backup")
    with pytest.raises(Exception, match="restored from an older copy"):
        desk.turn()


def test_an_empty_place_has_nothing_to_back_up(desk: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no memory"):
        back_up(desk.settings, tmp_path / "backup")
    assert list(tmp_path.iterdir()) == []
    kafka = desk.settings.with_values({"stream.url": "kafka://127.0.0.1:1"})
    with pytest.raises(UsageError, match="is no file and is not copied"):
        back_up(kafka, tmp_path / "backup", ["stream"])
    assert Registry(desk.settings.registry.url).champion() is None
