"""What a hot swap does to latency, and a hundred of them to memory."""

from __future__ import annotations

import http.client
import json
import threading
import time
from dataclasses import asdict
from statistics import median
from typing import Any

from contestants.contest import Unavailable
from servers.contest import Ring
from servers.entrants import PERDURE, SERVERS
from servers.version import pair

LOAD_SHARE = 0.5
"""Of the rate that the server bears: it must have room for what a swap costs, as a server in production has."""
CONNECTIONS = 64
EVERY_SECONDS = 1.0
SWAP_LIMIT = 60.0
SETTLED = 10
"""Swaps after which memory should not grow any more."""
SAMPLE_EVERY = 10
RATE_TRIED = 8
"""Connections of the closed loop that says how much the server bears, where that is not known."""
RATE_SHARE = 0.4


def swaps(ring: Ring, rate: float | None) -> dict[str, Any]:
    """99th percentiles with a swap each second and without any, in turns.

    Args:
        ring: where Perdure is started.
        rate: requests a second; None for a share of what a closed loop reaches.

    Raises:
        Unavailable: Perdure cannot be measured.
    """
    plan, server = ring.plan, SERVERS[PERDURE]
    names = pair(ring.models.registry)
    rounds: dict[str, list[dict[str, Any]]] = {"without": [], "with": []}
    with ring.started(server) as one:
        if rate is None:
            tried = ring.ask(ring.load(server, one.port, ring.short, seconds=2.0, connections=RATE_TRIED))
            rate = max(1.0, RATE_SHARE * tried.rps)
        load = ring.load(
            server,
            one.port,
            ring.short,
            seconds=plan.swap_seconds,
            connections=CONNECTIONS,
            rate=rate,
            give_up_seconds=0.0,
        )
        swapped = 0
        for _ in range(plan.swap_rounds):
            rounds["without"].append(asdict(ring.ask(load)))
            swapper = Swapper(one.port, names)
            swapper.start()
            try:
                rounds["with"].append(asdict(ring.ask(load)))
            finally:
                swapped += swapper.stop()
            promote(one.port, names[1])
    quiet, busy = (median(found["p99_ms"] for found in rounds[name]) for name in ("without", "with"))
    return {
        "rate": round(rate, 2),
        "swaps": swapped,
        "p99_ms_without": quiet,
        "p99_ms_with": busy,
        "p99_ratio": round(busy / quiet, 3) if quiet else None,
        "failures_with": sum(
            sum(one["statuses"].values()) + one["broken"] + one["unanswered"] for one in rounds["with"]
        ),
        "rounds": rounds,
    }


class Swapper(threading.Thread):
    """Promotes two versions in turn, one each second, until it is stopped."""

    def __init__(self, port: int, names: tuple[str, str]) -> None:
        super().__init__(name="swapper", daemon=True)
        self._port = port
        self._names = names
        self._ended = threading.Event()
        self._done = 0
        self._failure: Unavailable | None = None

    def run(self) -> None:
        while not self._ended.wait(EVERY_SECONDS):
            try:
                promote(self._port, self._names[self._done % 2])
            except Unavailable as failure:
                self._failure = failure
                return
            self._done += 1

    def stop(self) -> int:
        """How many promotions there were.

        Raises:
            Unavailable: one failed.
        """
        self._ended.set()
        self.join()
        if self._failure is not None:
            raise self._failure
        return self._done


def memory(ring: Ring) -> dict[str, Any]:
    """Bytes held after each ten swaps, each swap waited for and asked.

    Raises:
        Unavailable: Perdure cannot be measured, or a swap does not come about.
    """
    server = SERVERS[PERDURE]
    names = pair(ring.models.registry)
    held = []
    with ring.started(server) as one:
        ring.ask(ring.load(server, one.port, ring.short, seconds=1.0, connections=RATE_TRIED))
        for number in range(1, ring.plan.swaps + 1):
            name = names[number % 2]
            promote(one.port, name)
            wait_for(one.port, name)
            if number % SAMPLE_EVERY == 0:
                ring.ask(ring.load(server, one.port, ring.short, seconds=0.3, warm_up=0.0, connections=RATE_TRIED))
                held.append({"swaps": number, "bytes": one.memory_bytes()})
        promote(one.port, names[1])
    early = median(one["bytes"] for one in held if one["swaps"] <= max(SETTLED, SAMPLE_EVERY))
    return {
        "swaps": ring.plan.swaps,
        "held": held,
        "growth": round(held[-1]["bytes"] / early, 4),
    }


def promote(port: int, name: str) -> None:
    """Makes `name` the champion.

    Raises:
        Unavailable: the server refuses.
    """
    status, answer = exchange(port, "POST", f"/v1/versions/{name}/promote", {"reason": "for the benchmark"})
    if status != 200:
        raise Unavailable(f"promoting {name} was answered {status}: {answer[:200]!r}")


def wait_for(port: int, name: str) -> None:
    """Until `name` answers.

    Raises:
        Unavailable: it does not within `SWAP_LIMIT` seconds.
    """
    end = time.monotonic() + SWAP_LIMIT
    while time.monotonic() < end:
        _, answer = exchange(port, "GET", "/")
        if json.loads(answer)["serving"] == name:
            return
        time.sleep(0.02)
    raise Unavailable(f"version {name} was promoted, but not served within {SWAP_LIMIT:g} seconds")


def exchange(port: int, method: str, path: str, body: object = None) -> tuple[int, bytes]:
    """Status and body of one answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SWAP_LIMIT)
    try:
        data = None if body is None else json.dumps(body)
        connection.request(method, path, data, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.read()
    except (OSError, http.client.HTTPException) as error:
        raise Unavailable(f"{method} {path} has no answer: {error!r}") from error
    finally:
        connection.close()
