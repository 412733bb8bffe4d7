"""A memory assembled from shards is the memory of one ingester, whatever the stream."""

from __future__ import annotations

import random
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from perdure.memory import Quarantined
from perdure.records import Erasure, Feedback, Interaction, Record, encode
from perdure.stream.base import Entry
from perdure_replay import ReplayMemory

NOW = 1_700_000_000.0
TEXTS = ("Where is my card?", "where is  MY card?", "Card lost", "card LOST", "Hello", "hello", "x", "y", "z")
IDS = tuple(f"i{number}" for number in range(9))
SUBJECTS = (None, "ann", "bob")
TIMES = st.integers(-40, 40).map(lambda time: NOW + time)
PHASES = (Phase.explicit, Phase.generate)
SPACE = "abc.safetensors"

Net = Counter[tuple[str, str]]
Open = Callable[..., ReplayMemory]


@st.composite
def streams(draw: st.DrawFn) -> list[Record | bytes]:
    """Interactions, some sent twice; feedback early, late, corrected and repeated; erasures; what cannot be read."""
    interactions = [
        Interaction(
            id=identifier,
            text=draw(st.sampled_from(TEXTS)),
            time=draw(TIMES),
            subject=draw(st.sampled_from(SUBJECTS)),
            label=draw(st.sampled_from((None, "A"))),
            confidence=0.5,
        )
        for identifier in draw(st.lists(st.sampled_from(IDS), unique=True, min_size=4))
    ]
    events: list[Record | bytes] = [*interactions, *draw(st.lists(st.sampled_from(interactions), max_size=3))]
    events += draw(
        st.lists(
            st.builds(
                Feedback,
                interaction=st.sampled_from(IDS),
                label=st.sampled_from("AAB"),
                time=TIMES,
                source=st.sampled_from("uv"),
            ),
            min_size=6,
            max_size=24,
        )
    )
    events += draw(st.lists(st.builds(Erasure, subject=st.sampled_from(SUBJECTS[1:]), time=TIMES), max_size=2))
    events += draw(st.lists(st.sampled_from((b"{", b'{"kind": "other", "time": 5}')), max_size=2))
    return draw(st.permutations(events))


class Log:
    """Entries of a topic, in the order in which they were sent."""

    def __init__(self, partitions: int) -> None:
        self.partitions = partitions
        self.entries: list[Entry] = []
        self.ends: Counter[int] = Counter()

    def send(self, event: Record | bytes, among: int | None = None) -> None:
        """To the partition of the event's id, an erasure to all; ids move when `among` changes."""
        if isinstance(event, Erasure):
            targets: Iterable[int] = range(self.partitions)
        else:
            name = event.id if isinstance(event, Interaction) else getattr(event, "interaction", "i0")
            targets = (int(name[1:]) % (among or self.partitions),)
        for target in targets:
            payload = event if isinstance(event, bytes) else encode(event)
            self.entries.append(Entry(str(target), self.ends[target], payload))
            self.ends[target] += 1

    def of(self, partition: int) -> list[Entry]:
        return [entry for entry in self.entries if entry.partition == str(partition)]


class Shards:
    """One shard for each partition, restarted, fed again and cut into pages at random."""

    def __init__(self, world: Any, folder: Path, partitions: int, chance: random.Random, **options: Any) -> None:
        self._world, self._chance, self._options = world, chance, options
        self.folders = [folder / f"shard {number}" for number in range(partitions)]
        self._opened = [world.open(path, **options) for path in self.folders]
        self._last: dict[int, list[Entry]] = {}

    def feed(self, number: int, entries: Sequence[Entry]) -> list[Entry]:
        """Returns what was read, again included."""
        rest, read = list(entries), []
        while rest:
            size = self._chance.randint(1, len(rest))
            now, rest = rest[:size], rest[size:]
            if self._chance.random() < 0.3:
                now = self._last.get(number, []) + now
            self._opened[number].ingest(self._world.entries_page(now))
            read += now
            self._last[number] = now
            if self._chance.random() < 0.4:
                self._world.absorb(self._opened[number])
            elif self._chance.random() < 0.3:
                self._opened[number].deltas(2)
            if self._chance.random() < 0.2:
                self._opened[number].close()
                self._opened[number] = self._world.open(self.folders[number], **self._options)
        return read

    def close(self) -> None:
        for shard in self._opened:
            shard.close()


@pytest.mark.parametrize("half_life", [0.0, 1e-4])
@pytest.mark.parametrize("grown", [False, True])
@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), phases=PHASES)
@given(events=streams(), partitions=st.integers(2, 4), rounds=st.integers(1, 3), seed=st.integers(0, 2**32))
def test_shards_make_the_memory_of_one_ingester(
    world: Any, grown: bool, half_life: float, events: list[Record | bytes], partitions: int, rounds: int, seed: int
) -> None:
    options = {"per_class": 2, "half_life_days": half_life, "provenance": 2, "fresh_rows": 6, "pending_labels_below": 2}
    chance = random.Random(seed)
    partitions -= not grown
    log = Log(partitions)
    middle = chance.randint(0, len(events)) if grown else 0
    for place, event in enumerate(events):
        log.send(event, among=partitions if place >= middle else max(partitions - 1, 1))
    first = next(event for event in events if isinstance(event, Interaction))
    doubtful = Quarantined(first.id, "doubtful", first.text, "A", first.time)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shards = Shards(world, folder, partitions, chance, **options)
        one = world.open(folder / "one", **options)
        trainer = world.open(folder / "trainer", **options)
        unread = [log.of(number) for number in range(partitions)]
        for turn in range(1, rounds + 1):
            for number, entries in enumerate(unread):
                size = len(entries) if turn == rounds else chance.randint(0, len(entries))
                if size:
                    one.ingest(world.entries_page(shards.feed(number, entries[:size])))
                    unread[number] = entries[size:]
            for _ in range(chance.randint(1, 2)):
                # Once more changes nothing.
                trainer.assemble(chance.sample(shards.folders, partitions))
                assert world.held(trainer) == world.held(one)
            assert world.state(trainer) == world.state(one)
            totals, expected = trainer.counts().totals, one.counts().totals
            assert totals.feedback == expected.feedback
            assert totals.erasures == expected.erasures
            assert totals.quarantined == expected.quarantined
            if not any(isinstance(event, Erasure) for event in events):
                # What an erasure met depends on which partition's copy was read first.
                assert totals.interactions == expected.interactions
                assert totals.joined - totals.corrected == expected.joined - expected.corrected
            if not grown:
                assert totals == expected or any(isinstance(event, Erasure) for event in events)
            rows = []
            for memory in (trainer, one):
                if chance.random() < 0.5:
                    world.absorb(memory)
                memory.quarantine([doubtful, Quarantined("else", "odd", "", None, 1)])
                memory.freeze(champion="1", promotion=turn)
                rows.append(memory.rows())
            assert rows[0] == rows[1]
            assert world.held(trainer) == world.held(one)
            for memory in (trainer, one):
                memory.finish(f'{{"turn": {turn}}}')
            assert trainer.history(9) == one.history(9)
        shards.close()
        one.close()
        trainer.close()


@pytest.mark.parametrize("options", [{"join_ttl_hours": 0.01}, {"join_ttl_hours": 0.01, "join_rows": 7}])
@settings(max_examples=3, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), phases=PHASES)
@given(seed=st.integers(0, 2**32))
def test_time_limits_reach_the_same_whatever_partition_is_ahead(world: Any, options: dict[str, Any], seed: int) -> None:
    """The bound on rows leaves a page's rows until its end, and pages differ: so all labels come at once there."""
    chance = random.Random(seed)
    events: list[Record] = []
    for number in range(40):
        made = NOW + 4.0 * number
        events.append(Interaction(id=f"i{number}", text=f"text {number % 13}", time=made, subject="ann"))
        for _ in range(chance.randint(0, 2)):
            late = 1.0 if "join_rows" in options else chance.choice((-8.0, 1.0, 20.0, 34.0, 50.0))
            events.append(Feedback(interaction=f"i{number}", label=chance.choice("AB"), time=made + late))
    events.sort(key=lambda event: event.time)
    log = Log(3)
    for event in events:
        log.send(event)
    with tempfile.TemporaryDirectory() as name:
        shards = Shards(world, Path(name), 3, chance, **options)
        one = world.open(Path(name) / "one", **options)
        trainer = world.open(Path(name) / "trainer", **options)
        done = 0
        while done < len(log.entries):
            until = min(done + chance.randint(5, 40), len(log.entries))
            for number in chance.sample(range(3), 3):
                now = [entry for entry in log.entries[done:until] if entry.partition == str(number)]
                if now:
                    one.ingest(world.entries_page(now))
                for entry in now:
                    shards.feed(number, [entry])
            done = until
            trainer.assemble(shards.folders)
            assert world.held(trainer) == world.held(one)
            assert world.state(trainer) == world.state(one)
            assert trainer.counts().totals.interactions == one.counts().totals.interactions
            for memory in (trainer, one):
                memory.freeze(champion=None, promotion=1)
            assert trainer.rows() == one.rows()
            for memory in (trainer, one):
                memory.finish("{}")
        assert trainer.counts().joinable <= 3 * options.get("join_rows", 40)
        shards.close()
        one.close()
        trainer.close()
