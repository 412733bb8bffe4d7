"""An ingesting process is killed between any two steps of a page; the next one goes on."""

from __future__ import annotations

import random
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from perdure.config import Settings, StreamSettings
from perdure.memory import ingest, open_memory
from perdure.records import Erasure, Feedback, Interaction
from perdure.stream.kafka import KafkaStream

pytestmark = [pytest.mark.e2e, pytest.mark.kafka, pytest.mark.timeout(240)]

SCRIPT = Path(__file__).with_name("killed_ingest.py")
STEPS = ("before-read", "after-read", "before-commit", "after-commit")
LABELS = ("refund", "parcel", "login", "card")


def recorded():
    """Interactions, labels early, late, corrected, repeated, of nobody, and an erasure in the middle."""
    random_ = random.Random(11)
    records = []
    for number in range(180):
        name = f"row-{number:03d}"
        subject = random_.choice([None, None, "ann", "bob"])
        mine = [Interaction(time=float(number), id=name, text=f"text {number % 150}", subject=subject)]
        for again in range(random_.choice([0, 1, 1, 2])):
            label = random_.choice(LABELS)
            mine.append(Feedback(time=number + 10.0 * again + 1, interaction=name, label=label))
        random_.shuffle(mine)
        records += mine + mine[: random_.choice([0, 0, 1])]
    records.insert(150, Erasure(time=60.0, subject="ann"))
    return [*records, Feedback(time=5.0, interaction="nobody", label="card")]


def state(memory):
    memory.freeze(champion=None, promotion=1)
    counts = asdict(memory.counts())
    # Bytes depend on how SQLite laid out its pages.
    del counts["memory_bytes"]
    return memory.digest(), memory.samples(), counts, memory.deltas(100_000), memory.rows(), memory.offset()


def test_an_ingester_that_is_killed_between_any_two_steps(kafka_broker, topic, tmp_path):
    address = kafka_broker.address
    stream_settings = StreamSettings(url=f"kafka://{address}", topic=topic, partitions=1)
    settings = Settings(stream=stream_settings)
    with KafkaStream((address,), stream_settings) as stream:
        records = recorded()
        stream.append(records)
        with open_memory(settings.with_values({"memory.path": str(tmp_path / "clean")})) as clean:
            ingest(stream, clean)
            expected = state(clean)
    assert expected[-1] == {"0": len(records)}
    assert expected[2]["totals"]["joined"] > 50
    assert expected[2]["totals"]["repeated"] > 20

    folder = tmp_path / "killed"

    def run(step, page):
        command = [sys.executable, str(SCRIPT), address, topic, str(folder), step, str(page)]
        return subprocess.run(command, capture_output=True, text=True, timeout=60)

    def offset():
        with open_memory(settings.with_values({"memory.path": str(folder)}), read_only=True) as memory:
            return memory.offset().get("0", 0)

    at = 0
    for step in STEPS:
        # Of the second page too: that process has carried one through when it dies.
        for page in (1, 2):
            ran = run(step, page)
            assert ran.returncode == -9, (step, ran.stderr)
            at += 25 * (page - 1) + (25 if step == "after-commit" else 0)
            assert offset() == at, (step, page)
    assert at < len(records) - 100
    ran = run("never", 1)
    assert ran.returncode == 0, ran.stderr
    with open_memory(settings.with_values({"memory.path": str(folder)})) as memory:
        assert state(memory) == expected
