"""The base install, as the serving image has it: real processes that find only what deploy/locks/serving.lock names."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
import yaml

from perdure.commands import learning
from perdure.config import load_settings
from perdure.memory import open_memory
from perdure.model.layout import ADAPTER_GRAPH, ENCODER_GRAPH, ENGINE_FILE, TOKENIZER
from perdure.records import Interaction
from perdure.registry import Registry
from perdure.registry.card import CARD
from perdure.stream import open_stream
from perdure_services.serving.rpc import open_inference_pb2 as pb

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).resolve().parents[2]
TOPICS = {"refund": "refund money back", "parcel": "parcel late order"}
FILLERS = ["where", "is", "my", "the", "want", "help", "can"]
QUESTION = "where is my parcel please"
PERDURE = "from perdure.cli import main; main()"
EXTRA = "which is not installed: install perdure[cpu] or perdure[gpu]"

NOT_THERE = """
# An environment without these: nobody finds them, as if they had never been installed.
import sys
from importlib.machinery import PathFinder

NAMES = frozenset({names!r})


class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in NAMES else super().find_spec(name, path, target)


sys.meta_path[sys.meta_path.index(PathFinder)] = Without
"""


def not_locked() -> list[str]:
    """Modules of installed packages that the serving image does not have."""
    lock = (ROOT / "deploy" / "locks" / "serving.lock").read_text(encoding="utf-8")
    there = {"perdure", *re.findall(r"^([a-z0-9-]+)==", lock, re.M)}

    def known(distribution: str) -> bool:
        return re.sub(r"[-_.]+", "-", distribution).lower() in there

    return sorted(name for name, by in packages_distributions().items() if not any(map(known, by)))


@dataclass(frozen=True)
class Place:
    """A folder with a registry of three versions, memory and stream; `perdure` runs in it without what trains."""

    folder: Path
    environ: dict[str, str]

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        settings = () if arguments[0] == "keys" else ("--config", "perdure.yaml")
        return subprocess.run(
            [sys.executable, "-c", PERDURE, *arguments, *settings],
            capture_output=True,
            text=True,
            cwd=self.folder,
            env=self.environ,
            timeout=200,
            check=False,
        )

    def told(self, *arguments: str) -> str:
        ran = self.run(*arguments)
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    def registry(self) -> Registry:
        return Registry(str(self.folder / "registry"))


@dataclass(frozen=True)
class Api:
    """`perdure serve`, once it answers."""

    process: subprocess.Popen[str]
    url: str
    log: Path

    def client(self, key: str = "") -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=20, headers={"x-api-key": key} if key else {})


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Path) -> Place:
    """Version 1 is fitted where everything is installed; 2 has the same files, and 3 was not exported."""
    folder = tmp_path_factory.mktemp("base")
    rows = [
        {"text": f"{word} {filler} please", "label": label, "subject": f"{word}-{filler}"}
        for label, words in TOPICS.items()
        for word in words.split()
        for filler in FILLERS
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    settings = {
        "model": {"name": str(tiny_encoder), "features": 256, "threads": 1, "export": "float32"},
        "lora": {"enabled": False},
        "judge": {"judge_latency": False},
        "serving": {"refresh_seconds": 0.1},
        "registry": {"url": str(folder / "registry")},
        "memory": {"path": str(folder / "memory")},
        "stream": {"url": f"sqlite:{folder / 'stream.db'}"},
    }
    (folder / "perdure.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PERDURE_")}
    environ["OMP_NUM_THREADS"] = "1"
    learning.fit(folder / "rows.jsonl", config=folder / "perdure.yaml", as_json=True)
    (folder / "site").mkdir()
    (folder / "site" / "sitecustomize.py").write_text(NOT_THERE.format(names=not_locked()), encoding="utf-8")
    path = os.pathsep.join(filter(None, (str(folder / "site"), environ.get("PYTHONPATH"))))
    made = Place(folder, {**environ, "PYTHONPATH": path})
    registry = made.registry()
    files = {file.name: file.read_bytes() for file in registry.fetch("v000001-head", folder / "files").iterdir()}
    card = registry.card("v000001-head")
    del files[CARD]
    shared = {name: files.pop(name) for name in tuple(files) if card.files[name].shared}
    for name, without in (
        ("v000002-head", ()),
        ("v000003-head", (ENGINE_FILE, ENCODER_GRAPH, ADAPTER_GRAPH, TOKENIZER)),
    ):
        kept, also = ({key: data for key, data in those.items() if key not in without} for those in (files, shared))
        registry.write(card.model_copy(update={"name": name, "parent": "v000001-head", "files": {}}), kept, also)
    return made


@pytest.fixture
def serve(place: Place, tmp_path: Path) -> Iterator[Callable[..., Api]]:
    started: list[subprocess.Popen[str]] = []

    def start(*settings: str) -> Api:
        log = tmp_path / f"serve-{len(started)}.log"
        extra = [part for setting in settings for part in ("--set", setting)]
        with log.open("wb") as errors:
            process = subprocess.Popen(
                [sys.executable, "-c", PERDURE, "serve", "--port", "0", "--config", "perdure.yaml", *extra],
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                cwd=place.folder,
                env=place.environ,
            )
        started.append(process)
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r"serves .*(http://127\.0\.0\.1:\d+)", line)
        assert found is not None, line + log.read_text()
        return Api(process, found[1], log)

    yield start
    for process in started:
        process.kill()
        process.wait(10)
        assert process.stdout is not None
        process.stdout.close()


def until(true: Callable[[], Any], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.05)


def test_the_environment_has_no_training_in_it(place: Place) -> None:
    names = "torch transformers scipy faiss onnx pandas peft sklearn sentence_transformers apscheduler pytest".split()
    code = f"from importlib.util import find_spec; print([name for name in {names!r} if find_spec(name)])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=place.environ, check=True)
    assert ran.stdout == "[]\n"


def test_searching_memory_names_the_extra(place: Place) -> None:
    code = "from perdure_replay.views import faiss_module; faiss_module()"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=place.environ, check=False)
    assert ran.stderr.splitlines()[-1] == f"perdure.errors.ExtraMissing: searching memory needs FAISS, {EXTRA}"


def test_it_answers_swaps_and_records(place: Place, serve: Callable[..., Api]) -> None:
    keys = [
        place.told("keys", "create", name, "--scopes", scopes, "--file", "keys.json")
        for name, scopes in (("user", "predict,feedback,explain"), ("operator", "admin,metrics"))
    ]
    user, admin = (one.split()[-1] for one in keys)
    api = serve("serving.keys=keys.json", "serving.grpc_port=0")
    with api.client(user) as client, api.client(admin) as operator:
        assert client.get("/readyz").status_code == 200
        assert api.client().post("/v1/predict", json={"text": QUESTION}).status_code == 401
        answer = client.post("/v1/predict", json={"text": QUESTION}).json()
        assert (answer["label"], answer["recorded"]) == ("parcel", True)
        assert client.post("/v1/feedback", json={"id": answer["id"], "label": "parcel"}).json()["recorded"] is True
        vectors = client.post("/v1/embeddings", json={"texts": [QUESTION]}).json()
        assert vectors["space"]
        tensor = {"name": "text", "shape": [1], "datatype": "BYTES", "data": [QUESTION]}
        inferred = client.post("/v2/models/perdure/infer", json={"inputs": [tensor]}).json()
        assert next(one["data"] for one in inferred["outputs"] if one["name"] == "label") == ["parcel"]
        assert over_grpc(api, user) == b"parcel"
        explained = client.post("/v1/predict", json={"text": QUESTION, "explain": "neighbours"})
        # Memory is read here; it has no embeddings before a second turn.
        assert (explained.status_code, explained.json()["title"]) == (409, "Conflict")
        assert 'route="/v1/predict",status="200"' in operator.get("/metrics").text
        served = lambda: client.post("/v1/predict", json={"text": QUESTION}).json()["version"]  # noqa: E731
        place.told("promote", "v000002-head", "--reason", "a test")
        until(lambda: served() == "v000002-head")
        # Not exported: it would need torch, and what serves goes on serving.
        assert operator.post("/v1/versions/v000003-head/promote", json={"reason": "a test"}).status_code == 200
        problem = f"version v000003-head, which was not exported, needs torch, {EXTRA}"
        until(lambda: problem in api.log.read_text())
        assert "Traceback" not in api.log.read_text()
        assert served() == "v000002-head"
        assert client.get("/readyz").status_code == 200
        place.told("rollback", "--reason", "a test")
        champion = json.loads(place.told("versions", "--json"))["champion"]
        assert champion == "v000002-head"
        until(lambda: served() == champion)
        gone = operator.delete("/v1/subjects/refund-where")
        assert (gone.status_code, gone.json()["removed"]) == (202, 2), gone.text
    api.process.send_signal(signal.SIGTERM)
    assert api.process.wait(30) == 0


def over_grpc(api: Api, key: str) -> bytes:
    found = re.search(r"gRPC at (127\.0\.0\.1:\d+)", api.log.read_text())
    assert found is not None
    request = pb.ModelInferRequest(model_name="perdure")
    tensor = request.inputs.add(name="text", datatype="BYTES", shape=[1])
    tensor.contents.bytes_contents.append(QUESTION.encode())
    with grpc.insecure_channel(found[1]) as channel:
        call = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=pb.ModelInferRequest.SerializeToString,
            response_deserializer=pb.ModelInferResponse.FromString,
        )
        answer = call(request, timeout=20, metadata=(("authorization", f"Bearer {key}"),))
    label: bytes = next(one for one in answer.outputs if one.name == "label").contents.bytes_contents[0]
    return label


def test_several_processes_serve(serve: Callable[..., Api]) -> None:
    api = serve("serving.processes=2")
    for _ in range(6):
        assert httpx.post(f"{api.url}/v1/predict", json={"text": QUESTION}, timeout=20).json()["label"] == "parcel"


@pytest.mark.kafka
def test_records_go_to_kafka(kafka_broker: Any, serve: Callable[..., Api], tmp_path: Path) -> None:
    url, topic = f"kafka://{kafka_broker.address}", f"base-{os.getpid()}-{time.time_ns()}"
    api = serve(f"stream.url={url}", f"stream.topic={topic}", f"spool.path={tmp_path / 'spool'}")
    answer = httpx.post(f"{api.url}/v1/predict", json={"text": QUESTION}, timeout=20).json()
    assert answer["recorded"] is True
    until(lambda: "\nperdure_stream_acknowledged_total 1.0" in httpx.get(f"{api.url}/metrics", timeout=20).text)
    api.process.send_signal(signal.SIGTERM)
    assert api.process.wait(30) == 0


def test_memory_can_be_looked_at_and_made_to_forget(place: Place) -> None:
    with open_memory(load_settings(place.folder / "perdure.yaml"), read_only=True) as remembered:
        before = remembered.counts().samples
    told = json.loads(place.told("forget", "money-help", "--json"))
    assert told["stream_entries_removed"] > 0
    assert told["samples_removed"] == 1
    assert json.loads(place.told("memory", "--json"))["samples"] == before - 1


def test_what_needs_an_extra_says_which(place: Place, tmp_path: Path) -> None:
    stream = f"stream.url=sqlite:{tmp_path / 'stream.db'}"
    commands = (
        ("fit", "--data", "rows.jsonl", "--set", stream, "--set", f"registry.url={tmp_path / 'registry'}"),
        ("train", "--once"),
        ("ingest",),
        ("backtest", "--stream", "rows.jsonl", "--eval", "rows.jsonl", "--out", "out"),
        ("serve", "--port", "0", "--set", "serving.engine=torch"),
    )
    with ThreadPoolExecutor(2) as threads:
        for command, ran in zip(commands, threads.map(lambda one: place.run(*one), commands), strict=True):
            assert ran.returncode == 2, (command, ran.stdout, ran.stderr)
            assert ran.stdout == "", command
            assert ran.stderr.count("\n") == 1, (command, ran.stderr)
            assert ran.stderr.endswith(f"{EXTRA}\n"), (command, ran.stderr)
    assert not (tmp_path / "stream.db").exists(), "what cannot be learned from must not be recorded"


def test_what_was_recorded_stands_in_the_stream(place: Place) -> None:
    texts, offset = [], {}
    with open_stream(load_settings(place.folder / "perdure.yaml").stream) as opened:
        while (page := opened.read(offset, 500)).entries:
            texts += [entry.record().text for entry in page.entries if isinstance(entry.record(), Interaction)]
            offset = page.next
    assert QUESTION in texts
