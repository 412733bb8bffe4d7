"""Shuffled, repeated, cut, restarted: memory is the same as after one clean pass."""

from __future__ import annotations

import random
from dataclasses import asdict

import pytest

from perdure.config import Settings
from perdure.memory import ingest, open_memory
from perdure.records import Erasure, Feedback, Interaction
from perdure.stream import MemoryStream
from perdure.stream.base import Page

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(120)]

LABELS = ("refund", "parcel", "login", "card")


def recorded(random_: random.Random) -> list:
    """Interactions, feedback early and late, contradicting, repeated, of nobody, and erasures."""
    records = []
    for number in range(120):
        name = f"row-{number:03d}"
        subject = random_.choice([None, "ann", "bob"])
        records.append(Interaction(time=float(number), id=name, text=f"text {number % 90}", subject=subject))
        for again in range(random_.choice([0, 1, 1, 2])):
            label = random_.choice(LABELS)
            records.append(Feedback(time=number + 10.0 * again + 1, interaction=name, label=label))
    records.append(Feedback(time=5.0, interaction="nobody", label="card"))
    records.append(Erasure(time=60.0, subject="ann"))
    return records


def state(memory):
    counts = asdict(memory.counts())
    # Bytes depend on pages; totals count deliveries.
    del counts["memory_bytes"], counts["totals"]
    statistics = sorted((delta.text, delta.label, delta.sign) for delta in memory.deltas(100_000))
    return memory.digest(), memory.samples(), counts, statistics


@pytest.mark.parametrize("seed", range(4))
def test_redelivery_changes_nothing(open_kafka, tmp_path, seed):
    random_ = random.Random(seed)
    records = recorded(random_)
    settings = Settings().with_values({"memory.per_class": 12, "memory.pending_labels_below": 2})
    clean = MemoryStream()
    clean.append(records)
    with open_memory(settings.with_values({"memory.path": str(tmp_path / "clean")})) as memory:
        ingest(clean, memory)
        expected = state(memory)

    stream = open_kafka()
    shuffled = records.copy()
    random_.shuffle(shuffled)
    while shuffled:
        cut = random_.randint(1, 40)
        stream.append(shuffled[:cut])
        if random_.random() < 0.5:
            # As after an acknowledgement that got lost.
            stream.append(random_.sample(shuffled[:cut], min(cut, len(shuffled[:cut]), 5)))
        shuffled = shuffled[cut:]
    folder = settings.with_values({"memory.path": str(tmp_path / "memory")})
    memory = open_memory(folder)
    while True:
        page = stream.read(memory.offset(), random_.randint(1, 50))
        if not page.entries:
            break
        if random_.random() < 0.3:
            # Delivered, but its transaction was never committed; and one that was, but nobody heard of it.
            memory.ingest(Page(page.entries, memory.offset()))
        memory.ingest(page)
        if random_.random() < 0.3:
            memory.close()
            stream.close()
            stream = open_kafka()
            memory = open_memory(folder)
    with memory:
        found = state(memory)
    assert found[0] == expected[0]
    assert found[1] == expected[1]
    assert found[2] == expected[2]
    # Labels taken back cancel labels put in.
    assert net(found[3]) == net(expected[3])


def net(deltas):
    sums = {}
    for text, label, sign in deltas:
        sums[text, label] = sums.get((text, label), 0) + sign
    return {pair: count for pair, count in sums.items() if count}
