"""Two real processes behind a balancer that honours readiness: both are restarted under load, and nobody notices."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from perdure.records import Interaction
from perdure.registry import Card, Registry
from perdure.registry.card import EncoderCard
from perdure.stream import SqliteStream

pytestmark = pytest.mark.e2e

CONNECTIONS = 6
LOOK_SECONDS = 0.1
"""How often the balancer asks for readiness."""

PROGRAM = """
import sys, time
from perdure.config import Settings
from perdure.model.double import KeywordClassifier
from perdure.registry import Registry
from perdure.stream import SqliteStream
from perdure_services.serving.server import listen, run

class Slow(KeywordClassifier):
    def scores(self, texts):
        time.sleep(0.03)
        return super().scores(texts)

folder = sys.argv[1]
settings = Settings().with_values(
    {"serving.refresh_seconds": 0.05, "serving.drain_seconds": 10, "serving.lame_duck_seconds": 1}
)
with SqliteStream(folder + "/stream.db") as stream, listen("127.0.0.1", 0) as listener:
    run(
        settings,
        listener=listener,
        registry=Registry(folder + "/registry"),
        stream=stream,
        load=lambda version: Slow(version, {"parcel": "parcel", "refund": "refund"}),
        announce=lambda line: print(line, flush=True),
    )
"""
"""`perdure serve`, but for its model, which takes 30 ms and needs no torch: a restart takes two seconds, not ten."""


@dataclass
class Served:
    """One `perdure serve`."""

    process: subprocess.Popen[str]
    url: str
    log: Path

    def stop(self) -> float:
        """Seconds that it took to end after SIGTERM."""
        start = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(30) == 0, self.log.read_text(encoding="utf-8")
        return time.monotonic() - start


@dataclass
class Balancer:
    """Sends each request to the next process that is ready, as a service mesh would, over connections that it keeps."""

    stop: threading.Event = field(default_factory=threading.Event)
    ready: dict[str, bool] = field(default_factory=dict)
    answers: list[tuple[str, int]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    turn: int = 0

    def look(self) -> None:
        """Asks for readiness until stopped."""
        with httpx.Client(timeout=2) as client:
            while not self.stop.is_set():
                for url in list(self.ready):
                    try:
                        self.ready[url] = client.get(f"{url}/readyz").status_code == 200
                    except httpx.HTTPError:
                        self.ready[url] = False
                time.sleep(LOOK_SECONDS)

    def ask(self) -> None:
        """Asks for predictions until stopped; nothing is tried again."""
        with httpx.Client(timeout=10) as client:
            while not self.stop.is_set():
                ready = [url for url, yes in list(self.ready.items()) if yes]
                if not ready:
                    self.failures.append("no process is ready")
                    time.sleep(0.05)
                    continue
                self.turn += 1
                url = ready[self.turn % len(ready)]
                try:
                    answer = client.post(f"{url}/v1/predict", json={"text": "where is my parcel"})
                    self.answers.append((url, answer.status_code))
                except httpx.HTTPError as error:
                    self.failures.append(f"{url}: {type(error).__name__}: {error}")
                time.sleep(0.02)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[], Served]]:
    """Starts one more process over one registry and one stream."""
    registry = Registry(str(tmp_path / "registry"))
    encoder = EncoderCard(name="double", fingerprint="0")
    card = Card(name="v1", parent=None, kind="first", created=1.0, encoder=encoder, labels=("parcel", "refund"))
    registry.write(card, {"model.json": b"{}"})
    registry.promote("v1", reason="a test", by="tests")
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PERDURE_")}
    started: list[Served] = []

    def begin() -> Served:
        log = tmp_path / f"serve{len(started)}.log"
        with log.open("wb") as errors:
            process = subprocess.Popen(
                [sys.executable, "-c", PROGRAM, str(tmp_path)],
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env={**environ, "OMP_NUM_THREADS": "1"},
            )
        started.append(Served(process, "", log))
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("Perdure serves version v1 at"), line + log.read_text(encoding="utf-8")
        started[-1].url = line.split()[5]
        return started[-1]

    yield begin
    for served in started:
        if served.process.poll() is None:
            served.process.kill()
        assert served.process.stdout is not None
        served.process.stdout.close()
        served.process.wait(10)


def recorded(folder: Path) -> int:
    count = 0
    offset: dict[str, int] = {}
    with SqliteStream(folder / "stream.db") as stream:
        while (page := stream.read(offset, 1000)).entries:
            offset = dict(page.next)
            live = (entry.record() for entry in page.entries)
            count += sum(isinstance(one, Interaction) and one.version is not None for one in live)
    return count


@pytest.mark.timeout(120)
def test_no_request_fails_while_every_process_is_restarted(start, tmp_path):
    serving = [start(), start()]
    balancer = Balancer(ready={served.url: False for served in serving})
    looking = threading.Thread(target=balancer.look)
    looking.start()
    workers = [threading.Thread(target=balancer.ask) for _ in range(CONNECTIONS)]
    took = []
    seen = []
    try:
        end = time.monotonic() + 20
        while not all(balancer.ready.values()):
            assert time.monotonic() < end, balancer.ready
            time.sleep(0.02)
        for worker in workers:
            worker.start()
        for place in (0, 1):
            time.sleep(1.0)
            seen.append(len(balancer.answers))
            took.append(serving[place].stop())
            gone = serving[place].url
            serving[place] = start()
            balancer.ready[serving[place].url] = False
            end = time.monotonic() + 20
            while not balancer.ready[serving[place].url]:
                assert time.monotonic() < end, serving[place].log.read_text(encoding="utf-8")
                time.sleep(0.02)
            del balancer.ready[gone]
        time.sleep(0.5)
    finally:
        balancer.stop.set()
        looking.join(10)
        for worker in workers:
            if worker.ident is not None:
                worker.join(20)
    for served in serving:
        took.append(served.stop())

    assert balancer.failures == []
    assert Counter(status for _, status in balancer.answers) == {200: len(balancer.answers)}
    asked = Counter(url for url, _ in balancer.answers)
    assert len(asked) == 4, "every process has answered"
    assert min(seen[0], seen[1] - seen[0], len(balancer.answers) - seen[1]) > 20, "there was load all the while"
    # Each took requests for a second more, since it was asked for readiness, and none used up its time to drain.
    assert all(1.0 <= seconds < 6.0 for seconds in took), took
    assert recorded(tmp_path) == len(balancer.answers)
    for served in serving:
        assert "Traceback" not in served.log.read_text(encoding="utf-8")
