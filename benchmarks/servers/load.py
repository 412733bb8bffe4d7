"""The load: a process of its own that asks one server, in a closed loop or at a fixed rate, and says what it found.

    python -m servers.load TASK OUTCOME

It imports nothing but the standard library and prepares every byte beforehand, since it shares the cores with what it
measures. In an open loop latency counts from the moment for which a request was scheduled, whether or not there was a
connection free to send it then: a server that stalls is charged for everybody who would have come meanwhile.
"""

from __future__ import annotations

import asyncio
import gc
import json
import random
import sys
import time
from array import array
from collections import Counter, deque
from collections.abc import Coroutine, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from servers.connection import Connection
from servers.figures import LoadFigures, quantile

RECONNECT_SECONDS = 0.02
GRACE_SECONDS = 10.0
"""How long what is under way at the end of a closed loop may take; then it is unanswered."""


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked, and how."""

    port: int
    path: str
    bodies: Sequence[str]
    """Asked in an order drawn from the seed, over and over."""
    marks: Sequence[str]
    """What the answer to each must contain to be right."""
    seconds: float
    warm_up: float = 0.5
    """Seconds before those, whose requests do not count."""
    connections: int = 1
    """In a closed loop, each sends its next request when it has its answer; in an open loop, the most there may be."""
    rate: float = 0.0
    """Requests a second of an open loop; 0 for a closed loop."""
    arrivals: str = "even"
    """How requests of an open loop are spaced: `even`, or `poisson` with independent exponential gaps."""
    give_up_seconds: float = 1.0
    """An open loop that is so far behind is ended, for it only gets worse; 0 for never."""
    check_every: int = 4
    """Every how many answers one is looked at."""
    seed: int = 0
    host: str = "127.0.0.1"


class Measurement:
    """Asks as `load` says, once, and holds what came back."""

    def __init__(self, load: Load) -> None:
        order = list(range(len(load.bodies)))
        random.Random(load.seed).shuffle(order)
        self._load = load
        self._requests = [request_bytes(load, load.bodies[index]) for index in order]
        self._marks = [load.marks[index].encode() for index in order]
        self._latencies = array("d")
        self._late = array("d")
        self._statuses: Counter[int] = Counter()
        self._broken = self._unanswered = self._checked = self._right = 0
        self._sent = self._answers = self._seen = 0
        self._gave_up = False
        self._connections: set[Connection] = set()
        self._idle: list[Connection] = []
        self._waiting: deque[float] = deque()
        """Times at which requests were due for which no connection was free."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._connecting = 0
        self._start = self._stop = 0.0
        self._ending = False
        self._done: asyncio.Event = asyncio.Event()

    async def run(self) -> LoadFigures:
        load = self._load
        self._loop = asyncio.get_running_loop()
        open_loop = load.rate > 0
        # In an open loop further connections are made when they are needed.
        for _ in range(min(load.connections, 8) if open_loop else load.connections):
            await self._connect()
        began = time.perf_counter()
        cpu = time.process_time()
        self._start = began + load.warm_up
        self._stop = self._start + load.seconds
        if open_loop:
            self._schedule = self._due_times(began)
            self._tick(next(self._schedule))
        else:
            for connection in tuple(self._idle):
                self._idle.remove(connection)
                self._send(connection, time.perf_counter())
            self._loop.call_at(self._loop.time() + load.warm_up + load.seconds, self._end)
        await self._done.wait()
        cpu = time.process_time() - cpu
        for task in self._tasks:
            task.cancel()
        self._count_unanswered()
        for connection in tuple(self._connections):
            connection.close()
        return self._figures(cpu)

    # ── what connections say ──
    def answered(self, connection: Connection, status: int, body: bytes) -> None:
        now = time.perf_counter()
        due = connection.due
        self._seen += 1
        if self._counts(due, now):
            if status == 200:
                self._answers += 1
                self._latencies.append(now - due)
                if self._seen % self._load.check_every == 0:
                    self._checked += 1
                    self._right += self._marks[connection.index] in body
            else:
                self._statuses[status] += 1
        if connection.closing:
            return
        if self._load.rate > 0:
            if self._too_late(due, now):
                return
            if self._waiting:
                self._send(connection, self._waiting.popleft())
            else:
                self._idle.append(connection)
        elif not self._ending:
            self._send(connection, now)
        self._finish_if_quiet()

    def lost(self, connection: Connection) -> None:
        self._connections.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        if self._done.is_set():
            return
        if connection.busy:
            self._broken += 1
        if not self._ending:
            self._later(self._replace())
        self._finish_if_quiet()

    # ── asking ──
    def _send(self, connection: Connection, due: float) -> None:
        index = self._sent % len(self._requests)
        self._sent += 1
        if self._load.rate > 0 and due >= self._start:
            self._late.append(time.perf_counter() - due)
        connection.send(self._requests[index], index, due)

    def _tick(self, due: float) -> None:
        """Sends what is due, and comes back for the next."""
        now = time.perf_counter()
        while due <= now:
            if due >= self._stop:
                self._end()
                return
            if self._idle:
                self._send(self._idle.pop(), due)
            else:
                self._waiting.append(due)
                if len(self._connections) + self._connecting < self._load.connections:
                    self._later(self._connect())
            due = next(self._schedule)
        if self._waiting and self._too_late(self._waiting[0], now):
            return
        self._loop.call_at(self._loop.time() + (due - now), self._tick, due)

    def _too_late(self, due: float, now: float) -> bool:
        """Ends the load where a request that counts has waited too long."""
        limit = self._load.give_up_seconds
        if not limit or due < self._start or now - due <= limit:
            return False
        self._gave_up = self._ending = True
        self._done.set()
        return True

    def _due_times(self, began: float) -> Iterator[float]:
        rate = self._load.rate
        if self._load.arrivals == "even":
            count = 0
            while True:
                # Half a gap late, so that none falls on the moment from which requests count.
                yield began + (count + 0.5) / rate
                count += 1
        draw = random.Random(self._load.seed + 1).expovariate
        due = began
        while True:
            due += draw(rate)
            yield due

    async def _connect(self) -> None:
        self._connecting += 1
        try:
            _, connection = await self._loop.create_connection(
                lambda: Connection(self), self._load.host, self._load.port
            )
        finally:
            self._connecting -= 1
        self._connections.add(connection)
        if self._load.rate > 0 and self._waiting:
            self._send(connection, self._waiting.popleft())
        elif self._load.rate > 0 or not self._start:
            self._idle.append(connection)
        elif not self._ending:
            self._send(connection, time.perf_counter())

    async def _replace(self) -> None:
        while not self._ending:
            await asyncio.sleep(RECONNECT_SECONDS)
            try:
                await self._connect()
            except OSError:
                self._broken += 1
            else:
                return

    def _later(self, work: Coroutine[object, object, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # ── the end ──
    def _end(self) -> None:
        self._ending = True
        self._loop.call_at(self._loop.time() + GRACE_SECONDS, self._done.set)
        self._finish_if_quiet()

    def _finish_if_quiet(self) -> None:
        if self._ending and not self._waiting and not any(connection.busy for connection in self._connections):
            self._done.set()

    def _counts(self, due: float, now: float) -> bool:
        """Whether a request belongs to the measured time: by when it was due in an open loop, else by its answer."""
        moment = due if self._load.rate > 0 else now
        return self._start <= moment < self._stop

    def _count_unanswered(self) -> None:
        now = time.perf_counter()
        left = [connection.due for connection in self._connections if connection.busy]
        for due in (*left, *self._waiting):
            if self._start <= due < self._stop or self._load.rate == 0:
                self._unanswered += 1
                self._latencies.append(now - due)

    def _figures(self, cpu: float) -> LoadFigures:
        ordered = sorted(1000 * latency for latency in self._latencies)
        late = sorted(1000 * latency for latency in self._late)
        measured = min(self._stop, time.perf_counter()) - self._start if self._gave_up else self._load.seconds
        return LoadFigures(
            seconds=round(max(measured, 0.0), 3),
            requests=len(ordered),
            rps=round(self._answers / measured, 2) if measured > 0 else 0.0,
            p50_ms=round(quantile(ordered, 0.5), 3),
            p90_ms=round(quantile(ordered, 0.9), 3),
            p99_ms=round(quantile(ordered, 0.99), 3),
            max_ms=round(ordered[-1], 3) if ordered else 0.0,
            statuses={str(status): count for status, count in sorted(self._statuses.items())},
            broken=self._broken,
            unanswered=self._unanswered,
            checked=self._checked,
            right=self._right,
            gave_up=self._gave_up,
            late_p99_ms=round(quantile(late, 0.99), 3),
            generator_us=round(1e6 * cpu / self._seen, 1) if self._seen else 0.0,
        )


def request_bytes(load: Load, body: str) -> bytes:
    """The whole request as it goes over the wire."""
    data = body.encode()
    head = (
        f"POST {load.path} HTTP/1.1\r\nHost: {load.host}:{load.port}\r\nContent-Type: application/json\r\n"
        f"Accept: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    )
    return head.encode() + data


def measured(load: Load) -> LoadFigures:
    """Runs `load` in this process."""

    async def run() -> LoadFigures:
        return await Measurement(load).run()

    return asyncio.run(run())


def main() -> None:
    task, outcome = map(Path, sys.argv[1:3])
    load = Load(**json.loads(task.read_text(encoding="utf-8")))
    # Nothing that is made here lives in cycles, and a collection would look like a slow server.
    gc.disable()
    outcome.write_text(json.dumps(asdict(measured(load))), encoding="utf-8")


if __name__ == "__main__":
    main()
