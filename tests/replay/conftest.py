"""A small world of events for the tests of the replay memory."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

from perdure.config import Device, Settings
from perdure.records import Erasure, Feedback, Interaction, Record, encode
from perdure.stream.base import Entry, Page
from perdure_replay import ReplayMemory

NOW = 1_700_000_000.0


SPACE = "abc.safetensors"

Net = Counter[tuple[str, str]]


def entries_page(entries: Sequence[Entry]) -> Page:
    return Page(tuple(entries), {entry.partition: entry.position + 1 for entry in entries})


def read_sums(folder: str, names: Iterable[str]) -> Net:
    total: Net = Counter()
    for name in names:
        for text, label, count in json.loads((Path(folder) / name).read_text(encoding="utf-8")):
            total[text, label] += count
    return total


def sums(memory: ReplayMemory) -> Net:
    """What the head's statistics are the sums of, without those that cancel out."""
    name = memory.statistics()
    total = read_sums(memory.folder, [name] if name else memory.statistics_parts())
    for delta in memory.deltas(10_000):
        total[delta.text, delta.label] += delta.sign
    return Counter({key: count for key, count in total.items() if count})


def absorb(memory: ReplayMemory, space: str = SPACE) -> None:
    """What the learner does with deltas: a new file, and the pointer to it."""
    found = memory.deltas(10_000)
    if found:
        total = sums(memory)
        name = f"head-{found[-1].sequence:012d}-{space}"
        rows = [[*key, count] for key, count in total.items()]
        (Path(memory.folder) / name).write_text(json.dumps(rows), encoding="utf-8")
        memory.set_statistics(name, through=found[-1].sequence)


def held(memory: ReplayMemory) -> dict[str, Any]:
    counts = memory.counts()
    return {
        "offset": memory.offset(),
        "digest": memory.digest(),
        "samples": memory.samples(),
        "sums": sums(memory),
        "joinable": counts.joinable,
        "waiting": counts.waiting_feedback,
        "fresh": counts.fresh,
        "labels": (counts.labels, counts.pending, counts.tombstones),
        "quarantined": list(memory.quarantined()),
        "classes": memory.classes(),
        "rebuild": memory.rebuild_due,
    }


def state(memory: ReplayMemory) -> dict[str, list[Any]]:
    """The join state to the last column, and places with their provenance."""
    tables = {
        "interactions": "id, time, hash, digest, subject, erased, text, predicted, confidence, label, label_time, "
        "label_source, counted, fresh, seen, learned",
        "waiting": "*",
        "erasures": "*",
        "places": "key, label, score, time, living, sample, source",
        "provenance": "*",
    }
    return {
        name: sorted(memory._store.rows(f"SELECT {columns} FROM {name}"), key=repr) for name, columns in tables.items()
    }


def fed(memory: ReplayMemory, *streams: tuple[str, Sequence[Record | bytes]]) -> ReplayMemory:
    """`memory`, fed with each (partition, events) from where it is."""
    for partition, events in streams:
        start = memory.offset().get(partition, 0)
        payloads = [event if isinstance(event, bytes) else encode(event) for event in events]
        memory.ingest(
            entries_page([Entry(partition, start + place, payload) for place, payload in enumerate(payloads)])
        )
    return memory


class World:
    """Builders of records and pages around the moment `now`."""

    now = NOW
    entries_page = staticmethod(entries_page)
    read_sums = staticmethod(read_sums)
    sums = staticmethod(sums)
    absorb = staticmethod(absorb)
    held = staticmethod(held)
    state = staticmethod(state)
    fed = staticmethod(fed)

    @staticmethod
    def interaction(identifier: str, text: str, at: float = 0.0, **fields: Any) -> Interaction:
        return Interaction(id=identifier, text=text, time=NOW + at, **fields)

    @staticmethod
    def feedback(identifier: str, label: str, at: float = 1.0, source: str = "user") -> Feedback:
        return Feedback(interaction=identifier, label=label, time=NOW + at, source=source)

    @staticmethod
    def erasure(subject: str, at: float = 100.0) -> Erasure:
        return Erasure(subject=subject, time=NOW + at)

    def labelled(self, identifier: str, text: str, label: str, at: float = 0.0, **fields: Any) -> list[Record]:
        return [self.interaction(identifier, text, at, **fields), self.feedback(identifier, label, at + 1)]

    @staticmethod
    def page(records: Iterable[Record | bytes], start: int = 0) -> Page:
        entries = tuple(
            Entry("p", start + place, record if isinstance(record, bytes) else encode(record))
            for place, record in enumerate(records)
        )
        return Page(entries, {"p": start + len(entries)})

    @staticmethod
    def net(memory: ReplayMemory) -> Counter[tuple[str, str]]:
        """What the waiting deltas sum up to."""
        total: Counter[tuple[str, str]] = Counter()
        for delta in memory.deltas(1_000_000):
            total[delta.text, delta.label] += delta.sign
        return Counter({key: count for key, count in total.items() if count})

    @staticmethod
    def settings(path: Path, seed: int = 0, device: Device = "cpu", **memory: Any) -> Settings:
        values = {"path": str(path), **memory}
        return Settings(seed=seed, device=device).with_values(
            {f"memory.{name}": value for name, value in values.items()}
        )

    def open(self, path: Path, **options: Any) -> ReplayMemory:
        """Opened with the clock standing at `now`; other options are settings of memory."""
        special = {
            name: options.pop(name) for name in ("read_only", "busy_timeout", "provenance", "clock") if name in options
        }
        return ReplayMemory(self.settings(path, **options), **{"clock": lambda: NOW, **special})


@pytest.fixture(scope="session")
def world() -> World:
    return World()


@pytest.fixture
def opened(world: World, tmp_path: Path) -> Iterable[Callable[..., ReplayMemory]]:
    """Opens memories under `tmp_path`, and closes them after the test."""
    open_ones: list[ReplayMemory] = []

    def open_one(records: Sequence[Record | bytes] = (), name: str = "memory", **options: Any) -> ReplayMemory:
        memory = world.open(tmp_path / name, **options)
        open_ones.append(memory)
        if records:
            memory.ingest(world.page(records))
        return memory

    yield open_one
    for memory in open_ones:
        memory.close()
