"""The process as it runs: an end in good order, and one without."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from perdure.client import Client
from perdure.errors import ApiUnreachable
from perdure.registry import Registry
from perdure.stream import SqliteStream

pytestmark = pytest.mark.e2e

PROGRAM = """
import gc, sys, time
from perdure.config import Settings
from perdure.model.double import KeywordClassifier
from perdure.registry import Registry
from perdure.stream import SqliteStream
from perdure_services.serving.server import listen, run

class Slow(KeywordClassifier):
    def scores(self, texts):
        if "slow" in texts:
            print("computing", flush=True)
            time.sleep(1.0)
        if "rubbish" in texts:
            print(gc.get_freeze_count(), flush=True)
        return super().scores(texts)

folder = sys.argv[1]
settings = Settings().with_values({"serving.refresh_seconds": 0.05, "serving.drain_seconds": 5})
with SqliteStream(folder + "/stream.db") as stream, listen("127.0.0.1", 0) as listener:
    run(
        settings,
        listener=listener,
        registry=Registry(folder + "/registry"),
        stream=stream,
        load=lambda version: Slow(version, {"order": "order", "refund": "refund"}),
        announce=lambda line: print(line, flush=True),
    )
print("ended", flush=True)
"""


@pytest.fixture
def started(tmp_path, publish):
    publish(Registry(str(tmp_path / "registry")), "v1")
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PERDURE_")}
    with (tmp_path / "stderr").open("wb") as errors:
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**environ, "OMP_NUM_THREADS": "1"},
        )
    line = process.stdout.readline()
    assert line.startswith("Perdure serves version v1 at http://127.0.0.1:"), (tmp_path / "stderr").read_text()
    yield process, line.split()[5]
    if process.poll() is None:
        process.kill()
    process.stdout.close()
    process.wait(10)


def recorded(folder: Path) -> list[str]:
    found, offset = [], {}
    with SqliteStream(folder / "stream.db") as stream:
        while (page := stream.read(offset, 500)).entries:
            offset = page.next
            found.extend(getattr(entry.record(), "id", None) or entry.record().interaction for entry in page.entries)
    return found


def test_modules_are_not_looked_through_for_rubbish(started):
    process, url = started
    with Client(url) as api:
        api.predict("rubbish")
    assert int(process.stdout.readline()) > 10_000


def test_sigterm_lets_requests_under_way_finish_and_writes_everything(started, tmp_path):
    process, url = started
    answers = []

    def ask():
        with Client(url, tries=1) as api:
            answers.append(api.predict("slow"))

    asking = threading.Thread(target=ask)
    asking.start()
    assert process.stdout.readline() == "computing\n"
    process.send_signal(signal.SIGTERM)
    asking.join(10)
    assert answers[0].recorded
    assert process.stdout.readline() == "ended\n"
    assert process.wait(10) == 0
    assert recorded(tmp_path) == [answers[0].id]
    assert "Traceback" not in (tmp_path / "stderr").read_text()


def test_kill_loses_nothing_that_was_acknowledged(started, tmp_path):
    process, url = started
    acknowledged = []
    enough = threading.Event()

    def ask(worker):
        with Client(url, tries=1, timeout=5) as api:
            for number in range(100_000):
                try:
                    answer = api.predict(f"order {worker} {number}")
                    if answer.recorded:
                        acknowledged.append(answer.id)
                    name = f"said-{worker}-{number}"
                    if api.feedback(name, "refund").recorded:
                        acknowledged.append(name)
                except ApiUnreachable:
                    return
                if len(acknowledged) > 200:
                    enough.set()

    workers = [threading.Thread(target=ask, args=(worker,)) for worker in range(4)]
    for worker in workers:
        worker.start()
    assert enough.wait(20)
    time.sleep(0.05)
    process.kill()
    for worker in workers:
        worker.join(10)
    found = recorded(tmp_path)
    assert len(found) == len(set(found))
    assert set(acknowledged) <= set(found)
