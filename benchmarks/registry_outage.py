"""An hour of `perdure serve` with its object store down: what do those who ask notice, and how does it come back?

    python benchmarks/registry_outage.py [--minutes 60] [--rate 2]

A real `perdure serve` (all-MiniLM-L6-v2, a version fitted on examples/support_desk) whose registry lies in a real
S3-compatible server (deploy/s3). Requests come at a fixed low rate all the while. First the store is there; then it is
down: for the first two thirds nobody listens at its port, for the last third somebody takes connections and never
answers. Before it returns two more replicas are started: one with a copy of the first one's cache, one with none. While
the first replica's port to the store stays shut, another version is promoted through another port; then the store
returns, and the replica must swap to it by itself. Memory, threads, open files and log lines are read all along. Writes
benchmarks/results/registry_outage.json; needs Go 1.25 or newer for the store.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from backtest_clinc import processor
from perdure.registry import Registry

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "deploy" / "s3"))

from server import Server  # noqa: E402 (it lies in no package)

RESULT = ROOT / "benchmarks" / "results" / "registry_outage.json"
EXAMPLE = ROOT / "examples" / "support_desk"
PERDURE = str(Path(sys.executable).with_name("perdure"))
BUCKET = "models"

HANGING_SHARE = 1 / 3
"""Of the outage: the store takes connections and says nothing."""
BEFORE_SECONDS = 30.0
AFTER_SECONDS = 30.0
ROWS = 200
"""Of the example, that the version is fitted on: how good it is is not the question here."""
SAMPLE_SECONDS = 10.0
START_SECONDS = 300.0
RETURN_SECONDS = 300.0
REPLICAS_SECONDS = 240.0
"""Before the end of the outage: when the other replicas are started."""


@dataclass(frozen=True)
class Sample:
    """One look at the process."""

    seconds: float
    """Since the load began."""
    resident_mb: float
    threads: int
    files: int
    log_lines: int


@dataclass
class Phase:
    """What was asked while the store was in one state."""

    store: str
    begin: float
    seconds: list[float] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)
    readiness: Counter[str] = field(default_factory=Counter)
    versions: Counter[str] = field(default_factory=Counter)

    def figures(self, end: float) -> dict[str, Any]:
        times = np.array(self.seconds) * 1000
        shares = {"p50_ms": 50, "p99_ms": 99, "most_ms": 100}
        return {
            "store": self.store,
            "minutes": round((end - self.begin) / 60, 2),
            "requests": sum(self.statuses.values()),
            "statuses": dict(self.statuses),
            "readiness": dict(self.readiness),
            "versions": dict(self.versions),
            **{name: round(float(np.percentile(times, share)), 2) for name, share in shares.items() if len(times)},
        }


class Replica:
    """A `perdure serve` in a folder of its own."""

    def __init__(self, folder: Path, environ: dict[str, str]) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.log = folder / "serve.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [PERDURE, "serve", "--port", "0"],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=folder,
                env={**environ, "PERDURE_STREAM__URL": f"sqlite:{folder / 'stream.db'}"},
            )
        assert self.process.stdout is not None
        begin = time.monotonic()
        self.said = self.process.stdout.readline().strip()
        self.start_seconds = time.monotonic() - begin
        if " at http://" not in self.said:
            raise RuntimeError(f"perdure serve said {self.said!r}: {self.log.read_text(encoding='utf-8')}")
        self.address = self.said.partition("http://")[2].split()[0].rstrip(",")

    def ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(self.address, timeout=30)
        try:
            sent = None if body is None else json.dumps(body)
            connection.request(method, path, sent, {"content-type": "application/json"})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def predict(self, text: str) -> tuple[int, str]:
        """Status, and the version that answered."""
        status, body = self.ask("POST", "/v1/predict", {"text": text})
        return status, json.loads(body).get("version", "") if status == 200 else ""

    def metrics(self) -> dict[str, float]:
        """What it tells Prometheus about its registry."""
        text = self.ask("GET", "/metrics")[1].decode()
        return {
            sample.name: sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name.startswith(("perdure_registry", "perdure_swaps", "perdure_load_failures"))
        }

    def lines(self) -> int:
        return self.log.read_bytes().count(b"\n")

    def sample(self, seconds: float) -> Sample:
        about = Path(f"/proc/{self.process.pid}")
        pages = int((about / "statm").read_text(encoding="ascii").split()[1])
        return Sample(
            seconds=round(seconds, 1),
            resident_mb=round(pages * os.sysconf("SC_PAGESIZE") / 1e6, 2),
            threads=len(list((about / "task").iterdir())),
            files=len(list((about / "fd").iterdir())),
            log_lines=self.lines(),
        )

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(60)
        assert self.process.stdout is not None
        self.process.stdout.close()


class Load:
    """Requests at a fixed rate to one replica, and looks at it, in threads of their own."""

    def __init__(self, replica: Replica, rate: float) -> None:
        rows = (EXAMPLE / "eval.jsonl").read_text(encoding="utf-8").splitlines()
        self._texts = [json.loads(row)["text"] for row in rows]
        self._replica = replica
        self._rate = rate
        self.begin = time.monotonic()
        self.phases = [Phase("there", self.begin)]
        self.ends: list[float] = []
        self.samples: list[Sample] = []
        self._over = threading.Event()
        self._threads = [threading.Thread(target=work) for work in (self._ask, self._look)]
        for thread in self._threads:
            thread.start()

    def phase(self, store: str) -> None:
        """From now on the store is in another state."""
        self.ends.append(time.monotonic())
        self.phases.append(Phase(store, self.ends[-1]))

    def end(self) -> None:
        self.ends.append(time.monotonic())
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _ask(self) -> None:
        number = 0
        while not self._over.wait(max(self.begin + number / self._rate - time.monotonic(), 0.0)):
            phase, begin = self.phases[-1], time.perf_counter()
            try:
                status, served = self._replica.predict(self._texts[number % len(self._texts)])
            except (OSError, http.client.HTTPException) as error:
                phase.statuses[type(error).__name__] += 1
            else:
                phase.seconds.append(time.perf_counter() - begin)
                phase.statuses[str(status)] += 1
                phase.versions[served] += 1
            number += 1

    def _look(self) -> None:
        while not self._over.wait(SAMPLE_SECONDS):
            self.samples.append(self._replica.sample(time.monotonic() - self.begin))
            phase = self.phases[-1]
            try:
                phase.readiness[str(self._replica.ask("GET", "/readyz")[0])] += 1
            except (OSError, http.client.HTTPException) as error:
                phase.readiness[type(error).__name__] += 1


@contextmanager
def hanging(port: int) -> Iterator[None]:
    """Somebody listens at `port`, takes connections, and never says a word."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen(128)
        taken: list[socket.socket] = []

        def take() -> None:
            while True:
                try:
                    taken.append(listener.accept()[0])
                except OSError:
                    return

        thread = threading.Thread(target=take, daemon=True)
        thread.start()
        try:
            yield
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
            for connection in taken:
                connection.close()


def growth(samples: list[Sample], begin: float, end: float) -> dict[str, Any]:
    """Memory, threads and files between two times, in seconds since the load began."""
    kept = [one for one in samples if begin <= one.seconds <= end]
    memory = [one.resident_mb for one in kept]
    part = max(len(kept) // 10, 1)
    return {
        "samples": len(kept),
        "resident_mb_first_tenth": round(float(np.mean(memory[:part])), 1),
        "resident_mb_last_tenth": round(float(np.mean(memory[-part:])), 1),
        "resident_mb_most": max(memory),
        "threads": [min(one.threads for one in kept), max(one.threads for one in kept)],
        "files": [min(one.files for one in kept), max(one.files for one in kept)],
        "log_lines": kept[-1].log_lines - kept[0].log_lines,
    }


def run(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    down = options.minutes * 60.0
    store = Server(folder / "store").start()
    store.make_bucket(BUCKET)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PERDURE_", "AWS_"))}
    environ = {
        **kept,
        **store.environment,
        "PERDURE_REGISTRY__URL": f"s3://{BUCKET}/perdure",
        "PERDURE_STREAM__URL": f"sqlite:{folder / 'fit.db'}",
        "PERDURE_MEMORY__PATH": str(folder / "memory"),
        "PERDURE_MODEL__THREADS": "1",
        "PERDURE_MODEL__NAME": "all-MiniLM-L6-v2",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
    }
    rows = (EXAMPLE / "stream.jsonl").read_text(encoding="utf-8").splitlines()[:ROWS]
    (folder / "rows.jsonl").write_text("\n".join(rows), encoding="utf-8")
    fit = [PERDURE, "fit", "--data", str(folder / "rows.jsonl")]
    subprocess.run(fit, check=True, cwd=folder, env=environ, stdout=subprocess.DEVNULL)
    registry = Registry.over(store.store(BUCKET, prefix="perdure"))
    champion = registry.champion()
    assert champion is not None
    card = registry.card(champion.version)
    other = f"{card.name}-elsewhere"
    files = {name: registry.read(card.name, name) for name in card.files}
    registry.write(card.model_copy(update={"name": other, "parent": card.name}), files)

    first = Replica(folder / "first", environ)
    print(first.said, flush=True)
    load = Load(first, options.rate)
    time.sleep(BEFORE_SECONDS)

    def clock() -> float:
        return time.monotonic() - load.begin

    went = clock()
    print(folder, store.port, first.process.pid)
    print("the store goes down", flush=True)
    store.stop()
    load.phase("stopped")
    time.sleep(down * (1 - HANGING_SHARE))
    during = first.metrics()
    print(json.dumps(during), flush=True)
    with hanging(store.port):
        load.phase("hanging")
        time.sleep(max(down * HANGING_SHARE - min(REPLICAS_SECONDS, down / 10), 0.0))
        replicas = more_replicas(folder, first, environ)
        print(json.dumps(replicas), flush=True)
        time.sleep(max(went + down - clock(), 0.0))
        end_of_outage = first.metrics()
        lines = first.log.read_text(encoding="utf-8").splitlines()
        # A version that is promoted elsewhere: the same objects, at another port.
        elsewhere = Server(store.folder).start()
        Registry.over(elsewhere.store(BUCKET, prefix="perdure")).promote(other, reason="meanwhile", by="elsewhere")
        elsewhere.stop()
    came = clock()
    store.start()
    load.phase("there again")
    begin = time.monotonic()
    swapped = None
    while swapped is None and time.monotonic() < begin + RETURN_SECONDS:
        if first.predict("where is my order")[1] == other:
            swapped = time.monotonic() - begin
        time.sleep(0.2)
    print(f"swapped after {swapped}", flush=True)
    time.sleep(AFTER_SECONDS)
    load.end()
    last = first.metrics()
    first.stop()
    store.stop()
    return {
        "setup": setup(options),
        "phases": [phase.figures(end) for phase, end in zip(load.phases, load.ends, strict=True)],
        "outage": {
            "minutes": round((came - went) / 60, 2),
            "before": growth(load.samples, 0.0, went),
            "during": growth(load.samples, went + 60.0 if down > 120 else went, came),
            "log": lines,
            "metrics_when_stopped": during,
            "metrics_at_the_end": end_of_outage,
        },
        "replicas_started_meanwhile": replicas,
        "return": {"seconds_until_the_other_version_served": swapped and round(swapped, 2), "metrics": last},
        "samples": [asdict(one) for one in load.samples[::6]],
    }


def more_replicas(folder: Path, first: Replica, environ: dict[str, str]) -> dict[str, Any]:
    """What becomes of replicas that start while the store is down."""
    found = {}
    for name in ("with_a_cache", "without_one"):
        place = folder / name
        place.mkdir()
        if name == "with_a_cache":
            shutil.copytree(first.folder / "var" / "perdure" / "cache", place / "var" / "perdure" / "cache")
        replica = Replica(place, environ)
        ready, why = replica.ask("GET", "/readyz")
        status, served = replica.predict("where is my order")
        said = replica.log.read_text(encoding="utf-8").splitlines()
        found[name] = {
            "said": replica.said.replace(replica.address, "ADDRESS"),
            "seconds": round(replica.start_seconds, 1),
            "readyz": [ready, json.loads(why)],
            "predict": [status, served],
            "log": [line.replace(str(place), "FOLDER") for line in said],
        }
        replica.stop()
    return found


def setup(options: argparse.Namespace) -> dict[str, Any]:
    return {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "processor": processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("perdure", "obstore", "onnxruntime", "fastapi", "uvicorn")},
        "minutes": options.minutes,
        "rate_per_second": options.rate,
        "load_average_at_the_end": os.getloadavg(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0, help="that the store is down (default: %(default)s)")
    parser.add_argument("--rate", type=float, default=2.0, help="requests a second (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=RESULT, help="where to write to (default: %(default)s)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        result = run(Path(name), options)
        text = json.dumps(result, indent=1).replace(name, "FOLDER")
    options.out.parent.mkdir(exist_ok=True)
    options.out.write_text(text + "\n", encoding="utf-8")
    print(f"written to {options.out}")


if __name__ == "__main__":
    main()
