"""Perdure's memory: by its public way in, and its reservoir alone."""

from __future__ import annotations

import shutil
import sqlite3
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from memories.base import Answering, Contestant
from memories.workload import Page, Vectors, number_of
from perdure.config import MemorySettings, Settings
from perdure.memory import PAGE
from perdure.records import Feedback, Interaction, encode
from perdure.stream.base import Entry
from perdure.stream.base import Page as StreamPage
from perdure_replay import ReplayMemory
from perdure_replay.priority import Priorities, key_from_seed
from perdure_replay.reservoir import Claim, Reservoir
from perdure_replay.store import FILE, Store

BEGAN = 1_700_000_000.0
SPAN = 90 * 86_400.0
"""Seconds of event time from the first sample to the last."""
VERSION = "encoder"
ALL = 1 << 40
BY_KIND = {
    "samples": ("places", "places_by_score", "places_by_sample", "provenance", "provenance_by_subject", "place_counts"),
    "embeddings": ("embeddings",),
}
"""Tables and indexes; what is in neither is the state of joining, and of turns."""


class Ingested(Answering):
    """Interactions and their feedback as JSON, `perdure.memory.PAGE` records in a durable transaction.

    Ten times on the way a turn takes its rows, embeds what memory has no embedding of, and takes in the labels.
    """

    rows = PAGE // 2

    def create(self) -> None:
        self._memory = self._opened()
        self._position = 0
        self._parts: Counter[str] = Counter()

    def prepare(self, page: Page) -> StreamPage:
        entries: list[Entry] = []
        for number, text, label in zip(
            range(page.first, page.first + len(page.texts)), page.texts, page.labels.tolist(), strict=True
        ):
            when = BEGAN + number * SPAN / self.workload.size.offered
            interaction = Interaction(
                id=f"{number:012d}", text=text, time=when, label=f"label-{label}", confidence=0.5, version=VERSION
            )
            for record in (interaction, Feedback(interaction=interaction.id, label=f"label-{label}", time=when)):
                entries.append(Entry("0", self._position, encode(record)))
                self._position += 1
        return StreamPage(tuple(entries), {"0": self._position})

    def take(self, prepared: Any) -> None:
        self._memory.ingest(prepared)

    def rest(self) -> None:
        memory = self._memory
        memory.freeze(champion=None, promotion=1)
        memory.rows()
        done = memory.embedded(VERSION)
        began = time.perf_counter()
        missing = [sample for sample in memory.samples() if sample.key not in done]
        self._parts["samples"] += time.perf_counter() - began  # type: ignore[assignment]
        vectors = self.workload.vectors[[number_of(sample.text) for sample in missing]]
        began = time.perf_counter()
        memory.embed(VERSION, [sample.key for sample in missing], vectors)
        self._parts["embed"] += time.perf_counter() - began  # type: ignore[assignment]
        self._parts["embedded"] += len(missing)
        deltas = memory.deltas(ALL)
        name = f"head-{memory.turn().number:06d}-none.safetensors"
        (Path(memory.folder) / name).write_bytes(b"")
        memory.set_statistics(name, through=deltas[-1].sequence)
        memory.finish("{}")

    def save(self) -> int:
        count = self._memory.counts().samples
        self._memory.close()
        return count

    def details(self) -> Mapping[str, object]:
        with closing(sqlite3.connect(self.folder / FILE)) as database:
            pages = dict(database.execute("SELECT name, sum(pgsize) FROM dbstat GROUP BY name"))
        sizes = {kind: sum(pages.pop(name, 0) for name in names) for kind, names in BY_KIND.items()}
        return {
            "disk_bytes_by_kind": {**sizes, "joining and turns": sum(pages.values())},
            "seconds_to_read_all_samples_in_turns": round(self._parts["samples"], 2),
            "embeddings_written_per_second": round(self._parts["embedded"] / self._parts["embed"]),
        }

    def open(self) -> None:
        self._memory = self._opened()

    def close(self) -> None:
        self._memory.close()

    def kept(self) -> Sequence[int]:
        return [number_of(sample.text) for sample in self._memory.samples()]

    def neighbours(self, query: Vectors, k: int) -> Sequence[int]:
        return [number_of(sample.text) for sample in self._memory.neighbours(query, k).samples[0]]

    def _opened(self) -> ReplayMemory:
        values = {"memory.path": str(self.folder), "memory.per_class": self.workload.size.per_label}
        return ReplayMemory(Settings().with_values(values))


class ReservoirAlone(Contestant):
    """The reservoir's own `apply`, without records, joining, or the head's deltas: as durable, a page a transaction."""

    rows = PAGE // 2

    def create(self) -> None:
        self._store = Store(self.folder)
        self._priorities = Priorities(key_from_seed(0), 0.0)
        self._reservoir = Reservoir(
            self._store, self._priorities, MemorySettings(per_class=self.workload.size.per_label)
        )

    def take(self, prepared: Any) -> None:
        page: Page = prepared
        claims = []
        for number, text, name in zip(
            range(page.first, page.first + len(page.texts)), page.texts, page.labels.tolist(), strict=True
        ):
            label, identifier, when = f"label-{name}", f"{number:012d}", BEGAN + number
            claims.append(
                Claim(
                    place=self._priorities.place(label, self._priorities.text(text)),
                    label=label,
                    hash=self._priorities.interaction(identifier),
                    interaction=identifier,
                    subject=None,
                    made=when,
                    time=when,
                    backs=True,
                    backed=False,
                    text=text,
                )
            )
        with self._store.transaction():
            self._reservoir.apply(claims)

    def save(self) -> int:
        count = self._reservoir.size()
        self._store.close()
        return count

    def open(self) -> None:
        self._store = Store(self.folder)

    def close(self) -> None:
        self._store.close()

    def first(self) -> object:
        return self._store.rows("SELECT * FROM provenance LIMIT 1")


def emptied(folder: Path) -> Path:
    """The folder, with nothing in it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
