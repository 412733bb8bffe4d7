"""Ingesters, 1 to 4, that read one topic of four partitions, each a `perdure ingest` of its own."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass

from perdure.config import StreamSettings
from perdure.records import Interaction, new_id
from perdure.registry import Shards
from perdure.stream.kafka.topic import ensure_topic
from perdure.stream.payload import payloads
from scaling.cost import cpu_seconds, memory_bytes
from scaling.place import PERDURE, Place, assignments, started, wait_until

PARTITIONS = 4
LABELS = 30
IDLE_SHARE = 0.15
"""Of a core, for each ingester: what waiting costs."""
LOOKS = 4
"""At CPU time, between two looks at what is committed."""
START_SECONDS = 180.0
READ_SECONDS = 1800.0
ROUND_SECONDS = 0.25


@dataclass(frozen=True, slots=True)
class IngesterFigures:
    """What so many ingesters did with one backlog."""

    ingesters: int
    records: int
    seconds: float
    """From the moment at which every partition had an owner and every ingester a partition, to the last record."""
    per_second: float
    cpu_ms: float
    """CPU time of the ingesters for one record, in milliseconds, last snapshots apart."""
    broker_cpu_ms: float | None
    memory_mb: float
    """Of one ingester."""
    snapshot_mb: float
    """Of one partition, its database alone: statistics come with labels."""


def fill(place: Place, topic: str, records: int) -> int:
    """Interactions as serving records them, evenly over the partitions; bytes of all."""
    from kafka import KafkaProducer

    settings = StreamSettings(url=f"kafka://{place.broker}", topic=topic, partitions=PARTITIONS)
    ensure_topic((place.broker,), settings, topic)
    rng = random.Random(0)
    producer = KafkaProducer(
        bootstrap_servers=place.broker, acks="all", linger_ms=20, batch_size=512 * 1024, metrics_enabled=False
    )
    size = 0
    sent = None
    for number in range(records):
        record = Interaction(
            time=1.7e9 + number * 0.01,
            id=new_id(),
            text=f"where is my order {rng.randrange(records)}",
            label=f"intent-{rng.randrange(LABELS)}",
            confidence=0.9,
            version="v000001-head",
        )
        (payload,) = payloads([record])
        size += len(payload.body)
        sent = producer.send(topic, payload.body, partition=number % PARTITIONS)
        if number % 20_000 == 0:
            producer.flush()
    producer.flush()
    assert sent is not None
    sent.get(timeout=60)
    producer.close()
    return size


def measure(place: Place, ingesters: int, topic: str, records: int) -> IngesterFigures:
    """Starts so many ingesters on the backlog in `topic`, and stops them when it is read.

    Raises:
        SystemExit: their last snapshots do not have all of it.
    """
    folder = place.folder / f"ingest-{ingesters}"
    folder.mkdir()
    own: dict[str, object] = {
        # The stream is the same for all numbers of ingesters, the registry is not: each begins anew.
        "registry.url": folder / "registry",
        "stream.topic": topic,
        "stream.group": f"scale-{ingesters}",
        "ingest.snapshot_seconds": READ_SECONDS,
    }
    commands = [
        [*PERDURE, "ingest", *assignments({**place.settings, **own, "ingest.path": folder / f"shards-{number}"})]
        for number in range(ingesters)
    ]
    with started(commands, folder) as processes:
        pids = [process.pid for process in processes]
        brokers = [place.broker_pid] if place.broker_pid else []
        logs = [folder / f"process-{number}.log" for number in range(ingesters)]

        def dealt() -> bool:
            said = [log.read_text(encoding="utf-8") for log in logs]
            if any(process.poll() is not None for process in processes):
                raise SystemExit(f"an ingester has ended: {' '.join(said)[-400:]}")
            return all(": taken over" in one for one in said)

        wait_until(dealt, START_SECONDS, "every ingester's taking a partition over")
        began = time.monotonic()
        before = cpu_seconds(pids), cpu_seconds(brokers)
        ended, used = _until_read(pids, place, topic, f"scale-{ingesters}", records)
        broker_used = cpu_seconds(brokers) - before[1]
        memory = memory_bytes(pids) / ingesters
    shards = Shards(str(folder / "registry"), topic)
    newest = [shards.newest(partition) for partition in shards.partitions()]
    read = sum(sum(snapshot.offset.values()) for snapshot in newest if snapshot is not None)
    if read != records:
        raise SystemExit(f"the ingesters' snapshots have {read} of {records} records: they were stopped too soon")
    seconds = max(ended - began, 1e-9)
    database = [file.stat().st_size for file in (folder / "registry").rglob("files/*")]
    return IngesterFigures(
        ingesters=ingesters,
        records=records,
        seconds=round(seconds, 2),
        per_second=round(records / seconds, 1),
        cpu_ms=round(1000 * (used - before[0]) / records, 5),
        broker_cpu_ms=round(1000 * broker_used / records, 5) if brokers else None,
        memory_mb=round(memory / 1e6, 1),
        snapshot_mb=round(sum(database) / PARTITIONS / 1e6, 2),
    )


def _until_read(pids: Sequence[int], place: Place, topic: str, group: str, records: int) -> tuple[float, float]:
    """When the processes last had work, and the CPU time that they had used by then.

    That all is read is known from what memory has committed, which is said some seconds late; so the time is that of
    the last work before.
    """
    from kafka import KafkaConsumer, TopicPartition

    watcher = KafkaConsumer(
        bootstrap_servers=place.broker, group_id=group, enable_auto_commit=False, metrics_enabled=False
    )
    names = [TopicPartition(topic, partition) for partition in range(PARTITIONS)]
    deadline = time.monotonic() + READ_SECONDS
    worked_at, used = time.monotonic(), cpu_seconds(pids)
    last = used
    try:
        while sum(watcher.committed(name) or 0 for name in names) < records:
            for _ in range(LOOKS):
                time.sleep(ROUND_SECONDS)
                now = cpu_seconds(pids)
                if now - last > IDLE_SHARE * ROUND_SECONDS * len(pids):
                    worked_at, used = time.monotonic(), now
                last = now
            if time.monotonic() > deadline:
                raise SystemExit(f"the backlog was not read within {READ_SECONDS:g} s")
    finally:
        watcher.close()
    return worked_at, used
