"""`perdure serve` with several processes: to whoever asks it is one server."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import grpc
import httpx
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from perdure.config import SpoolSettings
from perdure.registry import Card, Registry
from perdure.registry.card import EncoderCard
from perdure.stream import MemoryStream, SqliteStream
from perdure_services.keys import add_key, issue
from perdure_services.serving.spool.spool import Spool
from perdure_services.serving.spool.spooled_stream import with_spool

pytestmark = pytest.mark.e2e

WORKER = """
import os, sys, time
from perdure.errors import StreamError
from perdure.model.double import KeywordClassifier
from perdure.stream import MemoryStream
from perdure_services.serving import worker

class Slow(KeywordClassifier):
    def scores(self, texts):
        time.sleep(1.0 if "slow" in texts else 0.002)
        return super().scores(texts)

class Away(MemoryStream):
    remote = True

    def _append(self, added):
        raise StreamError("no broker")

    def forget(self, subject, until):
        return 0

if os.path.exists("away"):
    worker.open_stream = lambda settings: Away()
words = {"order": "order", "refund": "refund"}

def load(version):
    time.sleep(1.0 if os.path.exists("slow") else 0)
    return Slow(version, words)

sys.exit(worker.main(lambda settings, registry: load))
"""

PARENT = """
import json, logging, sys
from perdure import logs
from perdure.config import Settings
from perdure_services.serving.processes import start_fleet
from perdure_services.serving.server import listen

logs.begin(logging.WARNING)
logging.getLogger("perdure_services.serving").setLevel(logging.INFO)
values, worker = json.loads(sys.argv[1]), sys.argv[2]
settings = Settings().with_values(values)
start_fleet(settings, listen("127.0.0.1", 0), command=[sys.executable, "-c", worker])
"""

PERDURE = str(Path(sys.executable).with_name("perdure"))

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)

SETTINGS = {
    "serving.processes": 2,
    "serving.refresh_seconds": 0.1,
    "serving.drain_seconds": 5,
    "serving.lame_duck_seconds": 3,
    "stream.url": "sqlite:stream.db",
    "registry.url": "registry",
}


class Running:
    """A server with several processes, in a folder of its own."""

    def __init__(self, folder: Path, **settings: object) -> None:
        self.folder = folder
        registry = Registry(str(folder / "registry"))
        for name in ("v1", "v2"):
            encoder = EncoderCard(name="double", fingerprint="0")
            card = Card(name=name, parent=None, kind="first", created=1.0, encoder=encoder, labels=("order", "refund"))
            registry.write(card, {"model.json": b"{}"})
        registry.promote("v1", reason="a test", by="tests")
        values = {**SETTINGS, **{name.replace("__", "."): value for name, value in settings.items()}}
        environ = {name: value for name, value in os.environ.items() if not name.startswith("PERDURE_")}
        with (folder / "stderr").open("wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-c", PARENT, json.dumps(values), WORKER],
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                cwd=folder,
                env={**environ, "OMP_NUM_THREADS": "1"},
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.startswith("Perdure serves version v1 at http://127.0.0.1:"), line + self.log()
        assert line.endswith("with 2 processes\n")
        self.url = line.split()[5]

    def log(self) -> str:
        return (self.folder / "stderr").read_text(encoding="utf-8")

    def client(self, **headers: str) -> httpx.Client:
        """Its connection goes to a process of the server's choice, and stays there."""
        return httpx.Client(base_url=self.url, timeout=10, headers=headers)

    def ask(self, method: str, path: str, headers: dict[str, str] | None = None, **sent: object) -> httpx.Response:
        with self.client(**(headers or {})) as client:
            return client.request(method, path, **sent)

    def pids(self) -> list[int]:
        parent = self.process.pid
        return [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]

    def stop(self) -> None:
        assert self.process.stdout is not None
        self.process.kill()
        self.process.stdout.close()
        self.process.wait(10)


def samples(text: str, name: str, **labels: str) -> dict[str, float]:
    """The values of a series, by process."""
    return {
        sample.labels["process"]: sample.value
        for family in parse_text(text)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    }


def restarts(server: Running, key: dict[str, str]) -> list[float]:
    return sorted(samples(server.ask("GET", "/metrics", key).text, "perdure_process_restarts_total").values())


def until(true, seconds: float = 10.0):
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.05)
    return found


def recorded(folder: Path) -> Counter[str]:
    found: Counter[str] = Counter()
    offset: dict[str, int] = {}
    with SqliteStream(folder / "stream.db") as stream:
        while (page := stream.read(offset, 1000)).entries:
            offset = dict(page.next)
            found.update(entry.record().id for entry in page.entries)
    return found


@pytest.fixture(scope="module")
def keys() -> dict[str, str]:
    return {}


@pytest.fixture(scope="module")
def server(tmp_path_factory, keys):
    folder = tmp_path_factory.mktemp("server")
    made = issue("web", ("predict", "feedback", "admin", "metrics"), created=NOON)
    few = issue("few", ("predict",), created=NOON, rate=0.001, burst=5)
    for name, issued in (("web", made), ("few", few)):
        add_key(folder / "keys.json", issued.key)
        keys[name] = issued.text
    running = Running(folder, serving__keys="keys.json")
    yield running
    running.stop()


@pytest.fixture
def key(keys, server):
    """The header of a key that may do all that is done here."""
    return {"X-API-Key": keys["web"]}


@pytest.fixture
def start(tmp_path):
    """Starts a server of this test's own."""
    started = []

    def begin(**settings):
        started.append(Running(tmp_path, **settings))
        return started[-1]

    yield begin
    for running in started:
        running.stop()


def test_whoever_is_asked_tells_the_metrics_of_all(server, key):
    before = server.ask("GET", "/metrics", key).text
    for _ in range(6):
        assert server.ask("POST", "/v1/predict", key, json={"text": "my order"}).json()["label"] == "order"
    # One connection to each process.
    with server.client(**key) as one, server.client(**key) as other:
        told = [client.get("/metrics") for client in (one, other)]
        openly = one.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    for answer in told:
        assert answer.headers["content-type"].startswith("text/plain; version=")
        counts = {}
        for text, sign in ((before, -1), (answer.text, 1)):
            for process, value in samples(
                text, "perdure_http_requests_total", route="/v1/predict", status="200"
            ).items():
                counts[process] = counts.get(process, 0) + sign * value
        assert sum(counts.values()) == 6
        assert min(counts.values()) > 0, "both have answered"
        assert samples(answer.text, "perdure_process_up") == {"0": 1, "1": 1}
        assert samples(answer.text, "process_resident_memory_bytes").keys() == {"0", "1"}
        families = list(parse_text(answer.text))
        assert len({family.name for family in families}) == len(families)
        assert all("process" in sample.labels for family in families for sample in family.samples)
    assert openly.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    histogram = {family.name: family for family in parse_openmetrics(openly.text)}[
        "perdure_http_request_duration_seconds"
    ]
    assert {sample.labels["process"] for sample in histogram.samples} == {"0", "1"}


def test_the_rate_of_a_key_is_that_of_the_server(server, keys):
    statuses = [
        server.ask("POST", "/v1/predict", {"X-API-Key": keys["few"]}, json={"text": "order"}).status_code
        for _ in range(10)
    ]
    assert Counter(statuses) == {200: 5, 429: 5}


def test_what_one_promotes_all_serve(server, key):
    def versions():
        with server.client(**key) as one, server.client(**key) as other:
            return {client.post("/v1/predict", json={"text": "order"}).json()["version"] for client in (one, other)}

    assert versions() == {"v1"}
    assert server.ask("POST", "/v1/versions/v2/promote", key).status_code == 200
    until(lambda: versions() == {"v2"})
    assert server.ask("POST", "/v1/rollback", key).status_code == 200
    until(lambda: versions() == {"v1"})


def test_one_is_killed_under_load_and_the_other_answers(server, key):
    pids = server.pids()
    stop = threading.Event()
    answers, cut = [], []

    def ask(number):
        while not stop.is_set():
            try:
                with server.client(**key) as client:
                    for _ in range(5):
                        answers.append(client.post("/v1/predict", json={"text": f"order {number}"}))
            except httpx.HTTPError as error:
                cut.append((time.monotonic(), error))

    workers = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for worker in workers:
        worker.start()
    try:
        until(lambda: len(answers) > 20)
        (server.folder / "slow").touch()
        killed = time.monotonic()
        os.kill(pids[0], signal.SIGKILL)
        seen = len(answers)
        until(lambda: len(answers) > seen + 20)
        until(lambda: set(server.pids()) - set(pids))
        until(
            lambda: (
                sorted(samples(server.ask("GET", "/metrics", key).text, "perdure_process_restarts_total").values())
                == [0, 1]
            )
        )
    finally:
        stop.set()
        for worker in workers:
            worker.join(10)
    # Only what was under way there when it died, or on its way to it.
    assert all(at - killed < 1.0 for at, _ in cut)
    assert len(cut) <= 2 * len(workers)
    assert Counter(answer.status_code for answer in answers) == {200: len(answers)}
    assert all(answer.json()["recorded"] for answer in answers)
    found = recorded(server.folder)
    assert max(found.values()) == 1
    assert {answer.json()["id"] for answer in answers} <= set(found)
    assert "ended by SIGKILL: it is started again" in server.log()
    with server.client(**key) as one, server.client(**key) as other:
        assert [client.get("/readyz").status_code for client in (one, other)] == [200, 200]


def test_sigterm_ends_what_is_under_way_and_takes_more_while_the_lame_duck_walks(server, key):
    assert server.ask("GET", "/readyz").status_code == 200
    time.sleep(0.6)  # Until the process that was not asked has heard of it.
    slow = []
    asking = threading.Thread(target=lambda: slow.append(server.ask("POST", "/v1/predict", key, json={"text": "slow"})))
    asking.start()
    time.sleep(0.3)
    begin = time.monotonic()
    server.process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    late = [server.ask("POST", "/v1/predict", key, json={"text": "order"}) for _ in range(4)]
    assert [answer.status_code for answer in late] == [200] * 4
    assert server.ask("GET", "/readyz").json()["reason"] == "stopping"
    asking.join(10)
    assert server.process.wait(15) == 0, server.log()
    assert 3.0 <= time.monotonic() - begin < 10
    assert server.log().count("requests are taken for 3.0 seconds more") == 2
    assert slow[0].json()["recorded"]
    assert {answer.json()["id"] for answer in (*slow, *late)} <= set(recorded(server.folder))
    assert "Traceback" not in server.log()


def test_forgetting_reaches_the_spools_of_all_and_what_is_left_is_taken_over(start, tmp_path):
    (tmp_path / "away").touch()
    running = start(spool__path="spool", stream__url="kafka://127.0.0.1:1", serving__drain_seconds=1)
    with running.client() as one, running.client() as other:
        for client in (one, other):
            for subject in ("ann", "bob"):
                client.post("/v1/predict", json={"text": "order", "subject": subject})
        spooled = samples(one.get("/metrics").text, "perdure_spool_records")
        assert spooled == {"0": 2, "1": 2}
        answer = one.delete("/v1/subjects/ann")
        assert answer.status_code == 202
        assert answer.json()["removed"] == 2
        # The request itself waits in the spool of who was asked.
        assert sorted(samples(one.get("/metrics").text, "perdure_spool_records").values()) == [1, 2]
        # One that cannot forget is told of, and not passed over.
        os.kill(running.pids()[1], signal.SIGKILL)
        refused = running.ask("DELETE", "/v1/subjects/bob")
        assert refused.status_code == 503
        assert "process 1 of this server has not removed what it has" in refused.json()["detail"]
        until(lambda: running.ask("DELETE", "/v1/subjects/bob").status_code == 202)
        for _ in range(3):
            running.ask("POST", "/v1/predict", json={"text": "order", "subject": "eve"})
    pids = running.pids()
    running.process.kill()
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))
    assert "the parent process has died: this one ends too" in running.log()
    beyond = MemoryStream()
    beyond.remote = True
    with with_spool(beyond, SpoolSettings(path=str(tmp_path / "spool"))) as stream:
        waiting = [payload.subject for payload in everything(stream.spool)]
    assert Counter(waiting)["eve"] == 3
    assert set(waiting) == {None, "eve"}, "the others are forgotten; None are the requests for it"
    assert not list((tmp_path / "spool" / "process-1").glob("*.log"))


def test_the_command_starts_them_though_there_is_nothing_to_serve_yet(tmp_path):
    with (tmp_path / "stderr").open("wb") as errors:
        process = subprocess.Popen(
            [PERDURE, "serve", "--port", "0", "--set", "serving.processes=2", "--set", "serving.grpc_port=0"],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            cwd=tmp_path,
        )
    try:
        line = process.stdout.readline()
        log = (tmp_path / "stderr").read_text(encoding="utf-8")
        assert line.startswith("Perdure listens at http://127.0.0.1:"), line + log
        url = line.split()[3].rstrip(",")
        health = [httpx.get(f"{url}{path}").status_code for path in ("/healthz", "/startupz", "/readyz")]
        assert health == [200, 200, 503]
        ports = re.findall(r"gRPC at 127.0.0.1:(\d+)", log)
        assert len(ports) == 2, log
        assert len(set(ports)) == 1, "both answer at one port"
        with grpc.insecure_channel(f"127.0.0.1:{ports[0]}") as channel:
            live = channel.unary_unary("/inference.GRPCInferenceService/ServerLive")
            assert live(b"", timeout=10)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
        assert process.stdout.read() == ""
        assert "Traceback" not in (tmp_path / "stderr").read_text(encoding="utf-8")
    finally:
        process.kill()
        process.stdout.close()
        process.wait(10)


def test_settings_that_no_process_can_use_end_it_with_2(tmp_path):
    ran = subprocess.run(
        [PERDURE, "serve", "--port", "0", "--set", "serving.processes=2", "--set", "serving.tls_certificate=none.pem"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=60,
    )
    assert ran.returncode == 2, ran.stderr
    assert "perdure serve: cannot read serving.tls_certificate none.pem" in ran.stderr
    assert ran.stdout == ""


def everything(spool: Spool):
    batch = spool.read(spool.start)
    while batch.end > batch.start:
        yield from batch.payloads
        batch = spool.read(batch.end)
