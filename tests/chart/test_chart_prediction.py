"""What `helm test` runs in its pod tells a good release from a bad one."""

from __future__ import annotations

import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest


@pytest.fixture(scope="module")
def program(cases: dict[tuple[str, str], Any]) -> list[str]:
    """The command of the rendered pod, with this Python."""
    [container] = cases["monitored-with-key", "4"].one("Pod")["spec"]["containers"]
    python, *rest = container["command"]
    assert python == "python"
    names = {each["name"] for each in container["env"]}
    assert names == {"URL", "ASKS_FOR_KEYS", "API_KEY"}
    return [sys.executable, "-I", *rest]


@contextmanager
def api(answers: dict[str, tuple[int, Any]], key: str = "") -> Iterator[str]:
    """An API with fixed answers by path, and the address where it is."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(*answers[self.path])

        def do_POST(self) -> None:
            assert json.loads(self.rfile.read(int(self.headers["Content-Length"])))["text"]
            refused = key and self.headers.get("Authorization") != f"Bearer {key}"
            self._answer(*((401, {"detail": "this needs an API key"}) if refused else answers[self.path]))

        def _answer(self, status: int, body: Any) -> None:
            content = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            """Nobody reads it."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def run(program: list[str]) -> Callable[..., tuple[int, str]]:
    """Exit code and what was said."""

    def ask(url: str, **given: str) -> tuple[int, str]:
        environment = {**os.environ, "URL": url, "ASKS_FOR_KEYS": "no", "PATIENCE_SECONDS": "0", **given}
        done = subprocess.run(program, env=environment, capture_output=True, text=True, check=False, timeout=60)
        return done.returncode, done.stdout + done.stderr

    return ask


READY = {"/readyz": (200, {"ready": True}), "/v1/predict": (200, {"label": "refund", "version": "v000003-head"})}


def test_a_prediction_is_good(run: Callable[..., tuple[int, str]]) -> None:
    with api(READY) as url:
        assert run(url) == (0, "v000003-head predicts 'refund'\n")


def test_a_key_is_sent(run: Callable[..., tuple[int, str]]) -> None:
    with api(READY, key="secret") as url:
        assert run(url, ASKS_FOR_KEYS="yes", API_KEY="secret\n")[0] == 0
        code, said = run(url, ASKS_FOR_KEYS="yes", API_KEY="wrong")
        assert code == 1
        assert "answers 401, not 200" in said
        assert "wrong" not in said
        code, said = run(url, ASKS_FOR_KEYS="yes")
        assert code == 0
        assert "name one in tests.apiKey.existingSecret" in said


def test_an_open_door_is_noticed(run: Callable[..., tuple[int, str]]) -> None:
    with api(READY) as url:
        code, said = run(url, ASKS_FOR_KEYS="yes")
    assert code == 1
    assert "a request without a key, not 401" in said


def test_what_is_not_ready_is_said(run: Callable[..., tuple[int, str]]) -> None:
    with api({"/readyz": (503, {"reason": "no version is promoted yet"})}) as url:
        code, said = run(url)
    assert code == 1
    assert "answers 503, not 200" in said
    assert "no version is promoted yet" in said
    code, said = run(url)
    assert code == 1, "nobody is there any more"
    assert "answers 0, not 200" in said
