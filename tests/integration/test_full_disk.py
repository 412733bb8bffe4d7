"""Disks that are really full: file systems of a few megabytes, filled to the last page and to some pages before it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from perdure.errors import PerdureError, RegistryError, StoreFull
from perdure.registry import Registry

ROOMS = (0, 48 * 1024, 160 * 1024, 400 * 1024)
"""Bytes left free: for nothing, for a page of records, for the database alone, for all but the last files."""
DISK = 6 * 1024 * 1024

SmallDisk = Callable[[int], Path]


def leave(disk: Path, room: int) -> Path:
    """Fills the disk until no more than `room` is free."""
    ballast = disk / "ballast"
    free = shutil.disk_usage(disk).free
    ballast.write_bytes(bytes(max(free - room, 0)))
    return ballast


def held(desk: Any) -> tuple[Any, ...]:
    with desk.memory() as memory:
        statistics = Path(memory.folder, memory.statistics()).read_bytes()
        return memory.digest(), dict(memory.offset()), statistics, memory.counts().totals, memory.turn().number


def begun(desk: Any) -> Any:
    desk.teach("refund", "parcel", count=12)
    assert desk.turn().promoted
    desk.teach("login", "card", "phone", count=12, name="more", at=100.0)
    return desk


@pytest.mark.parametrize("place", ["memory", "registry"])
def test_a_turn_that_finds_no_room_says_so_and_goes_on_when_there_is_some(
    desk_at: Callable[..., Any], tmp_path: Path, small_disk: SmallDisk, place: str
) -> None:
    setting = {"memory": "memory__path", "registry": "registry__url"}[place]
    disk = small_disk(DISK)
    spared = begun(desk_at(tmp_path / "spared", lora__enabled=False))
    desk = begun(desk_at(tmp_path / "desk", lora__enabled=False, **{setting: str(disk / place)}))
    before, refused = held(desk), 0
    versions = desk.registry().versions()
    for room in ROOMS:
        ballast = leave(disk, room)
        problem = None
        try:
            desk.turn()
        except PerdureError as error:
            problem = error
        finally:
            ballast.unlink()
        if problem is None:
            continue
        refused += 1
        assert isinstance(problem, {"memory": StoreFull, "registry": RegistryError}[place]), repr(problem)
        assert "ree some space" in str(problem)
        assert desk.registry().champion().version == "v000001-head"
        assert desk.registry().versions() == versions, "a version that is not whole is none"
        assert not list(disk.rglob("*.partial")), "half a file takes the room that is missing"
        with desk.memory() as memory:
            # Whole pages, or none.
            assert memory.offset()["0"] in (before[1]["0"], end_of(desk))
    assert refused >= 2, "the disk was never full"
    desk.turn()
    spared.turn()
    assert held(desk) == held(spared)
    assert desk.registry().champion().version == spared.registry().champion().version == "v000002-head"


def end_of(desk: Any) -> int:
    with desk.stream() as stream:
        return int(stream.end()["0"])


def test_a_cache_without_room_leaves_what_is_there_and_is_filled_later(desk: Any, small_disk: SmallDisk) -> None:
    begun(desk)
    first = desk.registry().champion().version
    registry = Registry(desk.settings.registry.url)
    disk = small_disk(DISK)
    whole = registry.fetch(first, disk / "cache")
    files = {file.name: file.read_bytes() for file in whole.iterdir()}
    assert desk.turn().champion != first
    second = desk.registry().champion().version
    ballast = leave(disk, 16 * 1024)
    with pytest.raises(RegistryError, match=r"the cache of versions .* cannot be written: .*Free some space"):
        registry.fetch(second, disk / "cache")
    assert {file.name: file.read_bytes() for file in registry.fetch(first, disk / "cache").iterdir()} == files
    ballast.unlink()
    fetched = registry.fetch(second, disk / "cache")
    card = registry.card(second)
    assert {file.name for file in fetched.iterdir()} == {*card.files, "card.json"}
    assert all(
        card.files[file.name].describes(file.read_bytes()) for file in fetched.iterdir() if file.name in card.files
    )


def test_an_embedded_stream_without_room_takes_all_of_a_call_or_nothing(
    desk_at: Callable[..., Any], tmp_path: Path, small_disk: SmallDisk
) -> None:
    disk = small_disk(DISK)
    desk = desk_at(tmp_path / "desk", stream__url=f"sqlite:{disk / 'stream.db'}", lora__enabled=False)
    desk.teach("refund", "parcel", count=12)
    before = end_of(desk)
    ballast = leave(disk, 8 * 1024)
    with pytest.raises(PerdureError, match="free some space"):
        desk.teach("login", count=400, name="more", at=100.0)
    ballast.unlink()
    assert end_of(desk) == before
    desk.teach("login", count=12, name="again", at=200.0)
    assert end_of(desk) == before + 24
    assert desk.turn().promoted
