"""Memory is a function of the set of events: order, repetition, page borders and restarts do not matter."""

from __future__ import annotations

import random
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from perdure.records import Erasure, Feedback, Interaction, Record

TEXTS = (
    "Where is my card?",
    "where is  MY card?",
    "WHERE IS MY CARD?",
    "Card lost",
    "card LOST",
    "Hello",
    "hello",
    "x",
    "y",
    "z",
)
IDS = tuple(f"i{number}" for number in range(9))
SUBJECTS = (None, "ann", "bob")
NOW = 1_700_000_000.0
TIMES = st.integers(-40, 40)


@st.composite
def histories(draw: st.DrawFn) -> list[Record]:
    """Interactions, several labels of each, some of them corrections, and erasures."""
    events: list[Record] = [
        Interaction(
            id=identifier,
            text=draw(st.sampled_from(TEXTS)),
            time=NOW + draw(TIMES),
            subject=draw(st.sampled_from(SUBJECTS)),
            label=draw(st.sampled_from((None, "A"))),
            confidence=0.5,
        )
        for identifier in draw(st.lists(st.sampled_from(IDS), unique=True, min_size=4))
    ]
    events += draw(
        st.lists(
            st.builds(
                Feedback,
                interaction=st.sampled_from(IDS),
                label=st.sampled_from("AAB"),
                time=TIMES.map(lambda time: NOW + time),
                source=st.sampled_from("uv"),
            ),
            min_size=6,
            max_size=24,
        )
    )
    events += draw(
        st.lists(
            st.builds(Erasure, subject=st.sampled_from(SUBJECTS[1:]), time=TIMES.map(lambda time: NOW + time)),
            max_size=1,
        )
    )
    return events


def absorb(memory: Any, total: Counter[tuple[str, str]]) -> None:
    """What the learner does with deltas: a new file, and the pointer to it."""
    found = memory.deltas(1000)
    name = f"head-{memory.turn().number}-{len(list(Path(memory.folder).iterdir()))}-{sum(total.values())}"
    (Path(memory.folder) / name).write_text("x", encoding="utf-8")
    for delta in found:
        total[delta.text, delta.label] += delta.sign
    memory.set_statistics(name, through=found[-1].sequence if found else 0)


def outcome(memory: Any, total: Counter[tuple[str, str]]) -> dict[str, Any]:
    """Everything that must not depend on the order; the turn is frozen for it."""
    for delta in memory.deltas(1000):
        total[delta.text, delta.label] += delta.sign
    memory.freeze(champion=None, promotion=1)
    return {
        "digest": memory.digest(),
        "samples": memory.samples(),
        "net": {key: count for key, count in total.items() if count},
        "classes": memory.classes(),
        "rows": memory.rows(),
        "held": memory.counts().held_out,
    }


@pytest.mark.parametrize("half_life", [0.0, 1e-4])
@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(early=histories(), late=histories(), seed=st.integers(0, 2**32))
def test_the_order_of_events_does_not_matter(
    world: Any, half_life: float, early: list[Record], late: list[Record], seed: int
) -> None:
    options = {"per_class": 2, "half_life_days": half_life, "provenance": 2, "fresh_rows": 6, "pending_labels_below": 2}
    late = [
        event
        for event in late
        if not isinstance(event, Interaction) or event.id not in {e.id for e in early if isinstance(e, Interaction)}
    ]
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        with world.open(Path(folder) / "clean", **options) as clean:
            clean.ingest(world.page(early))
            clean.freeze(champion="1", promotion=1)
            first = clean.rows()
            clean.finish("{}")
            clean.ingest(world.page(late, start=1000))
            expected = outcome(clean, Counter())

        path = Path(folder) / "shuffled"
        total: Counter[tuple[str, str]] = Counter()
        memory = world.open(path, **options)
        for start, events, again in ((0, early, []), (1000, late, early)):
            shuffled = events + chance.choices(early, k=3) + again
            chance.shuffle(shuffled)
            while shuffled:
                size = chance.randint(1, len(shuffled))
                memory.ingest(world.page(shuffled[:size], start=start))
                start += size
                shuffled = shuffled[size:]
                if chance.random() < 0.3:
                    absorb(memory, total)
                elif chance.random() < 0.3:
                    memory.deltas(chance.randint(1, 3))
                if chance.random() < 0.3:
                    memory.close()
                    memory = world.open(path, **options)
            if events is early:
                memory.freeze(champion="1", promotion=1)
                assert memory.rows() == first
                memory.finish("{}")
        found = outcome(memory, total)
        memory.close()
    assert found == expected
