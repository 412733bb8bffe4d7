"""What is answered in time when more is asked than can be answered.

    python benchmarks/overload.py [--url URL] [--seconds 20] [--quick] [--out benchmarks/results/overload.json]

A load process finds the capacity (a closed loop of as many connections as keep every batch full), then sends requests
of one sentence at 0.5, 1, 2 and 3 times that rate, and at 3 times once more with clients that try again after what
Retry-After says. The loop is open: requests come by a Poisson process, whether or not earlier ones were answered, and
every time counts from when the request was due. Goodput is what was answered 200 within --limit, a second.

Without --url a server is started whose model takes a fixed time for a batch and a fixed time for a text, without using
the processor: so the figures are those of admission and HTTP, not of a model. With it, whatever `perdure serve` runs
there is asked. --quick takes 3 seconds a rate and writes to var/bench.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

RESULT = Path(__file__).parent / "results" / "overload.json"
RATES = (0.5, 1.0, 2.0, 3.0)
"""Times capacity."""
CONNECTIONS = 64
"""Of the closed loop that finds the capacity."""
MOST_CONNECTIONS = 4000
"""Of the open loop; a request that finds none free is counted as not sent."""
TRIES = 4
"""Of a client that tries again."""
GOAL = 0.9
"""Goodput at three times capacity, as a share of its best."""
SENTENCES = ("where is my order", "i want my money back please", "how do i reset the password of my account", "refund")


@dataclass(frozen=True)
class Cost:
    """What the model without a network takes, in milliseconds."""

    batch: float = 2.0
    text: float = 2.0


@dataclass
class Outcome:
    """What became of the requests of one rate."""

    rate: float
    """Requests offered a second; infinite for a closed loop."""
    statuses: Counter[str] = field(default_factory=Counter)
    answered: list[float] = field(default_factory=list)
    """Seconds of those answered 200, from when they were due."""
    refused: list[float] = field(default_factory=list)
    """Seconds of those answered 429."""
    retry_after: list[float] = field(default_factory=list)
    seconds: float = 0.0

    def row(self, limit: float, capacity: float) -> dict[str, Any]:
        """The figures; times in milliseconds."""
        good = sum(seconds <= limit for seconds in self.answered)
        return {
            "times_capacity": round(self.rate / capacity, 2),
            "offered_per_second": round(self.rate, 1),
            "goodput_per_second": round(good / self.seconds, 1),
            "statuses": dict(sorted(self.statuses.items())),
            "p50_ms": _percentile(self.answered, 0.5),
            "p99_ms": _percentile(self.answered, 0.99),
            "refused_p99_ms": _percentile(self.refused, 0.99),
            "retry_after_seconds": round(statistics.mean(self.retry_after), 2) if self.retry_after else None,
        }


class Connection:
    """One HTTP/1.1 connection that asks for one prediction after the other."""

    def __init__(self, host: str, port: int, limit: float) -> None:
        self._host, self._port = host, port
        self._limit = limit
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, text: str) -> tuple[int, float | None]:
        """Status, and seconds of Retry-After.

        Raises:
            OSError, asyncio.IncompleteReadError: the connection broke.
        """
        used = self._streams is not None
        try:
            return await self._ask(text)
        except (OSError, asyncio.IncompleteReadError):
            await self.close()
            if not used:
                raise
        # The server had closed it while it idled, and says nothing about this request by it.
        return await self._ask(text)

    async def _ask(self, text: str) -> tuple[int, float | None]:
        if self._streams is None:
            self._streams = await asyncio.open_connection(self._host, self._port)
        reader, writer = self._streams
        body = json.dumps({"text": text}).encode()
        writer.write(
            f"POST /v1/predict HTTP/1.1\r\nHost: {self._host}\r\nContent-Type: application/json\r\n"
            f"X-Request-Timeout-Ms: {max(int(1000 * self._limit), 1)}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        lines = head.split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines[1:] if line)
        await reader.readexactly(int(headers.get("content-length", 0)))
        if headers.get("connection") == "close":
            await self.close()
        after = headers.get("retry-after")
        return int(lines[0].split()[1]), None if after is None else float(after)

    async def close(self) -> None:
        """Ends it; the next request opens another."""
        if self._streams is not None:
            writer, self._streams = self._streams[1], None
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()


class Load:
    """Asks one server, from this process."""

    def __init__(self, url: str, limit: float, seed: int) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        self._host, self._port = parts.hostname, parts.port or 80
        self._limit = limit
        self._random = random.Random(seed)
        self._idle: list[Connection] = []
        self._made = 0

    async def closed(self, connections: int, seconds: float) -> Outcome:
        """As many requests as are answered, with that many under way."""
        outcome = Outcome(math.inf)
        end = time.perf_counter() + seconds

        async def one() -> None:
            while time.perf_counter() < end:
                await self._once(time.perf_counter(), outcome)

        start = time.perf_counter()
        await asyncio.gather(*(one() for _ in range(connections)))
        outcome.seconds = time.perf_counter() - start
        return outcome

    async def open(self, rate: float, seconds: float, tries: int = 1) -> Outcome:
        """Requests at `rate`, whatever becomes of them."""
        outcome = Outcome(rate)
        start = time.perf_counter()
        due = start
        running: set[asyncio.Task[None]] = set()
        while True:
            due += self._random.expovariate(rate)
            if due > start + seconds:
                break
            if (ahead := due - time.perf_counter()) > 0:
                await asyncio.sleep(ahead)
            task = asyncio.create_task(self._client(due, outcome, tries, start + seconds))
            running.add(task)
            task.add_done_callback(running.discard)
        await asyncio.gather(*running)
        outcome.seconds = seconds
        return outcome

    async def _client(self, due: float, outcome: Outcome, tries: int, end: float) -> None:
        for _ in range(tries):
            after = await self._once(due, outcome)
            if after is None:
                return
            due = time.perf_counter() + after + self._random.uniform(0.0, 0.1)
            if due > end:
                return
            await asyncio.sleep(due - time.perf_counter())

    async def _once(self, due: float, outcome: Outcome) -> float | None:
        """Seconds after which to try again; None when that is over."""
        if not self._idle and self._made >= MOST_CONNECTIONS:
            outcome.statuses["not sent"] += 1
            return None
        connection = self._idle.pop() if self._idle else self._new()
        try:
            status, after = await connection.ask(self._random.choice(SENTENCES))
        except (OSError, asyncio.IncompleteReadError):
            outcome.statuses["broken"] += 1
            self._idle.append(connection)
            return None
        seconds = time.perf_counter() - due
        self._idle.append(connection)
        outcome.statuses[str(status)] += 1
        if status == 200:
            outcome.answered.append(seconds)
        elif status == 429:
            outcome.refused.append(seconds)
            outcome.retry_after.append(after or 0.0)
            return after
        return None

    def _new(self) -> Connection:
        self._made += 1
        return Connection(self._host, self._port, self._limit)

    async def close(self) -> None:
        """Ends all connections."""
        await asyncio.gather(*(connection.close() for connection in self._idle))


async def measure(url: str, *, seconds: float, limit: float, rates: Sequence[float], seed: int) -> dict[str, Any]:
    """Capacity, and a row for each rate."""
    load = Load(url, limit, seed)
    try:
        await load.closed(CONNECTIONS, min(seconds, 2.0))
        found = await load.closed(CONNECTIONS, seconds)
        capacity = found.statuses["200"] / found.seconds
        rows = []
        for rate in rates:
            rows.append({"retries": False, **(await load.open(rate * capacity, seconds)).row(limit, capacity)})
            print(json.dumps(rows[-1]), flush=True)
            await asyncio.sleep(min(seconds, 2.0))
        again = await load.open(max(rates) * capacity, seconds, TRIES)
        rows.append({"retries": True, **again.row(limit, capacity)})
        print(json.dumps(rows[-1]), flush=True)
    finally:
        await load.close()
    best = max(row["goodput_per_second"] for row in rows)
    kept = min(row["goodput_per_second"] for row in rows if row["times_capacity"] >= max(rates)) / best
    return {
        "capacity_per_second": round(capacity, 1),
        "rows": rows,
        "goodput_kept": round(kept, 3),
        "goal": GOAL,
        "reached": kept >= GOAL,
    }


def serve(cost: Cost, settings: Sequence[str]) -> None:
    """A server whose model takes a fixed time; prints its URL."""
    from perdure.config import load_settings
    from perdure.model.base import Scores
    from perdure.model.double import KeywordClassifier
    from perdure.registry import Card, Registry
    from perdure.registry.card import EncoderCard
    from perdure.stream import SqliteStream
    from perdure_services.serving.server import listen, run

    class Fixed(KeywordClassifier):
        def scores(self, texts: Sequence[str]) -> Scores:
            time.sleep((cost.batch + cost.text * len(texts)) / 1000.0)
            return super().scores(texts)

    registry = Registry("memory://")
    encoder = EncoderCard(name="double", fingerprint="0")
    card = Card(name="v1", parent=None, kind="first", created=1.0, encoder=encoder, labels=("order", "refund"))
    registry.write(card, {"model.json": b"{}"})
    registry.promote("v1", reason="a benchmark", by="overload.py")
    with tempfile.TemporaryDirectory() as folder, SqliteStream(Path(folder) / "stream.db") as stream:
        run(
            load_settings(overrides=settings, environ={}),
            listener=listen("127.0.0.1", 0),
            registry=registry,
            stream=stream,
            load=lambda name: Fixed(name, {"order": "order", "refund": "refund"}),
            announce=lambda line: print(line, flush=True),
        )


def setup() -> dict[str, Any]:
    """The machine and the versions."""
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "load_average": [round(value, 2) for value in os.getloadavg()],
        "versions": {name: version(name) for name in ("perdure", "fastapi", "uvicorn", "starlette")},
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="ask what is served there, over plain HTTP, not the model without a network")
    parser.add_argument("--seconds", type=float, default=20.0, help="for each rate")
    parser.add_argument("--limit", type=float, default=1.0, help="seconds within which an answer is worth something")
    parser.add_argument("--batch-ms", type=float, default=Cost.batch, help="what a batch takes whatever is in it")
    parser.add_argument("--text-ms", type=float, default=Cost.text, help="what each text takes")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.NAME=VALUE", help="to serve with")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="3 seconds a rate")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    cost = Cost(given.batch_ms, given.text_ms)
    if given.serve:
        serve(cost, given.set)
        return 0
    seconds = min(given.seconds, 3.0) if given.quick else given.seconds
    process = None
    url = given.url
    if url is None:
        command = [sys.executable, __file__, "--serve", "--batch-ms", str(cost.batch), "--text-ms", str(cost.text)]
        for one in given.set:
            command += ["--set", one]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        line = process.stdout.readline()
        url = next((word for word in line.split() if word.startswith("http://")), None)
        if url is None:
            process.kill()
            raise SystemExit(f"the server did not start: {line!r}")
    try:
        found = asyncio.run(measure(url, seconds=seconds, limit=given.limit, rates=RATES, seed=given.seed))
    finally:
        if process is not None:
            process.terminate()
            process.wait(30)
            assert process.stdout is not None
            process.stdout.close()
    result = {
        "setup": setup(),
        "model": "served" if given.url else asdict(cost),
        "settings": given.set,
        "seconds": seconds,
        "limit_seconds": given.limit,
        "seed": given.seed,
        **found,
    }
    out = given.out or (Path("var/bench/overload.json") if given.quick else RESULT)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    share, capacity = 100 * found["goodput_kept"], found["capacity_per_second"]
    print(f"capacity {capacity:.0f}/s; at {max(RATES):g} times that {share:.0f} % of the best goodput: {out}")
    return 0


def _percentile(values: Sequence[float], share: float) -> float | None:
    if not values:
        return None
    return round(1000 * sorted(values)[min(int(share * len(values)), len(values) - 1)], 1)


if __name__ == "__main__":
    sys.exit(main())
