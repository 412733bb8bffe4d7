"""A real `perdure serve` before a real broker, steady load on it, and what a fresh memory makes of the topic."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from perdure.config import Settings, StreamSettings
from perdure.memory import IngestCounts, ingest, open_memory
from perdure.records import Feedback, Interaction
from perdure.stream.kafka import KafkaStream

FULL = os.environ.get("PERDURE_FULL_FAULTS") == "1"
"""Outages as long as in production's drills; read before tests begin, since each of them cleans the environment."""

CONNECTIONS = 2
EACH_SECOND = 20
"""Predictions that each connection tries to get in a second."""

FEEDBACK_EVERY = 5

LABELS = ("refund", "parcel", "login", "card")

SETTINGS = {
    "model.features": 256,
    "model.export": "none",
    "model.threads": 1,
    "lora.enabled": "false",
    "judge.judge_latency": "false",
    "stream.partitions": 3,
    # Shorter than the long outages, so that the library gives up at least once, and longer than nothing.
    "stream.delivery_seconds": 5,
}
PERDURE = str(Path(sys.executable).with_name("perdure"))


@dataclass(frozen=True)
class Asked:
    """One prediction that was asked for; status 0 where no answer came."""

    text: str
    at: float
    status: int
    id: str | None = None
    recorded: bool = False


@dataclass(frozen=True)
class Said:
    """One label that was given; status 0 where no answer came."""

    id: str
    label: str
    at: float
    status: int
    recorded: bool = False


@dataclass
class Api:
    """A `perdure serve` process; its folder outlives it."""

    folder: Path
    arguments: list[str]
    environ: dict[str, str]
    url: str = ""
    process: subprocess.Popen[str] | None = None

    @property
    def log(self) -> str:
        """What it logged, over all its starts."""
        return (self.folder / "serve.log").read_text(encoding="utf-8")

    @property
    def spool(self) -> Path:
        return self.folder / "spool"

    def start(self) -> Api:
        """Starts it, again after it was killed; returns when it answers."""
        self.launch()
        self.answers()
        return self

    def launch(self) -> None:
        """Starts it, and does not wait for it."""
        self.folder.mkdir(exist_ok=True)
        with (self.folder / "serve.log").open("ab") as errors:
            self.process = subprocess.Popen(
                [PERDURE, "serve", "--port", "0", *self.arguments],
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                cwd=self.folder,
                env=self.environ,
            )

    def answers(self) -> None:
        """Waits until it says that it answers."""
        assert self.process is not None
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.startswith("Perdure serves version v000001-head at http://127.0.0.1:"), line + self.log
        self.url = line.split()[5]

    def kill(self) -> None:
        """SIGKILL."""
        assert self.process is not None
        assert self.process.stdout is not None
        self.process.kill()
        self.process.wait(10)
        self.process.stdout.close()

    def metric(self, name: str, **labels: str) -> float:
        """One series of /metrics; 0 where it is not there."""
        text = httpx.get(f"{self.url}/metrics", timeout=5).text
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name == f"perdure_{name}" and sample.labels == labels:
                    return float(sample.value)
        return 0.0

    def drained(self, seconds: float = 40.0) -> None:
        """Waits until the broker has acknowledged everything."""
        until(lambda: self.metric("records_unsent") == self.metric("spool_records") == 0, seconds)


@dataclass
class Load:
    """Asks at a fixed rate until it is stopped, and labels every fifth answer; all is kept. No text comes twice."""

    api: Api
    asked: list[Asked] = field(default_factory=list)
    said: list[Said] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)
    _workers: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> Load:
        self._workers = [threading.Thread(target=self._run, args=(number,)) for number in range(CONNECTIONS)]
        for worker in self._workers:
            worker.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for worker in self._workers:
            worker.join(30)

    def wait(self, seconds: float) -> int:
        """Lets it go on for so long; the predictions that were asked for meanwhile."""
        before = len(self.asked)
        time.sleep(seconds)
        return len(self.asked) - before

    def since(self, at: float) -> list[Asked]:
        return [one for one in list(self.asked) if one.at >= at]

    @property
    def recorded(self) -> int:
        """Records that the API has said to be recorded."""
        return sum(one.recorded for one in self.asked) + sum(one.recorded for one in self.said)

    @property
    def sent(self) -> int:
        """Records that the API was given."""
        return len(self.asked) + len(self.said)

    def _run(self, connection: int) -> None:
        due = time.monotonic()
        with httpx.Client(timeout=10) as client:
            for number in count():
                if self._stop.is_set():
                    return
                self._ask(client, connection, number)
                # After an outage of the API what was missed is not made up for.
                due = max(due + 1 / EACH_SECOND, time.monotonic() - 1.0)
                time.sleep(max(due - time.monotonic(), 0.0))

    def _ask(self, client: httpx.Client, connection: int, number: int) -> None:
        text, at = f"where is my parcel {connection} {number}", time.monotonic()
        status, body = _post(client, f"{self.api.url}/v1/predict", {"text": text})
        if status == 200:
            self.asked.append(Asked(text, at, status, body["id"], body["recorded"]))
        else:
            self.asked.append(Asked(text, at, status))
        if status == 200 and number % FEEDBACK_EVERY == 0:
            label = LABELS[number // FEEDBACK_EVERY % len(LABELS)]
            status, told = _post(client, f"{self.api.url}/v1/feedback", {"id": body["id"], "label": label})
            self.said.append(Said(body["id"], label, at, status, status == 202 and told["recorded"]))


@dataclass(frozen=True)
class Arrived:
    """What a fresh memory made of the whole topic."""

    rows: Mapping[str, tuple[str, str | None]]
    """Text and label of each interaction by its id, as the memory has them."""
    feedback: frozenset[tuple[str, str]]
    """Interaction and label of each feedback in the topic."""
    deliveries: int
    """Entries of the topic, repeated ones included."""
    totals: IngestCounts
    waiting: int
    """Feedback whose interaction is not there."""

    def check(self, load: Load) -> None:
        """What was answered recorded is in memory exactly once, and nothing that was never sent."""
        recorded = {one.id: one.text for one in load.asked if one.recorded}
        assert len(recorded) == sum(one.recorded for one in load.asked), "an id was given twice"
        texts = {id: text for id, (text, _) in self.rows.items()}
        lost = recorded.keys() - texts.keys()
        assert not lost, f"{len(lost)} of {len(recorded)} interactions that were answered recorded did not arrive"
        assert texts.items() >= recorded.items()
        assert set(texts.values()) <= {one.text for one in load.asked}, "something arrived that was never sent"
        assert len(set(texts.values())) == len(texts), "one request arrived under two ids"
        answered = {one.text: one.id for one in load.asked if one.id is not None}
        assert all(answered.get(text, id) == id for id, text in texts.items()), "an answer named another id"

        told = {(one.id, one.label) for one in load.said if one.recorded}
        assert not told - self.feedback, f"{len(told - self.feedback)} of {len(told)} labels did not arrive"
        assert self.feedback <= {(one.id, one.label) for one in load.said}
        joined = {(id, label) for id, (_, label) in self.rows.items() if label is not None}
        assert joined == {(id, label) for id, label in self.feedback if id in self.rows}
        assert self.waiting == len(self.feedback) - len(joined)

        totals = self.totals
        assert (totals.interactions, totals.joined) == (len(self.rows), len(joined))
        assert totals.quarantined == totals.lost == totals.expired == totals.corrected == 0
        assert totals.repeated == self.deliveries - len(self.rows) - len(self.feedback)

    def tell(self, name: str, load: Load) -> None:
        """The counts, for whoever reads the test's output."""
        asked, said = load.asked, load.said
        sys.stdout.write(
            f"\n{name}: {len(asked)} predictions asked, {sum(one.recorded for one in asked)} answered recorded, "
            f"{len(self.rows)} in memory; {len(said)} labels given, {sum(one.recorded for one in said)} answered "
            f"recorded, {len(self.feedback)} arrived; {self.totals.repeated} delivered again; statuses "
            f"{dict(Counter(one.status for one in asked))} and {dict(Counter(one.status for one in said))}\n"
        )


def until(true: Callable[[], bool], seconds: float) -> None:
    """Waits until it is so."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"it did not come true within {seconds:g} s"
        time.sleep(0.05)


def _post(client: httpx.Client, url: str, sent: Mapping[str, str]) -> tuple[int, dict[str, Any]]:
    try:
        answer = client.post(url, json=sent)
        return answer.status_code, answer.json()
    except (httpx.HTTPError, ValueError):
        return 0, {}


@pytest.fixture(scope="session")
def served_folder(tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `perdure.yaml` and a registry in which one version is promoted."""
    folder = tmp_path_factory.mktemp("served")
    sections: dict[str, list[str]] = {"model": [f"  name: {tiny_encoder}\n"], "registry": [f"  url: {folder}/reg\n"]}
    for name, value in SETTINGS.items():
        section, _, rest = name.partition(".")
        sections.setdefault(section, []).append(f"  {rest}: {value}\n")
    text = "".join(f"{section}:\n{''.join(rest)}" for section, rest in sections.items())
    (folder / "perdure.yaml").write_text(text, encoding="utf-8")
    rng = random.Random(1)
    words = "money back late order password account stolen limit my the please help".split()
    rows = [
        json.dumps({"text": " ".join([label, *rng.sample(words, 4)]), "label": label})
        for label in LABELS
        for _ in range(12)
    ]
    (folder / "rows.jsonl").write_text("\n".join(rows), encoding="utf-8")
    made = subprocess.run(
        [PERDURE, "fit", "--data", "rows.jsonl", "--config", "perdure.yaml", "--json"],
        capture_output=True,
        text=True,
        cwd=folder,
        env=_environ(),
        timeout=120,
    )
    assert made.returncode == 0, made.stderr
    assert json.loads(made.stdout)["champion"] == "v000001-head"
    return folder


@pytest.fixture
def load_on() -> type[Load]:
    return Load


@pytest.fixture
def wait_until() -> Callable[[Callable[[], bool], float], None]:
    return until


@pytest.fixture
def lasting() -> Callable[[float, float], float]:
    """Of a long outage and a short one, in seconds, the one that this run is for."""
    return lambda long, short: long if FULL else short


@pytest.fixture
def topic() -> str:
    return f"faults-{uuid4().hex[:12]}"


@pytest.fixture
def make_api(served_folder: Path, tmp_path: Path, topic: str) -> Iterator[Callable[..., Api]]:
    """Makes an API of this test, before the broker at `address`; it is not started yet."""
    made: list[Api] = []

    def make(address: str, topic: str = topic, **settings: object) -> Api:
        values = {"stream.url": f"kafka://{address}", "stream.topic": topic, "spool.path": "spool"}
        values |= {name.replace("__", "."): str(value) for name, value in settings.items()}
        chosen = [part for name, value in values.items() for part in ("--set", f"{name}={value}")]
        made.append(
            Api(tmp_path / f"api-{len(made)}", ["--config", str(served_folder / "perdure.yaml"), *chosen], _environ())
        )
        return made[-1]

    yield make
    for api in made:
        if api.process is not None and api.process.poll() is None:
            api.kill()


@pytest.fixture
def arrive(topic: str, tmp_path: Path) -> Callable[..., Arrived]:
    """Ingests this test's topic, at the broker at the address given, into a fresh memory."""

    def run(address: str, topic: str = topic) -> Arrived:
        settings = Settings(stream=StreamSettings(url=f"kafka://{address}", topic=topic)).with_values(
            {"memory.path": str(tmp_path / f"memory-{topic}")}
        )
        with KafkaStream((address,), settings.stream) as stream, open_memory(settings) as memory:
            ingest(stream, memory)
            memory.freeze(champion=None, promotion=1)
            rows = {row.id: (row.text, row.label) for row in memory.rows()}
            counts = memory.counts()
            feedback, deliveries, offset = set(), 0, {}
            while (page := stream.read(offset, 1000)).entries:
                offset, deliveries = dict(page.next), deliveries + len(page.entries)
                for record in (entry.record() for entry in page.entries):
                    assert isinstance(record, Interaction | Feedback)
                    if isinstance(record, Feedback):
                        feedback.add((record.interaction, record.label))
        return Arrived(rows, frozenset(feedback), deliveries, counts.totals, counts.waiting_feedback)

    return run


def _environ() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PERDURE_")}
    return {**kept, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
