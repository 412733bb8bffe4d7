"""Serving replicas, 1 to 4, each a `perdure serve` of its own that records in Kafka."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from scaling.cost import cpu_seconds, memory_bytes
from scaling.place import PERDURE, Place, assignments, environment, rows, started
from servers.load import Load

CONNECTIONS = 16
"""Of the closed loop, shared by the replicas."""
LIGHT = 0.4
"""Of what the closed loop reaches: the rate at which latency is told."""
WARM_UP_SECONDS = 3.0
TOPIC = "scale-serving"


@dataclass(frozen=True, slots=True)
class ReplicaFigures:
    """What so many replicas did."""

    replicas: int
    rps: float
    """Requests answered a second, closed loop."""
    p99_ms: float
    """Of the closed loop, the slowest replica's."""
    light_rps: float
    """Requests answered a second, at the rate of `LIGHT`."""
    light_p50_ms: float
    light_p99_ms: float
    failures: int
    cpu_ms: float
    """CPU time of the replicas for one request, in milliseconds; closed loop."""
    light_cpu_ms: float
    """The same at the rate of `LIGHT`, where batches are smaller."""
    broker_cpu_ms: float | None
    """CPU time of the broker for one request."""
    load_cpu_ms: float
    """CPU time of the load for one request: it shares the cores here, and does not elsewhere."""
    memory_mb: float
    """Of one replica."""


def measure(place: Place, replicas: int, seconds: float) -> ReplicaFigures:
    """Starts so many replicas, asks them all at once, and stops them."""
    folder = place.folder / f"serving-{replicas}"
    folder.mkdir()
    commands = []
    for number in range(replicas):
        own = {"stream.topic": TOPIC, "spool.path": folder / f"spool-{number}", "serving.port": 0}
        commands.append([*PERDURE, "serve", *assignments({**place.settings, **own})])
    with started(commands, folder) as processes:
        ports = [_port(process, folder / f"process-{number}.log") for number, process in enumerate(processes)]
        pids = [process.pid for process in processes]
        brokers = [place.broker_pid] if place.broker_pid else []
        _ask(ports, folder, seconds=WARM_UP_SECONDS, rate=0.0)
        before = cpu_seconds(pids), cpu_seconds(brokers)
        full = _ask(ports, folder, seconds=seconds, rate=0.0)
        between = cpu_seconds(pids), cpu_seconds(brokers)
        answered = _answered(full)
        rps = answered / seconds
        light = _ask(ports, folder, seconds=seconds, rate=LIGHT * rps)
        after = cpu_seconds(pids)
        memory = memory_bytes(pids) / replicas
    return ReplicaFigures(
        replicas=replicas,
        rps=round(rps, 1),
        p99_ms=max(one["p99_ms"] for one in full),
        light_rps=round(_answered(light) / seconds, 1),
        light_p50_ms=round(sum(one["p50_ms"] for one in light) / replicas, 2),
        light_p99_ms=max(one["p99_ms"] for one in light),
        failures=int(sum(one["failures"] for one in (*full, *light))),
        cpu_ms=_per(between[0] - before[0], answered),
        light_cpu_ms=_per(after - between[0], _answered(light)),
        broker_cpu_ms=_per(between[1] - before[1], answered) if brokers else None,
        load_cpu_ms=round(sum(one["generator_us"] * one["requests"] for one in full) / answered / 1000, 4),
        memory_mb=round(memory / 1e6, 1),
    )


def _port(process: subprocess.Popen[str], log: Path) -> int:
    assert process.stdout is not None
    line = process.stdout.readline()
    if " at http://" not in line:
        raise SystemExit(f"perdure serve did not start: {line or log.read_text(encoding='utf-8')}")
    return int(line.split(" at http://127.0.0.1:")[1].split()[0].rstrip(","))


def _ask(ports: Sequence[int], folder: Path, *, seconds: float, rate: float) -> list[dict[str, float]]:
    """One load process for each replica, all at once; as a balancer would share requests out."""
    texts = rows()
    running = []
    for number, port in enumerate(ports):
        load = Load(
            port=port,
            path="/v1/predict",
            bodies=[json.dumps({"text": text}) for text, _ in texts],
            marks=['"label"' for _ in texts],
            seconds=seconds,
            warm_up=0.0,
            connections=max(CONNECTIONS // len(ports), 1),
            rate=rate / len(ports),
            give_up_seconds=0.0,
            seed=number,
        )
        task, outcome = folder / f"load-{number}.json", folder / f"outcome-{number}.json"
        task.write_text(json.dumps(asdict(load)), encoding="utf-8")
        command = [sys.executable, "-m", "servers.load", str(task), str(outcome)]
        env = {**environment(), "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
        running.append((subprocess.Popen(command, env=env), outcome))
    found = []
    for process, outcome in running:
        if process.wait():
            raise SystemExit(f"the load failed with {process.returncode}: {outcome}")
        figures = json.loads(outcome.read_text(encoding="utf-8"))
        figures["failures"] = sum(figures["statuses"].values()) + figures["broken"] + figures["unanswered"]
        found.append(figures)
    return found


def _answered(loads: Sequence[dict[str, float]]) -> float:
    return sum(one["rps"] * one["seconds"] for one in loads)


def _per(seconds: float, units: float) -> float:
    return round(1000 * seconds / units, 4) if units else 0.0
