"""Real processes under steady load, while versions are promoted and rolled back."""

from __future__ import annotations

import json
import os
import random
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import httpx
import pytest

from perdure.model.classifier import load_classifier
from perdure.records import Interaction
from perdure.registry import Registry
from perdure.stream import SqliteStream

pytestmark = pytest.mark.e2e

SECONDS = 60.0
CONNECTIONS = 4
EACH_SECOND = 18
"""Requests that each connection tries to send in a second."""

TOPICS = {
    "refund": "refund money back pay",
    "parcel": "parcel late order where",
    "login": "password login account email",
    "card": "card stolen lost limit",
}
FILLERS = ["is", "my", "the", "a", "i", "want", "to", "please", "help", "can", "you", "not"]
QUESTIONS = (
    "where is my parcel",
    "i want my money back",
    "please help me with my password",
    "my card is lost",
    "can you not raise the limit",
    "refund the order",
)
SETTINGS = {
    "model.features": 256,
    "model.threads": 1,
    "lora.enabled": "false",
    # Whether the versions are good is not the question here: they are made to differ.
    "judge.judge_latency": "false",
    "judge.confidence": 0.51,
    "judge.margin_new_labels": 1.0,
    "judge.new_label_recall": 0.0,
    "judge.group_margin": 1.0,
    "judge.negative_flips": 1.0,
    "judge.calibration": 1.0,
    "judge.prediction_shift": 1.0,
    "judge.drift_min_rows": 1_000_000,
    "serving.refresh_seconds": 0.2,
}
PERDURE = str(Path(sys.executable).with_name("perdure"))


@dataclass
class Answered:
    """One request and what came back."""

    status: int
    seconds: float
    texts: tuple[str, ...]
    body: dict[str, Any]


@dataclass
class Load:
    """Asks until it is stopped; every answer is kept."""

    url: str
    stop: threading.Event = field(default_factory=threading.Event)
    answers: list[Answered] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def ask(self, connection: int) -> None:
        rng = random.Random(connection)
        due = time.perf_counter()
        with httpx.Client(base_url=self.url, timeout=10) as client:
            while not self.stop.is_set():
                texts = tuple(rng.choices(QUESTIONS, k=rng.choice((1, 1, 1, len(QUESTIONS)))))
                sent = {"text": texts[0]} if len(texts) == 1 else {"texts": texts}
                start = time.perf_counter()
                try:
                    answer = client.post("/v1/predict", json=sent)
                    took = time.perf_counter() - start
                    self.answers.append(Answered(answer.status_code, took, texts, answer.json()))
                except (httpx.HTTPError, ValueError) as error:
                    self.failures.append(f"{type(error).__name__}: {error}")
                due = max(due + 1 / EACH_SECOND, time.perf_counter() - 1.0)
                time.sleep(max(due - time.perf_counter(), 0.0))


@dataclass(frozen=True)
class Place:
    """A working folder with settings."""

    folder: Path
    environ: dict[str, str]

    def perdure(self, *arguments: str) -> str:
        ran = subprocess.run(
            [PERDURE, *arguments, "--config", "perdure.yaml"],
            capture_output=True,
            text=True,
            cwd=self.folder,
            env=self.environ,
            timeout=120,
        )
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    def registry(self) -> Registry:
        return Registry(str(self.folder / "var" / "perdure" / "registry"))


@pytest.fixture
def place(tmp_path: Path, tiny_encoder: Path) -> Place:
    """A folder in which three versions were made, each with a label more."""
    lines = [f"{name}: {value}\n" for name, value in SETTINGS.items()]
    sections: dict[str, list[str]] = {"model": [f"  name: {tiny_encoder}\n"]}
    for line in lines:
        section, _, rest = line.partition(".")
        sections.setdefault(section, []).append(f"  {rest}")
    text = "".join(f"{section}:\n{''.join(rest)}" for section, rest in sections.items())
    (tmp_path / "perdure.yaml").write_text(text, encoding="utf-8")
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PERDURE_")}
    made = Place(tmp_path, {**environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"})
    for turn, labels in enumerate((("refund", "parcel"), ("login", "refund"), ("card", "parcel")), start=1):
        rng = random.Random(turn)
        rows = [
            # One in five is about something else, so that no version is sure of anything.
            {"text": sentence(label if rng.random() > 0.2 else rng.choice(labels), rng), "label": label}
            for label in labels
            for _ in range(40)
        ]
        data = tmp_path / f"rows{turn}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        result = json.loads(made.perdure("fit", "--data", data.name, "--json"))
        assert result["champion"] == f"v{turn:06d}-head", result
    return made


@pytest.fixture
def served(place: Place) -> Iterator[tuple[subprocess.Popen[str], str]]:
    with (place.folder / "serve.log").open("wb") as errors:
        process = subprocess.Popen(
            [PERDURE, "serve", "--port", "0", "--config", "perdure.yaml"],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            cwd=place.folder,
            env=place.environ,
        )
    assert process.stdout is not None
    line = process.stdout.readline()
    try:
        assert line.startswith("Perdure serves version v000003-head at http://127.0.0.1:"), line + (
            place.folder / "serve.log"
        ).read_text(encoding="utf-8")
        yield process, line.split()[5]
    finally:
        if process.poll() is None:
            process.kill()
        process.stdout.close()
        process.wait(10)


def expected_answers(place: Place, tmp_path: Path) -> dict[tuple[str, str], tuple[str, float]]:
    """Label and confidence of each version for each question."""
    found = {}
    for name in place.registry().versions():
        classifier = load_classifier(place.registry().fetch(name, tmp_path / "expected"), name, batch=8)
        for text, one in zip(QUESTIONS, classifier.scores(QUESTIONS).predictions(), strict=True):
            found[name, text] = (one.label, one.confidence)
    return found


def sentence(topic: str, rng: random.Random) -> str:
    return " ".join(rng.sample(TOPICS[topic].split(), 2) + rng.sample(FILLERS, 4))


def in_the_stream(place: Place) -> list[Interaction]:
    found: list[Interaction] = []
    offset: dict[str, int] = {}
    with SqliteStream(place.folder / "var" / "perdure" / "stream.db") as stream:
        while (page := stream.read(offset, 1000)).entries:
            offset = dict(page.next)
            records = (entry.record() for entry in page.entries)
            found.extend(record for record in records if isinstance(record, Interaction))
    return found


def wait_for(true: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.05)


@pytest.mark.timeout(280)
def test_versions_are_swapped_under_load_and_nobody_notices(place, served, tmp_path):
    process, url = served
    expected = expected_answers(place, tmp_path)
    # The versions can be told apart by their answers.
    names = [f"v{turn:06d}-head" for turn in (1, 2, 3)]
    for one, other in combinations(names, 2):
        apart = max(abs(expected[one, text][1] - expected[other, text][1]) for text in QUESTIONS)
        assert apart > 0.01, (one, other, apart)
    load = Load(url)
    workers = [threading.Thread(target=load.ask, args=(connection,)) for connection in range(CONNECTIONS)]
    started = time.perf_counter()
    for worker in workers:
        worker.start()
    control = httpx.Client(base_url=url, timeout=30)

    def api(path: str) -> None:
        answer = control.post(path, json={"reason": "a test"})
        assert answer.status_code == 200, answer.text

    steps: list[tuple[float, str, Callable[[], object]]] = [
        (0.15, "v000001-head", lambda: api("/v1/versions/v000001-head/promote")),
        (0.35, "v000002-head", lambda: place.perdure("promote", "v000002-head")),
        (0.55, "v000003-head", lambda: api("/v1/versions/v000003-head/promote")),
        (0.75, "v000002-head", lambda: place.perdure("rollback", "--reason", "a test")),
    ]
    seen_from: dict[str, int] = {}
    try:
        for share, version, step in steps:
            time.sleep(max(started + share * SECONDS - time.perf_counter(), 0.0))
            step()
            wait_for(lambda version=version: load.answers[-1].body.get("version") == version, 10)
            seen_from[f"{share} {version}"] = len(load.answers)
        time.sleep(max(started + SECONDS - time.perf_counter(), 0.0))
    finally:
        load.stop.set()
        for worker in workers:
            worker.join(20)
        control.close()
    elapsed = time.perf_counter() - started
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0

    assert load.failures == []
    assert Counter(answer.status for answer in load.answers) == {200: len(load.answers)}
    assert len(load.answers) / elapsed >= 50, f"{len(load.answers)} requests in {elapsed:.1f} s are no steady load"
    said: dict[str, str] = {}
    for answer in load.answers:
        several = answer.body.get("predictions")
        predictions = several if several is not None else [answer.body]
        assert len(predictions) == len(answer.texts)
        assert {one["version"] for one in predictions} == {answer.body["version"]}, "an answer mixes versions"
        for text, one in zip(answer.texts, predictions, strict=True):
            label, confidence = expected[one["version"], text]
            assert one["label"] == label, (text, one)
            assert one["confidence"] == pytest.approx(confidence, abs=1e-3), (text, one)
            assert one["id"] not in said
            said[one["id"]] = one["version"]
    versions = Counter(answer.body["version"] for answer in load.answers)
    assert set(versions) == {"v000001-head", "v000002-head", "v000003-head"}

    live = [one for one in in_the_stream(place) if one.version is not None]
    assert Counter(one.id for one in live) == dict.fromkeys(said, 1)
    assert {one.id: one.version for one in live} == said
    log = place.registry().promotions()
    assert [entry.version for entry in log[3:]] == [version for _, version, _ in steps]
    assert log[-1].kind == "rollback"
    times = sorted(answer.seconds for answer in load.answers)
    sys.stdout.write(
        f"\n{len(times)} requests ({len(said)} texts) in {elapsed:.0f} s, {len(times) / elapsed:.0f} a second: "
        f"p50 {1000 * statistics.median(times):.1f} ms, p99 {1000 * times[int(0.99 * len(times))]:.1f} ms, "
        f"most {1000 * times[-1]:.1f} ms; by version {dict(sorted(versions.items()))}\n"
    )
