"""Shards that do not fit, a disk that is full, a process that is killed: nothing has changed."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase
from hypothesis import strategies as st

from perdure.errors import StoreCorrupt, StoreFull, UsageError
from perdure_replay import ReplayMemory
from perdure_replay.store import FILE

NOW = 1_700_000_000.0
TEXTS = ("Where is my card?", "where is  MY card?", "Card lost", "card LOST", "Hello", "hello", "x", "y", "z")
IDS = tuple(f"i{number}" for number in range(9))
SUBJECTS = (None, "ann", "bob")
TIMES = st.integers(-40, 40).map(lambda time: NOW + time)
PHASES = (Phase.explicit, Phase.generate)
SPACE = "abc.safetensors"

Net = Counter[tuple[str, str]]
Open = Callable[..., ReplayMemory]


KILLED = """
import os, sys
from pathlib import Path
from perdure.config import Settings
from perdure_replay import ReplayMemory
from perdure_replay.store import FILE
from perdure_replay.store import Store

countdown = int(sys.argv[2])
def step(method):
    def counted(self, *values):
        global countdown
        if not self.read_only:
            countdown -= 1
            if countdown == 0:
                os._exit(9)
        return method(self, *values)
    return counted
folder = Path(sys.argv[1])
memory = ReplayMemory(Settings().with_values({"memory.path": str(folder / "trainer")}), clock=lambda: 1.7e9)
Store.write, Store.write_all = step(Store.write), step(Store.write_all)
memory.assemble([folder / "left", folder / "right"])
print("done")
"""


def test_killed_anywhere_it_is_whole(world: Any, opened: Open, tmp_path: Path) -> None:
    left = world.fed(opened(name="left"), ("0", world.labelled("1", "one", "a", subject="ann")))
    right = world.fed(opened(name="right"), ("1", [world.feedback("1", "b", 3), world.interaction("2", "two")]))
    world.absorb(left)
    with world.open(tmp_path / "trainer") as trainer:
        trainer.assemble([tmp_path / "left", tmp_path / "right"])
        world.absorb(trainer)
        before = world.held(trainer), world.state(trainer)
    world.fed(left, ("0", world.labelled("3", "three", "a")))
    world.fed(right, ("1", [world.feedback("2", "b", 3), world.erasure("ann", 9)]))
    world.absorb(right)
    outputs = []
    for countdown in (1, 9, 25, 40, 100_000):
        run = subprocess.run(
            [sys.executable, "-c", KILLED, str(tmp_path), str(countdown)], capture_output=True, text=True, check=False
        )
        outputs.append((run.returncode, run.stdout.strip(), run.stderr))
        with world.open(tmp_path / "trainer") as trainer:
            if run.returncode == 9:
                assert (world.held(trainer), world.state(trainer)) == before
    assert [code for code, *_ in outputs] == [9, 9, 9, 9, 0]
    with world.open(tmp_path / "trainer") as trainer, world.open(tmp_path / "one") as one:
        world.fed(one, ("0", world.labelled("1", "one", "a", subject="ann")), ("0", world.labelled("3", "three", "a")))
        world.fed(one, ("1", [world.feedback("1", "b", 3), world.interaction("2", "two"), world.feedback("2", "b", 3)]))
        world.fed(one, ("1", [world.erasure("ann", 9)]))
        assert world.held(trainer) == world.held(one)
        assert len(list(Path(trainer.folder).iterdir())) == len(trainer.statistics_parts()) == 2


def damage(folder: Path) -> None:
    with sqlite3.connect(folder / FILE) as database:
        database.execute("PRAGMA journal_mode = DELETE")
        root = database.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'places'").fetchone()[0]
        size = database.execute("PRAGMA page_size").fetchone()[0]
    database.close()
    with (folder / FILE).open("r+b") as file:
        file.seek((root - 1) * size)
        file.write(b"\xff" * size)


def test_shards_that_do_not_fit_are_refused_and_nothing_changes(world: Any, opened: Open, tmp_path: Path) -> None:
    world.absorb(world.fed(opened(name="left"), ("0", world.labelled("1", "one", "a"))))
    right = world.fed(opened(name="right"), ("1", world.labelled("2", "two", "a")))
    world.absorb(right)
    left, good = tmp_path / "left", [tmp_path / "left", tmp_path / "right"]
    trainer = opened(name="trainer")
    trainer.assemble(good)
    trainer.freeze(champion=None, promotion=1)
    trainer.finish("{}")
    before = world.held(trainer), world.state(trainer), sorted(Path(trainer.folder).iterdir())
    world.fed(right, ("1", world.labelled("5", "five", "a")))

    world.fed(opened(name="seed", seed=3), ("1", world.labelled("2", "two", "a"))).close()
    world.fed(opened(name="decay", half_life_days=2.0), ("1", world.labelled("2", "two", "a"))).close()
    world.fed(opened(name="twin"), ("0", world.labelled("2", "two", "a"))).close()
    world.absorb(world.fed(opened(name="space"), ("1", world.labelled("2", "two", "a"))), "other.safetensors")
    lacking = world.fed(opened(name="lacking"), ("1", world.labelled("2", "two", "a")))
    world.absorb(lacking)
    lacking.close()
    for file in (tmp_path / "lacking" / "heads").iterdir():
        file.unlink()
    world.fed(opened(name="damaged"), ("1", world.labelled("2", "two", "a"))).close()
    damage(tmp_path / "damaged")
    (tmp_path / "empty").mkdir()
    (tmp_path / "noise").mkdir()
    (tmp_path / "noise" / FILE).write_bytes(b"noise" * 1000)
    for folders, kind, message in (
        ([], UsageError, "no shards"),
        ([left], UsageError, r"lack the partitions \['1'\]"),
        ([left, left], UsageError, "given already"),
        ([left, tmp_path / "trainer"], UsageError, "given already"),
        ([left, tmp_path / "twin"], UsageError, r"\['0'\] are given already"),
        ([left, tmp_path / "seed"], UsageError, "another key or half-life"),
        ([left, tmp_path / "decay"], UsageError, "another key or half-life"),
        ([left, tmp_path / "space"], UsageError, "same model settings"),
        ([left, tmp_path / "empty"], UsageError, "no memory in"),
        ([left, tmp_path / "lacking"], StoreCorrupt, "lacks its file heads/head-"),
        ([left, tmp_path / "damaged"], StoreCorrupt, "damaged/memory.db cannot be read"),
        ([left, tmp_path / "noise"], StoreCorrupt, "noise/memory.db cannot be read"),
    ):
        with pytest.raises(kind, match=message):
            trainer.assemble(folders)
        assert (world.held(trainer), world.state(trainer), sorted(Path(trainer.folder).iterdir())) == before
    trainer.assemble(good)
    assert {sample.text for sample in trainer.samples()} == {"one", "two", "five"}


def test_a_memory_either_ingests_or_is_assembled(world: Any, opened: Open, tmp_path: Path) -> None:
    world.fed(opened(name="shard"), ("0", world.labelled("1", "one", "a")))
    alone = opened(world.labelled("1", "one", "a"), name="alone")
    with pytest.raises(UsageError, match="has ingested a stream itself"):
        alone.assemble([tmp_path / "shard"])
    trainer = opened(name="trainer")
    trainer.assemble([tmp_path / "shard"])
    with pytest.raises(UsageError, match="was assembled from shards"):
        world.fed(trainer, ("0", world.labelled("2", "two", "a")))
    reader = opened(name="trainer", read_only=True)
    with pytest.raises(UsageError, match="for reading only"):
        reader.assemble([tmp_path / "shard"])
    assert world.held(reader) == world.held(trainer)


def test_files_are_copied_where_they_cannot_be_linked(
    world: Any, opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*_: Any) -> None:
        raise OSError(18, "Invalid cross-device link")

    world.absorb(world.fed(opened(name="shard"), ("0", world.labelled("1", "one", "a"))))
    trainer = opened(name="trainer")
    monkeypatch.setattr("os.link", no_links)
    trainer.assemble([tmp_path / "shard"])
    assert world.sums(trainer) == {("one", "a"): 1}
    monkeypatch.setattr("shutil.copyfile", no_links)
    before = world.held(trainer)
    with pytest.raises(StoreFull, match="free some space"):
        trainer.assemble([tmp_path / "shard"])
    assert world.held(trainer) == before
