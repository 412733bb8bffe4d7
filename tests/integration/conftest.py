"""A desk: the whole loop in one folder, on an encoder so small that a turn takes about a second."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from perdure.config import Settings
from perdure.loop import Loop
from perdure.memory import Memory, open_memory
from perdure.model.head import Statistics
from perdure.records import Erasure, Feedback, Interaction, Record
from perdure.registry import Registry
from perdure.stream import Stream, open_stream
from perdure.turn import TurnResult

TOPICS = {
    "refund": "refund money back",
    "parcel": "parcel late order",
    "login": "password login account",
    "card": "card stolen lost",
    "phone": "phone number change",
}
FILLERS = ["where", "is", "my", "the", "a", "i", "want", "to", "please", "help", "can", "you", "not"]
SMALL = {
    "seed": 3,
    "model.features": 256,
    "model.export": "none",
    "model.batch": 16,
    "model.threads": 1,
    "model.ridge": (0.1, 1.0),
    "lora.layers": 2,
    "lora.rank": 2,
    "lora.epochs": 1,
    "lora.batch": 16,
    "lora.fisher_samples": 8,
    "lora.min_rows": 4,
    "judge.judge_latency": False,
}


def texts(label: str, count: int, seed: int = 0) -> list[str]:
    """`count` different sentences on a topic, always the same ones."""
    rng = random.Random(f"{label} {seed}")
    found: dict[str, None] = {}
    while len(found) < count:
        words = rng.sample(TOPICS[label].split(), 2) + rng.sample(FILLERS, 4)
        rng.shuffle(words)
        found[" ".join(words)] = None
    return list(found)


@dataclass(frozen=True)
class Desk:
    """Stream, memory and registry in one folder."""

    settings: Settings
    folder: Path

    def stream(self) -> Stream:
        return open_stream(self.settings.stream)

    def memory(self, *, read_only: bool = True) -> Memory:
        return open_memory(self.settings, read_only=read_only)

    def registry(self) -> Registry:
        return Registry(self.settings.registry.url)

    def record(self, records: Sequence[Record]) -> None:
        with self.stream() as stream:
            stream.append(records)

    def send(
        self, rows: Iterable[tuple[str, str | None]], *, name: str = "row", at: float = 0.0, subject: str | None = None
    ) -> list[str]:
        """Records rows as production would; a label of None means that nobody has said anything. Returns their ids."""
        records: list[Record] = []
        names = []
        for index, (text, label) in enumerate(rows):
            names.append(f"{name}-{index:04d}")
            records.append(Interaction(time=at + index, id=names[-1], text=text, subject=subject))
            if label is not None:
                records.append(Feedback(time=at + index, interaction=names[-1], label=label))
        self.record(records)
        return names

    def teach(self, *labels: str, count: int = 20, name: str = "row", at: float = 0.0, seed: int = 0) -> list[str]:
        """Sends `count` labelled sentences on each topic."""
        return self.send([(text, label) for label in labels for text in texts(label, count, seed)], name=name, at=at)

    def forget(self, subject: str, until: float) -> None:
        self.record([Erasure(time=until, subject=subject)])

    def turn(
        self, stage: Callable[[str], None] | None = None, registry: Registry | None = None, **values: Any
    ) -> TurnResult:
        """One turn in this process; `values` replace settings."""
        settings = self.settings.with_values({name.replace("__", "."): value for name, value in values.items()})
        with open_memory(settings) as memory, open_stream(settings.stream) as stream:
            return Loop(
                settings,
                stream=stream,
                memory=memory,
                registry=registry or Registry(settings.registry.url),
                cache=self.folder / "cache",
                stage=stage,
            ).turn()

    def statistics(self) -> Statistics:
        """The head's statistics."""
        with self.memory() as memory:
            return Statistics.load(self.statistics_file(memory))

    def statistics_file(self, memory: Memory) -> Path:
        name = memory.statistics()
        assert name is not None
        return Path(memory.folder) / name


@pytest.fixture
def desk_at(tiny_encoder: Path) -> Callable[..., Desk]:
    """Makes desks; one that is there already is opened."""

    def make(folder: Path, **values: Any) -> Desk:
        given = {name.replace("__", "."): value for name, value in values.items()}
        places = {
            "model.name": str(tiny_encoder),
            "stream.url": f"sqlite:{folder / 'stream.db'}",
            "registry.url": str(folder / "registry"),
            "memory.path": str(folder / "memory"),
        }
        return Desk(Settings().with_values({**SMALL, **places, **given}), folder)

    return make


@pytest.fixture
def desk(tmp_path: Path, desk_at: Callable[..., Desk]) -> Desk:
    return desk_at(tmp_path / "desk")


@pytest.fixture
def sentences() -> Callable[..., list[str]]:
    return texts
