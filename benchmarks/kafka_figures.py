"""Kafka: what recording costs, how fast records are sent, how fast a backlog comes into memory.

    python benchmarks/kafka_figures.py [--part sending|catch-up|recording] [--records 1000000] [--out var/bench/kafka]

Starts a broker of its own (deploy/kafka), or takes that of --broker HOST:PORT, and writes
benchmarks/results/kafka.json: each part beside its bare counterpart, in one run, on the same cores.

sending    `append` to acknowledged, through the spool, beside a bare kafka-python producer loop with the same settings
catch-up   a backlog of interactions with embeddings into memory, beside a bare consumer loop that only parses
recording  requests a second that the API answers with recording and without it, in alternating blocks
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import importlib.util
import json
import os
import platform
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from backtest_clinc import processor
from perdure.records import Feedback, Interaction, new_id
from perdure.stream.payload import Payload, payloads

HERE = Path(__file__).resolve().parent
RESULT = HERE / "results" / "kafka.json"
PERDURE = [sys.executable, "-c", "from perdure.cli import main; main()"]
WORDS = [
    "where",
    "is",
    "my",
    "parcel",
    "refund",
    "order",
    "card",
    "login",
    "please",
    "help",
    "can",
    "you",
    "change",
    "the",
    "address",
    "of",
    "account",
    "late",
]
LABELS = [f"intent-{number}" for number in range(30)]
PARTITIONS = 8
GROUP = 500
BLOCK_SECONDS = 6.0
BLOCKS = 24
CONNECTIONS = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=["sending", "catch-up", "recording"], action="append")
    parser.add_argument("--records", type=int, default=1_000_000, help="backlog of the catch-up")
    parser.add_argument("--broker", help="HOST:PORT of one that is there already")
    parser.add_argument("--out", type=Path, default=Path("var/bench/kafka"))
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(CHILDREN[options.child](options)))
        return
    shutil.rmtree(options.out, ignore_errors=True)
    options.out.mkdir(parents=True)
    result: dict[str, Any] = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.exists() else {}
    with broker(options) as options.broker:
        for part in options.part or ["sending", "recording", "catch-up"]:
            result[part] = PARTS[part](options)
            print(part, json.dumps(result[part], indent=1), flush=True)
    result["setup"] = setup()
    RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"written to {RESULT}")


# ── sending ──
def sending(options: argparse.Namespace) -> dict[str, Any]:
    """Three runs of each, alternating; records a second from the first append to the last acknowledgement."""
    options = argparse.Namespace(**{**vars(options), "records": min(options.records, 100_000)})
    runs: dict[str, list[float]] = {"bare": [], "perdure": []}
    for _ in range(3):
        for name, rates in runs.items():
            rates.append(child(options, name)["records_per_second"])
    medians = {name: statistics.median(rates) for name, rates in runs.items()}
    return {
        "records": options.records,
        "bare_producer_per_second": medians["bare"],
        "perdure_per_second": medians["perdure"],
        "ratio": medians["perdure"] / medians["bare"],
        "must": 0.7,
        "runs": runs,
    }


def bare_producer(options: argparse.Namespace) -> dict[str, float]:
    from kafka import KafkaProducer

    from perdure.stream.kafka.writer import BATCH_BYTES, LINGER_MS

    topic = make_topic(options)
    # Encoded before the clock starts: this loop is given bytes.
    ready = [(payload.interaction or "").encode() for payload in rows(options.records)]
    bodies = [payload.body for payload in rows(options.records)]
    producer = KafkaProducer(
        bootstrap_servers=options.broker, acks="all", linger_ms=LINGER_MS, batch_size=BATCH_BYTES, metrics_enabled=False
    )
    begun = time.perf_counter()
    for key, body in zip(ready, bodies, strict=True):
        producer.send(topic, body, key=key)
    producer.flush()
    seconds = time.perf_counter() - begun
    producer.close()
    return {"records_per_second": options.records / seconds}


def spooled(options: argparse.Namespace) -> dict[str, float]:
    from perdure.config import SpoolSettings
    from perdure.stream.kafka import KafkaStream
    from perdure_services.serving.metrics import Metrics
    from perdure_services.serving.spool.forwarder import Forwarder
    from perdure_services.serving.spool.spooled_stream import SpooledStream, with_spool

    topic = make_topic(options)
    ready = rows(options.records)
    with tempfile.TemporaryDirectory() as folder:
        beyond = KafkaStream((options.broker,), stream_settings(options, topic))
        stream = with_spool(beyond, SpoolSettings(path=folder))
        assert isinstance(stream, SpooledStream)
        forwarder = Forwarder(stream.spool, beyond, Metrics())
        forwarder.start()
        begun = time.perf_counter()
        for start in range(0, len(ready), GROUP):
            stream.append_payloads(ready[start : start + GROUP])
        while stream.spool.records:
            time.sleep(0.005)
        seconds = time.perf_counter() - begun
        forwarder.close(5.0)
        stream.close()
    return {"records_per_second": options.records / seconds}


# ── catch-up ──
def catch_up(options: argparse.Namespace) -> dict[str, Any]:
    """Into memory; and the most memory that the process held with a tenth, a quarter and all of it."""
    total = options.records
    sizes = [total // 10, total // 4, total]
    topic = make_topic(options)
    found: dict[str, Any] = {"records": total, "topic_bytes": fill(options, topic, total)}
    options.topic = topic
    bare = child(options, "consumer", topic)
    peaks = {}
    for size in sizes:
        options.records = size
        run = child(options, "ingest", topic)
        peaks[str(size)] = run["peak_megabytes"]
    options.records = total
    return {
        **found,
        "bare_consumer_per_second": bare["records_per_second"],
        "perdure_per_second": run["records_per_second"],
        "ratio": run["records_per_second"] / bare["records_per_second"],
        "peak_megabytes": peaks,
        "memory": run["memory"],
    }


def consumer(options: argparse.Namespace) -> dict[str, float]:
    from kafka import KafkaConsumer, TopicPartition

    reader = KafkaConsumer(bootstrap_servers=options.broker, auto_offset_reset="earliest", metrics_enabled=False)
    partitions = [TopicPartition(options.topic, number) for number in range(PARTITIONS)]
    reader.assign(partitions)
    ends = sum(reader.end_offsets(partitions).values())
    seen = 0
    begun = time.perf_counter()
    while seen < ends:
        for records in reader.poll(timeout_ms=500, max_records=1000).values():
            for record in records:
                json.loads(record.value)
                seen += 1
    seconds = time.perf_counter() - begun
    reader.close()
    return {"records_per_second": seen / seconds}


def ingest(options: argparse.Namespace) -> dict[str, Any]:
    """Ingests the first `records` of the topic."""
    import perdure.memory
    from perdure.config import Settings
    from perdure.stream.kafka import KafkaStream

    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(stream=stream_settings(options, options.topic)).with_values({"memory.path": folder})
        with (
            KafkaStream((options.broker,), settings.stream) as stream,
            perdure.memory.open_memory(settings) as memory,
        ):
            read = 0
            begun = time.perf_counter()

            def go_on() -> bool:
                nonlocal read
                read = sum(memory.offset().values())
                return read < options.records

            perdure.memory.ingest(stream, memory, go_on)
            seconds = time.perf_counter() - begun
            counts = memory.counts()
            kept = {"samples": counts.samples, "joinable": counts.joinable, "memory_bytes": counts.memory_bytes}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"records_per_second": read / seconds, "peak_megabytes": round(peak, 1), "memory": kept}


def fill(options: argparse.Namespace, topic: str, count: int) -> int:
    """A backlog as production leaves it: interactions with embeddings, every fifth with feedback; its bytes."""
    from kafka import KafkaProducer

    producer = KafkaProducer(
        bootstrap_servers=options.broker, acks="all", linger_ms=20, batch_size=512 * 1024, metrics_enabled=False
    )
    rng = random.Random(0)
    embedding = base64.b64encode(rng.randbytes(2 * 384)).decode()
    sent = size = 0
    future = None
    while sent < count:
        identifier, label = new_id(), rng.choice(LABELS)
        text = f"{label} {' '.join(rng.sample(WORDS, 6))} {rng.randrange(count)}"
        record = Interaction(
            time=sent * 0.01, id=identifier, text=text, label=label, confidence=0.9, version="v000001-head",
            embedding=embedding,
        )  # fmt: skip
        batch: list[Any] = [record]
        if sent % 5 == 0:
            batch.append(Feedback(time=sent * 0.01 + 1, interaction=identifier, label=label))
        for payload in payloads(batch):
            future = producer.send(topic, payload.body, key=identifier.encode())
            sent += 1
            size += len(payload.body)
        if sent % 20_000 < 2:
            producer.flush()
    producer.flush()
    assert future is not None
    future.get(timeout=60)
    producer.close()
    return size


# ── recording ──
def recording(options: argparse.Namespace) -> dict[str, Any]:
    """Both APIs run; one at a time gets load, closed loop, in short blocks whose order changes from pair to pair."""
    folder = (options.out / "recording").resolve()
    folder.mkdir(parents=True)
    data = HERE.parent / "examples" / "support_desk" / "stream.jsonl"
    common = {
        "registry.url": str(folder / "registry"),
        "memory.path": str(folder / "memory"),
        "serving.port": "0",
    }
    fit = [*PERDURE, "fit", "--data", str(data), *assignments({**common, "stream.url": f"sqlite:{folder}/stream.db"})]
    subprocess.run(fit, check=True, stdout=subprocess.DEVNULL)
    topic = make_topic(options)
    url = {"stream.url": f"kafka://{options.broker}", "stream.topic": topic}
    texts = [json.loads(line)["text"] for line in data.read_text(encoding="utf-8").splitlines()]
    blocks: dict[str, list[float]] = {"off": [], "on": []}
    with ExitStack() as stack:
        ports = {
            name: stack.enter_context(
                api(
                    {**common, **url, "serving.record": record, "spool.path": str(folder / f"spool-{name}")},
                    folder / f"{name}.log",
                )
            )
            for name, record in (("off", "false"), ("on", "true"))
        }
        for port in ports.values():
            asyncio.run(load(port, texts, 5.0))
        for pair in range(BLOCKS):
            for name in ("off", "on") if pair % 2 else ("on", "off"):
                blocks[name].append(asyncio.run(load(ports[name], texts, BLOCK_SECONDS)))
    means = {name: statistics.fmean(rates) for name, rates in blocks.items()}
    pairs = [on / off for on, off in zip(blocks["on"], blocks["off"], strict=True)]
    error = statistics.stdev(pairs) / len(pairs) ** 0.5
    return {
        "connections": CONNECTIONS,
        "block_seconds": BLOCK_SECONDS,
        "off_per_second": means["off"],
        "on_per_second": means["on"],
        "ratio": means["on"] / means["off"],
        "ratio_median_of_pairs": statistics.median(pairs),
        "ratio_standard_error": error,
        "must": 0.95,
        "blocks": blocks,
    }


@contextmanager
def api(values: dict[str, str], log: Path) -> Iterator[int]:
    with log.open("wb") as out:
        process = subprocess.Popen([*PERDURE, "serve", *assignments(values)], stdout=subprocess.PIPE, stderr=out)
        try:
            assert process.stdout is not None
            line = process.stdout.readline().decode()
            if " at http://" not in line:
                raise SystemExit(f"the API did not start: {line or log.read_text()}")
            yield int(line.split(" at http://127.0.0.1:")[1].split()[0].rstrip(","))
        finally:
            process.terminate()
            process.wait()


async def load(port: int, texts: list[str], seconds: float) -> float:
    """Requests a second that get a 200, from so many connections that each send one after the other."""
    end = time.perf_counter() + seconds
    counts = await asyncio.gather(*(connection(port, texts, number, end) for number in range(CONNECTIONS)))
    return sum(counts) / seconds


async def connection(port: int, texts: list[str], number: int, end: float) -> int:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    rng = random.Random(number)
    answered = 0
    while time.perf_counter() < end:
        body = json.dumps({"text": rng.choice(texts)}).encode()
        head = f"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
        writer.write(head.encode() + b"\r\n\r\n" + body)
        answer = await reader.readuntil(b"\r\n\r\n")
        length = int(answer.lower().split(b"content-length:")[1].split(b"\r\n")[0])
        await reader.readexactly(length)
        if not answer.startswith(b"HTTP/1.1 200"):
            raise SystemExit(f"the API answered {answer[:60]!r}")
        answered += 1
    writer.close()
    return answered


# ── around it ──
def rows(count: int) -> list[Payload]:
    """Interactions as the API records them."""
    rng = random.Random(0)
    said = (
        Interaction(
            time=float(number),
            id=new_id(),
            text=" ".join(rng.sample(WORDS, 8)),
            label="refund",
            confidence=0.8731,
            version="v000001-head",
        )
        for number in range(count)
    )
    return list(payloads(list(said)))


def stream_settings(options: argparse.Namespace, topic: str) -> Any:
    from perdure.config import StreamSettings

    return StreamSettings(url=f"kafka://{options.broker}", topic=topic, partitions=PARTITIONS)


def make_topic(options: argparse.Namespace) -> str:
    from perdure.stream.kafka.topic import ensure_topic

    topic = f"bench-{new_id()[-12:]}"
    ensure_topic((options.broker,), stream_settings(options, topic), topic)
    return topic


def child(options: argparse.Namespace, name: str, topic: str = "") -> Any:
    """A part in a process of its own, so that none inherits another's memory or threads."""
    command = [sys.executable, __file__, "--child", f"{name}", "--broker", options.broker]
    environ = {**os.environ, "PERDURE_BENCH_TOPIC": topic}
    ran = subprocess.run(
        [*command, "--records", str(options.records)], check=True, stdout=subprocess.PIPE, text=True, env=environ
    )
    return json.loads(ran.stdout.splitlines()[-1])


def _with_topic(part: Callable[[argparse.Namespace], Any]) -> Callable[[argparse.Namespace], Any]:
    def run(options: argparse.Namespace) -> Any:
        options.topic = os.environ["PERDURE_BENCH_TOPIC"]
        return part(options)

    return run


def assignments(values: dict[str, str]) -> list[str]:
    return [word for name, value in values.items() for word in ("--set", f"{name}={value}")]


@contextmanager
def broker(options: argparse.Namespace) -> Iterator[str]:
    if options.broker:
        yield options.broker
        return
    file = HERE.parent / "deploy" / "kafka" / "broker.py"
    spec = importlib.util.spec_from_file_location("perdure_kafka_broker", file)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with module.Broker(options.out / "broker") as started:
        yield started.address


def setup() -> dict[str, Any]:
    """What the figures were taken with."""
    return {
        "command": "python benchmarks/kafka_figures.py",
        "cores": os.cpu_count(),
        "processor": processor(),
        "python": platform.python_version(),
        "broker": "one node of deploy/kafka on the same cores",
        **{name: version(name) for name in ("perdure", "kafka-python", "crc32c", "torch")},
    }


PARTS = {"sending": sending, "catch-up": catch_up, "recording": recording}
CHILDREN = {"bare": bare_producer, "perdure": spooled, "consumer": _with_topic(consumer), "ingest": _with_topic(ingest)}

if __name__ == "__main__":
    main()
