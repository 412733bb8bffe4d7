from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from perdure.turn import CandidateResult, TurnResult
from perdure_services.demo.progress import Progress
from perdure_services.demo.scenario import Scenario, read_scenario

STREAM = [
    {"text": "where is my order", "label": "order", "session": 0},
    {"text": "refund please", "label": "refund", "session": 0},
    {"text": "order late", "label": "order", "session": 1},
    {"text": "password lost", "label": "password", "session": 1},
    {"text": "refund my order", "label": "refund", "session": 1, "told": "order"},
    {"text": "password again", "label": "password", "session": 1, "labelled": False},
    {"text": "order again", "label": "order", "session": 2},
    {"text": "invoice", "label": "invoice", "session": 2, "subject": "anna"},
]
EVALUATION = [
    {"text": "an order", "label": "order", "session": 0},
    {"text": "a refund", "label": "refund", "session": 0},
    {"text": "a password", "label": "password", "session": 1},
    {"text": "an invoice", "label": "invoice", "session": 2},
]


@pytest.fixture
def data(tmp_path: Path) -> Callable[..., Path]:
    """A folder with the demo's data."""

    def write(stream: list[dict[str, Any]] = STREAM, evaluation: list[dict[str, Any]] = EVALUATION) -> Path:
        folder = tmp_path / "data"
        folder.mkdir(exist_ok=True)
        (folder / "stream.jsonl").write_text("".join(json.dumps(row) + "\n" for row in stream))
        (folder / "eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in evaluation))
        return folder

    return write


@pytest.fixture
def scenario(data: Callable[..., Path]) -> Scenario:
    return read_scenario(data())


@pytest.fixture
def progress_in(tmp_path: Path) -> Iterator[Callable[..., Progress]]:
    """A journal in `tmp_path`; opening it again closes the one before."""
    opened: list[Progress] = []

    def start(identity: str = "mine") -> Progress:
        for one in opened:
            one.close()
        opened.append(Progress(tmp_path, {"data": identity}))
        opened[-1].begin()
        return opened[-1]

    yield start
    for one in opened:
        one.close()


@pytest.fixture
def progress(progress_in: Callable[..., Progress]) -> Progress:
    return progress_in()


@pytest.fixture
def turn_result() -> Callable[..., TurnResult]:
    def make(number: int = 2, version: str = "v2", outcome: str = "promote", **fields: Any) -> TurnResult:
        candidate = CandidateResult(version, "head", outcome, f"{outcome.title()}: a reason.", 2.0, 2.0)
        return TurnResult(number, "v1", "v2", (candidate,), {"learn": 3, "quarantine": 1}, **fields)

    return make


class Api:
    """Answers like serving; each text's first word is its label."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self.times: list[float] = []
        self.broken: list[tuple[str, int]] = []
        """Paths and status codes to fail with, in turn."""
        self.delay = 0.0
        self.version = "v1"
        self._lock = threading.Lock()
        self.url = ""

    def answer(self, path: str, fields: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        with self._lock:
            self.requests.append((path, fields))
            self.times.append(time.monotonic())
            number = len(self.requests)
            if self.broken and self.broken[0][0] == path:
                return self.broken.pop(0)[1], {"error": "scripted"}
        time.sleep(self.delay)
        if path == "/v1/feedback":
            return 202, {"recorded": True}
        label = fields["text"].split()[0]
        return 200, {
            "id": f"id-{number}", "label": label, "confidence": 0.9, "version": self.version, "recorded": True,
        }  # fmt: skip

    def asked(self, path: str) -> list[dict[str, Any]]:
        return [fields for one, fields in self.requests if one == path]


@pytest.fixture
def api() -> Iterator[Api]:
    made = Api()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            fields = json.loads(self.rfile.read(int(self.headers["content-length"])))
            status, answer = made.answer(self.path, fields)
            body = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    made.url = f"http://127.0.0.1:{server.server_address[1]}"
    yield made
    server.shutdown()
    thread.join(5)
    server.server_close()


@pytest.fixture
def until() -> Callable[..., None]:
    """Waits until something is true."""

    def wait(true: Callable[[], Any], seconds: float = 10.0) -> None:
        end = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < end, "it never came true"
            time.sleep(0.01)

    return wait


@pytest.fixture
def gone(until: Callable[..., None]) -> Callable[..., None]:
    """Waits until a process is no more, or is a zombie that nobody has taken away yet."""

    def dead(pid: int) -> bool:
        try:
            return "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return True

    def wait(pid: int, seconds: float = 5.0) -> None:
        assert pid != os.getpid()
        until(lambda: dead(pid), seconds)

    return wait
