"""What people who ask notice of a broker that is away: latencies with it and without it, in one run.

    python benchmarks/kafka_outage.py [--seconds 20] [--pairs 6]

A real `perdure serve` (all-MiniLM-L6-v2, a version fitted on examples/support_desk, default settings but for one model
thread) before a real Kafka broker. Requests come at a fixed rate, whether earlier ones are answered or not, and each is
timed from the moment at which it was due. Blocks with the broker and without it take turns; it is away stopped where it
stands (SIGSTOP) and killed (SIGKILL), in turn. Blocks begin when the broker has taken all that waited, and some seconds
more, so that it does not start up on the cores that answer. Writes benchmarks/results/kafka_outage.json; needs Java 17
and Maven, and two cores that nobody else uses.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import platform
import queue
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from prometheus_client.parser import text_string_to_metric_families

from backtest_clinc import processor
from perdure.config import Settings, StreamSettings
from perdure.memory import ingest, open_memory
from perdure.stream.kafka import KafkaStream

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "deploy" / "kafka"))

from broker import Broker  # noqa: E402 (it lies in no package)

RESULT = ROOT / "benchmarks" / "results" / "kafka_outage.json"
EXAMPLE = ROOT / "examples" / "support_desk"
PERDURE = str(Path(sys.executable).with_name("perdure"))
TOPIC = "outage"
SETTINGS = "model: {name: all-MiniLM-L6-v2, threads: 1}\nlora: {enabled: false}\njudge: {judge_latency: false}\n"

CONNECTIONS = 16
SHARE = 0.3
"""The rate, as a share of what the API can do."""
CAPACITY_CONNECTIONS = 8
CAPACITY_SECONDS = 8.0
SETTLE_SECONDS = 3.0
TARGETS = {"median": 1.10, "p99": 1.50}
PERCENTILES = (1, 10, 25, 50, 75, 90, 95, 99)


@dataclass(frozen=True)
class Answer:
    """One request; seconds from when it was due, or from when it was sent where nothing was due."""

    status: int
    seconds: float
    id: str
    recorded: bool


@dataclass(frozen=True)
class Block:
    """Requests of one stretch of time."""

    broker: str
    """`there`, `paused` or `killed`."""
    answers: tuple[Answer, ...] = field(repr=False)

    @property
    def milliseconds(self) -> list[float]:
        return sorted(1000 * answer.seconds for answer in self.answers)

    def figures(self) -> dict[str, Any]:
        times = self.milliseconds
        return {
            "broker": self.broker,
            "requests": len(times),
            "statuses": dict(Counter(str(answer.status) for answer in self.answers)),
            "answered_recorded": sum(answer.recorded for answer in self.answers),
            "median_ms": round(percentile(times, 50), 3),
            "p99_ms": round(percentile(times, 99), 3),
            "most_ms": round(times[-1], 3),
            "percentiles_ms": {str(share): round(percentile(times, share), 3) for share in PERCENTILES},
        }


class Client:
    """Asks the API, over connections of its own."""

    def __init__(self, url: str, texts: list[str]) -> None:
        self._address = url.removeprefix("http://")
        self._texts = texts

    def at_rate(self, rate: float, seconds: float) -> tuple[Answer, ...]:
        """Requests `rate` a second, each sent when it is due unless all connections are busy."""
        due: queue.SimpleQueue[tuple[int, float] | None] = queue.SimpleQueue()
        answers: list[Answer] = []

        def work() -> None:
            connection = http.client.HTTPConnection(self._address, timeout=30)
            while (one := due.get()) is not None:
                number, at = one
                time.sleep(max(at - time.perf_counter(), 0.0))
                answers.append(self._ask(connection, number, at))
            connection.close()

        workers = [threading.Thread(target=work) for _ in range(CONNECTIONS)]
        for worker in workers:
            worker.start()
        start = time.perf_counter() + 0.1
        for number in range(int(rate * seconds)):
            due.put((number, start + number / rate))
        for _ in workers:
            due.put(None)
        for worker in workers:
            worker.join()
        return tuple(answers)

    def as_fast_as_it_goes(self, seconds: float) -> tuple[Answer, ...]:
        """Each connection asks again as soon as it is answered."""
        answers: list[Answer] = []
        end = time.perf_counter() + seconds

        def work(first: int) -> None:
            connection = http.client.HTTPConnection(self._address, timeout=30)
            number = first
            while (now := time.perf_counter()) < end:
                answers.append(self._ask(connection, number, now))
                number += CAPACITY_CONNECTIONS
            connection.close()

        workers = [threading.Thread(target=work, args=(first,)) for first in range(CAPACITY_CONNECTIONS)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        return tuple(answers)

    def metric(self, name: str) -> float:
        """One series of /metrics."""
        connection = http.client.HTTPConnection(self._address, timeout=30)
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        connection.close()
        families = text_string_to_metric_families(text)
        return sum(sample.value for family in families for sample in family.samples if sample.name == name)

    def _ask(self, connection: http.client.HTTPConnection, number: int, since: float) -> Answer:
        body = json.dumps({"text": self._texts[number % len(self._texts)]})
        connection.request("POST", "/v1/predict", body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        said = json.loads(response.read())
        seconds = time.perf_counter() - since
        return Answer(response.status, seconds, said.get("id", ""), said.get("recorded", False))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0, help="length of a block (default: %(default)s)")
    parser.add_argument("--pairs", type=int, default=6, help="blocks with the broker (default: %(default)s)")
    options = parser.parse_args()
    lines = (EXAMPLE / "eval.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [json.loads(line)["text"] for line in lines]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        fit(folder)
        with Broker(folder / "broker") as broker, served(folder, broker.address) as url:
            client = Client(url, texts)
            warm = client.as_fast_as_it_goes(CAPACITY_SECONDS / 2)
            fastest = client.as_fast_as_it_goes(CAPACITY_SECONDS)
            capacity = len(fastest) / CAPACITY_SECONDS
            rate = SHARE * capacity
            print(f"{capacity:.0f} requests a second at most; the blocks have {rate:.0f}")
            blocks = list(run(broker, client, rate, options))
            settle(client)
            answers = [*warm, *fastest, *(answer for block in blocks for answer in block.answers)]
            counts = arrived(broker.address, folder, answers)
            resent = client.metric("perdure_stream_resent_total")
    result = {
        "setup": setup(options) | {"capacity_per_second": round(capacity, 1), "rate_per_second": round(rate, 1)},
        "ratios": ratios(blocks),
        "counts": counts | {"resent": int(resent)},
        "blocks": [block.figures() for block in blocks],
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result["ratios"], indent=1))
    print(f"written to {RESULT}")


def fit(folder: Path) -> None:
    """Makes a registry with one version in `folder`."""
    (folder / "perdure.yaml").write_text(SETTINGS, encoding="utf-8")
    data = str(EXAMPLE / "stream.jsonl")
    command = [PERDURE, "fit", "--data", data, "--labels", str(EXAMPLE / "labels.json"), "--config", "perdure.yaml"]
    subprocess.run(command, check=True, cwd=folder, env=environ(), stdout=subprocess.DEVNULL)


@contextmanager
def served(folder: Path, address: str) -> Iterator[str]:
    """The URL of a `perdure serve` in `folder`."""
    given = ["--set", f"stream.url=kafka://{address}", "--set", f"stream.topic={TOPIC}"]
    with (folder / "serve.log").open("wb") as log:
        process = subprocess.Popen(
            [PERDURE, "serve", "--port", "0", "--config", "perdure.yaml", *given],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            cwd=folder,
            env=environ(),
        )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        if " serves version " not in line:
            raise RuntimeError(f"perdure serve said {line!r}: {(folder / 'serve.log').read_text(encoding='utf-8')}")
        yield line.split()[5]
    finally:
        process.terminate()
        process.wait(30)
        process.stdout.close()


def run(broker: Broker, client: Client, rate: float, options: argparse.Namespace) -> Iterator[Block]:
    """Blocks with the broker and without it, in turn."""
    ways: list[tuple[str, Callable[[], object], Callable[[], object]]] = [
        ("paused", broker.pause, broker.resume),
        ("killed", broker.kill, broker.start),
    ]
    for pair in range(options.pairs):
        settle(client)
        yield shown(Block("there", client.at_rate(rate, options.seconds)))
        how, away, back = ways[pair % len(ways)]
        away()
        try:
            yield shown(Block(how, client.at_rate(rate, options.seconds)))
        finally:
            back()


def settle(client: Client) -> None:
    """Waits until the broker has everything, and some seconds more."""
    while client.metric("perdure_spool_records") > 0:
        time.sleep(0.2)
    time.sleep(SETTLE_SECONDS)


def shown(block: Block) -> Block:
    figures = block.figures()
    print(f"{block.broker:8} median {figures['median_ms']:7.2f} ms  p99 {figures['p99_ms']:7.2f} ms")
    return block


def arrived(address: str, folder: Path, answers: list[Answer]) -> dict[str, int]:
    """What a fresh memory makes of the topic."""
    settings = Settings(stream=StreamSettings(url=f"kafka://{address}", topic=TOPIC)).with_values(
        {"memory.path": str(folder / "arrived"), "memory.fresh_rows": 10_000_000, "memory.join_rows": 10_000_000}
    )
    with KafkaStream((address,), settings.stream) as stream, open_memory(settings) as memory:
        totals = ingest(stream, memory)
        memory.freeze(champion=None, promotion=1)
        rows = Counter(row.id for row in memory.rows())
    recorded = {answer.id for answer in answers if answer.recorded}
    return {
        "answered": len(answers),
        "answered_recorded": len(recorded),
        "arrived_exactly_once": sum(rows[id] == 1 for id in recorded),
        "arrived_unasked": len(rows.keys() - {answer.id for answer in answers}),
        "delivered_again": totals.repeated,
    }


def ratios(blocks: list[Block]) -> dict[str, Any]:
    """Latencies without the broker over those with it."""
    pairs = [(there, away) for there, away in pairwise(blocks) if there.broker == "there"]
    result: dict[str, Any] = {"targets": TARGETS}
    for name, share in (("median", 50), ("p99", 99)):
        each = [percentile(away.milliseconds, share) / percentile(there.milliseconds, share) for there, away in pairs]
        pooled = {
            side: percentile(sorted(one for pair in pairs for one in pair[number].milliseconds), share)
            for number, side in enumerate(("there", "away"))
        }
        result[name] = {
            "pooled": round(pooled["away"] / pooled["there"], 4),
            "median_over_pairs": round(statistics.median(each), 4),
            "pairs": [round(one, 4) for one in each],
            "there_ms": round(pooled["there"], 3),
            "away_ms": round(pooled["away"], 3),
            "within_target": pooled["away"] / pooled["there"] <= TARGETS[name],
        }
    return result


def percentile(times: list[float], share: float) -> float:
    """Of sorted times, the one that `share` percent do not exceed."""
    return times[min(int(share / 100 * len(times)), len(times) - 1)]


def environ() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PERDURE_")}
    return {**kept, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "DO_NOT_TRACK": "1"}


def setup(options: argparse.Namespace) -> dict[str, Any]:
    """What the figures were taken with."""
    return {
        "command": "python benchmarks/kafka_outage.py",
        "seconds": options.seconds,
        "pairs": options.pairs,
        "connections": CONNECTIONS,
        "fsync": Settings().spool.fsync,
        "cores": os.cpu_count(),
        "processor": processor(),
        "python": platform.python_version(),
        "kafka": ElementTree.parse(ROOT / "deploy" / "kafka" / "pom.xml").findtext(".//{*}kafka.version"),
        **{name: version(name) for name in ("perdure", "torch", "kafka-python", "uvicorn")},
    }


if __name__ == "__main__":
    main()
