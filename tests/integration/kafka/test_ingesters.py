"""Several processes read one topic; what they have read together is what one would have read."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import asdict

import pytest

from perdure.config import Settings
from perdure.errors import StaleShard
from perdure.inflow import ShardInflow
from perdure.learn.absorb import Absorber
from perdure.learn.analytic import HeadLearner
from perdure.memory import ingest, open_memory
from perdure.model.classifier import shared_encoder
from perdure.records import Erasure, Feedback, Interaction
from perdure.registry import Shards

pytestmark = [pytest.mark.kafka, pytest.mark.e2e, pytest.mark.timeout(280)]

LABELS = ("refund", "parcel", "login", "card")
PARTITIONS = 4


@pytest.fixture
def settings(settings_of, tiny_encoder, tmp_path):
    return Settings(stream=settings_of(partitions=PARTITIONS, delivery_seconds=20.0)).with_values(
        {
            "seed": 3,
            "model.name": str(tiny_encoder),
            "model.features": 64,
            "model.export": "none",
            "model.batch": 16,
            "model.threads": 1,
            "lora.layers": 2,
            "memory.path": str(tmp_path / "memory"),
            "memory.per_class": 15,
            "registry.url": str(tmp_path / "registry"),
            "ingest.shards": True,
            "ingest.path": str(tmp_path / "shards"),
            "ingest.snapshot_seconds": 0.5,
        }
    )


@pytest.fixture
def start(settings, tmp_path):
    """Starts `perdure ingest`, with its log beside."""
    config = tmp_path / "settings.yaml"
    config.write_text(json.dumps(settings.model_dump(mode="json")))
    processes = []

    def run():
        with (tmp_path / f"ingester-{len(processes)}.log").open("wb") as log:
            processes.append(
                subprocess.Popen(
                    [sys.executable, "-c", "from perdure.cli import main; main()", "ingest", "--config", str(config)],
                    stdout=log,
                    stderr=log,
                    env={**os.environ, "OMP_NUM_THREADS": "1"},
                )
            )
        return processes[-1]

    yield run
    for process in processes:
        if process.poll() is None:
            process.send_signal(signal.SIGCONT)
            process.kill()
        process.wait()


def some_records(first, last, seed=0):
    rng = random.Random(seed + first)
    records = []
    for number in range(first, last):
        name = f"row-{number:05d}"
        subject = rng.choice([None, None, "ann", "bob"])
        label = rng.choice(LABELS)
        text = f"{label} {rng.randrange(60)} please"
        records.append(Interaction(time=float(number), id=name, text=text, subject=subject))
        if rng.random() < 0.8:
            records.append(Feedback(time=number + 1.0, interaction=name, label=label))
        if rng.random() < 0.1:
            records.append(Feedback(time=number + 2.0, interaction=name, label=rng.choice(LABELS)))
    records.append(Erasure(time=(first + last) / 2, subject="ann"))
    return records


def owners(shards):
    newest = [shards.newest(partition) for partition in range(PARTITIONS)]
    return [snapshot.owner if snapshot else None for snapshot in newest]


def until(what, seconds=90.0):
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, "it never came about"
        time.sleep(0.2)
    return found


def together(settings, folder):
    """What a trainer gets of the shards: memory's state, and the head's sums."""
    mine = settings.with_values({"memory.path": str(folder)})
    with open_memory(mine) as memory:
        ShardInflow(mine).bring(memory, lambda: True)
        return state(mine, memory)


def alone(settings, stream, folder):
    """The same of one process that reads everything."""
    mine = settings.with_values({"memory.path": str(folder)})
    with open_memory(mine) as memory:
        ingest(stream, memory)
        return state(mine, memory)


def state(settings, memory):
    encoder = shared_encoder(settings.model.name, settings.model.max_tokens, settings.lora.layers)
    statistics = Absorber(encoder, HeadLearner(encoder, settings), settings).absorb(memory)
    counts = asdict(memory.counts())
    del counts["memory_bytes"], counts["totals"]
    memory.freeze(champion=None, promotion=1)
    return {
        "digest": memory.digest(),
        "samples": memory.samples(),
        "counts": counts,
        "offset": dict(memory.offset()),
        "rows": memory.rows(),
        "gram": statistics.gram.tobytes(),
        "sums": {label: total.tobytes() for label, total in sorted(statistics.sums.items())},
    }


def test_partitions_change_hands_and_nothing_is_lost_or_counted_twice(settings, start, open_kafka, tmp_path):
    stream = open_kafka(partitions=PARTITIONS)
    shards = Shards(settings.registry.url, settings.stream.topic)

    def read_to_the_end():
        snapshots = [shards.newest(partition) for partition in range(PARTITIONS)]
        found = {name: end for snapshot in snapshots if snapshot for name, end in snapshot.offset.items()}
        return found == dict(stream.end())

    stream.append(some_records(0, 150))
    first = start()
    until(read_to_the_end)
    second = start()
    until(lambda: len(set(owners(shards))) == 2)
    stream.append(some_records(150, 300))
    until(read_to_the_end)
    # Without a word: what it read since its last snapshot is read again by the other.
    stream.append(some_records(300, 400))
    first.kill()
    stream.append(some_records(400, 450))
    until(lambda: len(set(owners(shards))) == 1 and read_to_the_end())
    assert set(owners(shards)) == {owners(shards)[0]}
    second.send_signal(signal.SIGTERM)
    assert second.wait(timeout=60) == 0

    expected = alone(settings, open_kafka(), tmp_path / "alone")
    found = together(settings, tmp_path / "together")
    assert expected["counts"]["samples"] > 30
    for part, value in expected.items():
        assert found[part] == value, part


def test_an_owner_that_was_asleep_is_fenced(settings, start, open_kafka, tmp_path):
    stream = open_kafka(partitions=PARTITIONS)
    shards = Shards(settings.registry.url, settings.stream.topic)
    stream.append(some_records(0, 60))
    asleep = start()
    until(lambda: all(owners(shards)))
    awake = start()
    until(lambda: len(set(owners(shards))) == 2)
    asleep.send_signal(signal.SIGSTOP)
    until(lambda: len(set(owners(shards))) == 1)
    stream.append(some_records(60, 120))
    heir = owners(shards)[0]
    time.sleep(2)
    held = shards.newest(0)
    asleep.send_signal(signal.SIGCONT)
    # It may come back as a member of the group, but only by taking a partition over anew.
    until(lambda: shards.newest(0).number > held.number or owners(shards).count(heir) < PARTITIONS)
    for process in (asleep, awake):
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0
    expected = alone(settings, open_kafka(), tmp_path / "alone")
    found = together(settings, tmp_path / "together")
    for part, value in expected.items():
        assert found[part] == value, part


def test_a_stale_owner_cannot_publish(settings):
    shards = Shards(settings.registry.url, settings.stream.topic)
    mine = shards.claim(0, "asleep")
    shards.claim(0, "awake")
    with pytest.raises(StaleShard):
        shards.publish(mine, {}, {"0": 3})


def test_a_stream_without_partitions_cannot_be_shared(tmp_path):
    ran = subprocess.run(
        [sys.executable, "-c", "from perdure.cli import main; main()", "ingest", "--set", "stream.url=sqlite:x.db"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert ran.returncode == 2
    assert "only a Kafka topic can be shared" in ran.stderr
    assert "Traceback" not in ran.stderr
