"""From what a unit costs to what a load takes: the arithmetic of deploy/SCALING.md, and its tables.

Every figure comes from the committed results; what is assumed stands in `Assumed`, with a name for it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

DAY = 86_400.0
HOUR = 3600.0
MB = 1e6


@dataclass(frozen=True, slots=True)
class Assumed:
    """What is not measured."""

    utilisation: float = 0.6
    """Of the cores of serving and ingesters: the rest is for peaks and for a zone that is lost."""
    feedback: float = 0.05
    """Share of requests that somebody says the label of."""
    feedback_bytes: float = 180.0
    replication: int = 3
    """Copies of a partition."""
    retention_days: float = 7.0
    price: float = 0.04
    """Of a core for an hour, as an example, in whatever currency."""
    refresh_seconds: float = 1.0
    """`serving.refresh_seconds`: each replica asks the registry for the next promotion so often."""
    asks: int = 2
    """Questions to the store with each look."""
    partition_share: float = 0.5
    """Of what one ingester reads in a second, that a partition is planned for."""


@dataclass(frozen=True, slots=True)
class Costs:
    """What a unit costs, from the results."""

    request_ms: float
    """CPU time of serving for a request at a moderate rate."""
    broker_ms: float
    """CPU time of one broker for a record, in and out once."""
    record_ms: float
    """CPU time of an ingester for a record."""
    per_second: float
    """Records a second of one ingester that has a core."""
    label_ms: float
    """CPU time of an ingester, or the trainer, for a labelled row."""
    replica_mb: float
    ingester_mb: float
    statistics_mb: float
    """One file of the head's statistics."""
    snapshot_mb: float
    """Database of one partition."""
    turn_cpu_s: float
    """CPU time of a turn with LoRA."""
    record_bytes: float
    """Of an interaction, uncompressed."""

    @classmethod
    def of(cls, scale: Mapping[str, Any], backtest: Mapping[str, Any]) -> Costs:
        """From benchmarks/results/scale.json and backtest_clinc.json."""
        serving, ingest = scale["serving"][0], scale["ingest"][0]
        sessions = backtest["metrics"]["sessions"]
        return cls(
            request_ms=serving["light_cpu_ms"],
            broker_ms=serving["broker_cpu_ms"] or 0.0,
            record_ms=ingest["cpu_ms"],
            per_second=ingest["per_second"],
            label_ms=scale["labels"]["encode_ms"] + scale["labels"]["sums_ms"],
            replica_mb=serving["memory_mb"],
            ingester_mb=ingest["memory_mb"],
            statistics_mb=scale["labels"]["statistics_mb"],
            snapshot_mb=ingest["snapshot_mb"],
            turn_cpu_s=sum(one["cpu_seconds"] for one in sessions) / len(sessions),
            record_bytes=scale["record_bytes"],
        )


@dataclass(frozen=True, slots=True)
class Plan:
    """What one load takes."""

    name: str
    requests: float
    """A second, at the peak."""
    records: float
    """A second, at the peak: predictions and feedback."""
    serving_cores: int
    replicas: int
    """With `cores_a_replica` cores each."""
    cores_a_replica: int
    partitions: int
    ingesters: int
    label_cores: float
    broker_in: float
    """MB a second that producers send."""
    broker_disk: float
    """MB a second that brokers write, all copies."""
    retained: float
    """GB kept, all copies."""
    polls: float
    """Requests a second to the object store from replicas alone."""
    snapshots: float
    """MB a second of ingesters' snapshots, every `snapshot_seconds`."""
    snapshot_seconds: float
    assembly: float
    """GB that the trainer fetches for a turn."""
    core_hours: float
    """A day."""
    cost: float
    """A day, at the example's price."""


CORES_A_REPLICA = 4


def plan(
    name: str,
    *,
    peak: float,
    mean: float,
    costs: Costs,
    assumed: Assumed,
    snapshot_seconds: float,
    statistics_mb: float,
) -> Plan:
    """What `peak` and `mean` requests a second take."""
    records = peak * (1 + assumed.feedback)
    serving = math.ceil(peak * costs.request_ms / 1000 / assumed.utilisation)
    replicas = max(math.ceil(serving / CORES_A_REPLICA), 2)
    partitions = power_of_two(records / (assumed.partition_share * costs.per_second))
    labels = peak * assumed.feedback * costs.label_ms / 1000
    ingest_cores = records * costs.record_ms / 1000 + labels
    ingesters = max(math.ceil(ingest_cores / assumed.utilisation), 1)
    size = costs.record_bytes + assumed.feedback * assumed.feedback_bytes
    arriving = peak * size / MB
    kept = mean * size * DAY * assumed.retention_days * assumed.replication / 1e9
    day_cores = replicas * CORES_A_REPLICA + ingesters + records * costs.broker_ms / 1000 * assumed.replication + 2
    return Plan(
        name=name,
        requests=peak,
        records=records,
        serving_cores=serving,
        replicas=replicas,
        cores_a_replica=CORES_A_REPLICA,
        partitions=max(partitions, power_of_two(ingesters)),
        ingesters=ingesters,
        label_cores=labels,
        broker_in=arriving,
        broker_disk=arriving * assumed.replication,
        retained=kept,
        polls=replicas * assumed.asks / assumed.refresh_seconds,
        snapshots=max(partitions, power_of_two(ingesters)) * (statistics_mb + costs.snapshot_mb) / snapshot_seconds,
        snapshot_seconds=snapshot_seconds,
        assembly=max(partitions, power_of_two(ingesters)) * (statistics_mb + costs.snapshot_mb) / 1000,
        core_hours=day_cores * 24,
        cost=day_cores * 24 * assumed.price,
    )


def power_of_two(least: float) -> int:
    """The smallest power of two that is at least `least`: partitions that divide evenly among ingesters."""
    return 1 << max(math.ceil(math.log2(max(least, 1.0))), 0)


def tables(scale: Mapping[str, Any], backtest: Mapping[str, Any]) -> str:
    """The part of deploy/SCALING.md that is made: unit costs, and what two loads take."""
    costs, assumed = Costs.of(scale, backtest), Assumed()
    billion = 1e9 / DAY
    plans = [
        plan(
            "a billion a day", peak=3 * billion, mean=billion, costs=costs, assumed=assumed, snapshot_seconds=300,
            statistics_mb=costs.statistics_mb,
        ),
        plan(
            "100,000 a second", peak=1e5, mean=1e5, costs=costs, assumed=assumed, snapshot_seconds=600,
            statistics_mb=costs.statistics_mb / 4,
        ),
    ]  # fmt: skip
    parts = (
        ("What a unit costs", _units(costs)),
        ("More processes", _curves(scale)),
        ("What is assumed", _assumptions(assumed)),
        ("What two loads take", _plans(plans)),
        ("What breaks first", limits(costs, assumed, *plans)),
    )
    return "\n\n".join(f"## {head}\n\n{table}" for head, table in parts)


def _units(costs: Costs) -> str:
    rows = [
        ("a request, in serving", f"{costs.request_ms:.2f} ms of CPU", "`serving[0].light_cpu_ms`"),
        ("a record, in a broker", f"{costs.broker_ms:.3f} ms of CPU", "`serving[0].broker_cpu_ms`"),
        ("a record, in an ingester", f"{costs.record_ms:.3f} ms of CPU", "`ingest[0].cpu_ms`"),
        ("a labelled row, in an ingester or the trainer", f"{costs.label_ms:.1f} ms of CPU", "`labels`"),
        ("records a second, one ingester", f"{costs.per_second:,.0f}", "`ingest[0].per_second`"),
        ("a serving process", f"{costs.replica_mb:,.0f} MB", "`serving[0].memory_mb`"),
        ("an ingester", f"{costs.ingester_mb:,.0f} MB", "`ingest[0].memory_mb`"),
        ("a file of the head's statistics", f"{costs.statistics_mb:,.0f} MB", "`labels.statistics_mb`"),
        ("a partition's database", f"{costs.snapshot_mb:,.1f} MB", "`ingest[0].snapshot_mb`"),
        ("an interaction in Kafka, uncompressed", f"{costs.record_bytes:,.0f} bytes", "`record_bytes`"),
        ("a turn with LoRA", f"{costs.turn_cpu_s:,.0f} s of CPU", "`backtest_clinc.json`, mean of its sessions"),
    ]
    return _table(("unit", "costs", "from"), rows)


def _curves(scale: Mapping[str, Any]) -> str:
    serving = [
        (
            one["replicas"], f"{one['rps']:,.0f}", f"{one['p99_ms']:.0f} ms", f"{one['cpu_ms']:.2f} ms",
            f"{one['light_rps']:,.0f}", f"{one['light_p99_ms']:.0f} ms", f"{one['light_cpu_ms']:.2f} ms",
        )
        for one in scale["serving"]
    ]  # fmt: skip
    ingest = [
        (one["ingesters"], f"{one['per_second']:,.0f}", f"{one['cpu_ms']:.3f} ms", f"{one['memory_mb']:,.0f} MB")
        for one in scale["ingest"]
    ]
    columns = ("replicas", "requests/s, closed loop", "p99", "CPU a request", "at 40 %", "p99", "CPU a request")
    first = _table(columns, serving)
    return f"{first}\n\n{_table(('ingesters', 'records/s', 'CPU a record', 'memory of each'), ingest)}"


def _assumptions(assumed: Assumed) -> str:
    rows = [
        ("cores in use at the peak", f"{assumed.utilisation:.0%}"),
        ("requests whose label somebody says", f"{assumed.feedback:.0%}"),
        ("bytes of feedback in Kafka", f"{assumed.feedback_bytes:,.0f}"),
        ("copies, days that records stay", f"{assumed.replication}, {assumed.retention_days:g}"),
        ("a partition is planned for", f"{assumed.partition_share:.0%} of what an ingester reads"),
        ("price of a core for an hour, as an example", f"{assumed.price:.2f}"),
    ]
    return _table(("assumed", ""), rows)


def _plans(plans: Sequence[Plan]) -> str:
    def row(what: str, value: str, *shown: str) -> tuple[str, ...]:
        return (what, value, *shown)

    rows = [
        row("requests a second at the peak", "", *(f"{one.requests:,.0f}" for one in plans)),
        row("records a second at the peak", "", *(f"{one.records:,.0f}" for one in plans)),
        row("cores of serving", "", *(f"{one.serving_cores:,}" for one in plans)),
        row(
            "replicas", "`serving.autoscaling.maxReplicas`",
            *(f"{one.replicas:,} with {one.cores_a_replica} cores" for one in plans),
        ),
        row("partitions", "`stream.partitions`", *(f"{one.partitions:,}" for one in plans)),
        row("ingesters, one core each", "`ingester.keda.maxReplicas`", *(f"{one.ingesters:,}" for one in plans)),
        row("of those cores, for labels", "", *(f"{one.label_cores:,.1f}" for one in plans)),
        row("to the brokers", "", *(f"{one.broker_in:,.0f} MB/s" for one in plans)),
        row("written by brokers, all copies", "", *(f"{one.broker_disk:,.0f} MB/s" for one in plans)),
        row(
            "kept by brokers, all copies", "`stream.strimzi.storage.size` × brokers",
            *(f"{one.retained / 1000:,.1f} TB" for one in plans),
        ),
        row(
            "seconds between snapshots", "`config.ingest.snapshot_seconds`",
            *(f"{one.snapshot_seconds:,.0f}" for one in plans),
        ),
        row("snapshots to the registry", "", *(f"{one.snapshots:,.1f} MB/s" for one in plans)),
        row("fetched by the trainer for a turn", "", *(f"{one.assembly:,.1f} GB" for one in plans)),
        row("asked of the registry by replicas", "", *(f"{one.polls:,.0f} requests/s" for one in plans)),
        row("core-hours a day", "", *(f"{one.core_hours:,.0f}" for one in plans)),
        row("cost a day, at the example's price", "", *(f"{one.cost:,.0f}" for one in plans)),
        row("cost of a million requests", "", *(f"{one.cost / (_daily(one) / 1e6):.2f}" for one in plans)),
    ]  # fmt: skip
    return _table(("", "chart value", *(one.name for one in plans)), rows)


def _daily(one: Plan) -> float:
    return 1e9 if one.name == "a billion a day" else one.requests * DAY


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return "\n".join([*lines, *(f"| {' | '.join(str(cell) for cell in row)} |" for row in rows)])


def limits(costs: Costs, assumed: Assumed, billion: Plan, rush: Plan) -> str:
    """What breaks first, from where on, and what takes over there; the arithmetic in each row."""
    record = costs.record_bytes + assumed.feedback * assumed.feedback_bytes
    trainer = costs.per_second
    default_snapshots = billion.partitions * (costs.statistics_mb + costs.snapshot_mb) / 60
    labelled = rush.requests * assumed.feedback
    rows = [
        (
            "the join state",
            "interactions that wait for their label: `memory.join_rows` a partition, by default 200,000; at "
            f"{rush.requests / rush.partitions:,.0f} requests/s in a partition that is "
            f"{200_000 / (rush.requests / rush.partitions):,.0f} s",
            "labels that come later than that are lost to learning: raise `config.memory.join_rows`, and "
            "`ingester.scratch.size` with it (about 1 kB a row)",
        ),
        (
            "the trainer reads the stream itself",
            f"one reader takes {trainer:,.0f} records/s; at {1 + assumed.feedback:.2f} records a request that is "
            f"{trainer / (1 + assumed.feedback):,.0f} requests/s, and it learns meanwhile",
            "ingesters: `ingester.enabled`, one core each, up to `stream.partitions`",
        ),
        (
            "one partition",
            f"{trainer:,.0f} records/s for the ingester that has it; planned for "
            f"{assumed.partition_share * trainer:,.0f}",
            "more partitions, from the start: they can be added later, not taken away",
        ),
        (
            "labels in the ingesters",
            f"{labelled:,.0f} labelled rows/s × {costs.label_ms:.1f} ms = {rush.label_cores:,.1f} cores at 100,000 "
            f"requests/s; of records alone it is {rush.records * costs.record_ms / 1000:,.1f}",
            "`config.model.features` 4096 takes a quarter of the sums; more ingesters",
        ),
        (
            "snapshots to the registry",
            f"{billion.partitions} partitions × ({costs.statistics_mb:,.0f} + {costs.snapshot_mb:,.1f}) MB ÷ 60 s = "
            f"{default_snapshots:,.0f} MB/s with the default `ingest.snapshot_seconds`",
            f"`config.ingest.snapshot_seconds` {billion.snapshot_seconds:,.0f}: {billion.snapshots:,.1f} MB/s; after a "
            "crash so much is read again",
        ),
        (
            "putting the shards together",
            f"{rush.partitions} × ({costs.statistics_mb / 4:,.0f} + {costs.snapshot_mb:,.1f}) MB = "
            f"{rush.assembly:,.1f} GB for each turn of the trainer",
            "turns less often (`config.trainer.interval_seconds`), `model.features` 4096, a trainer near the store",
        ),
        (
            "replicas that ask for promotions",
            f"{rush.replicas:,} × {assumed.asks} ÷ {assumed.refresh_seconds:g} s = {rush.polls:,.0f} requests/s; an S3 "
            "prefix answers 5,500 reads/s, and each is paid for",
            "`config.serving.refresh_seconds` 10: a tenth of it, and a promotion is served ten seconds later",
        ),
        (
            "the solve for the head, in the trainer's memory",
            "about 3 GB with 8,192 features, whatever has come; it grows with the square",
            "`trainer.resources`; `model.features` 4096 takes a quarter",
        ),
        (
            "one trainer",
            f"a turn with LoRA takes {costs.turn_cpu_s:,.0f} s of CPU and does not depend on history; what grows is "
            "the fresh rows, which are bounded (`memory.fresh_rows`)",
            "a GPU (`trainer.gpu.enabled`); then `torchrun` with a GPU for each process. The head's solve and the "
            "judge stay in the first of them",
        ),
        (
            "what brokers keep",
            f"{record:,.0f} bytes × {rush.requests * DAY / 1e9:,.2f} billion a day × {assumed.retention_days:g} days × "
            f"{assumed.replication} copies = {rush.retained / 1e6:,.2f} PB",
            "shorter retention; memory has read a record within minutes, so a day is plenty. Compression in the "
            "topic (`compression.type`) takes most of the rest",
        ),
    ]
    return _table(("what breaks", "where", "what takes over"), rows)
