"""An API made by hand, which fails as told, and both clients behind one face."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest

from perdure.client import AsyncClient, Client, attempts


@dataclass(frozen=True)
class Asked:
    """One request as it arrived."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    connection: int
    at: float

    @property
    def fields(self) -> dict[str, Any]:
        return json.loads(self.body)


Act = Callable[[socket.socket, "Faulty"], bool]
"""Does something instead of an answer; whether the connection goes on."""


class Faulty:
    """Does one act of its script for each request, and repeats the last one for ever."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        self.script: list[Act] = []
        self.asked: list[Asked] = []
        self.tls: ssl.SSLContext | None = None
        """Set, connections are encrypted."""
        self.closed = 0
        self.connections = 0
        self._listener = socket.create_server((host, 0))
        self.port = self._listener.getsockname()[1]
        self.url = f"http://{host}:{self.port}"
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._accepting = threading.Thread(target=self._accept)
        self._accepting.start()

    def stop(self) -> None:
        # Closing a listener wakes nobody who waits for it.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._accepting.join(5)
        self._listener.close()
        for thread in self._threads:
            thread.join(5)
            assert not thread.is_alive(), "a connection was left open"

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            thread = threading.Thread(target=self._serve, args=(connection, self.connections))
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket, number: int) -> None:
        with ExitStack() as opened:
            opened.callback(connection.close)
            try:
                if self.tls is not None:
                    connection = opened.enter_context(self.tls.wrap_socket(connection, server_side=True))
                while (asked := _request(connection, number)) is not None:
                    with self._lock:
                        self.asked.append(asked)
                        act = self.script[min(len(self.asked), len(self.script)) - 1]
                    if not act(connection, self):
                        return
            except OSError:
                return
            finally:
                with self._lock:
                    self.closed += 1


def _request(connection: socket.socket, number: int) -> Asked | None:
    head = b""
    while b"\r\n\r\n" not in head:
        received = connection.recv(65_536)
        if not received:
            return None
        head += received
    head, _, body = head.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    while len(body) < int(headers.get("content-length", 0)):
        body += connection.recv(65_536)
    method, path, _ = first.split(" ")
    return Asked(method, path, headers, body, number, time.monotonic())


class Acts:
    """What a server may do with a request."""

    PREDICTION = {"id": "id-1", "label": "order", "confidence": 0.9, "version": "v1", "recorded": True}  # noqa: RUF012
    PROMOTED = {  # noqa: RUF012
        "promotion": {"number": 2, "version": "v2", "kind": "promote", "at": 1.0, "by": "api", "reason": "why"},
        "serving": "v1",
    }

    @staticmethod
    def raw(fields: Any, status: int = 200, *headers: str) -> bytes:
        body = fields if isinstance(fields, bytes) else json.dumps(fields).encode()
        lines = [f"HTTP/1.1 {status} Said", f"Content-Length: {len(body)}", *headers, "", ""]
        return "\r\n".join(lines).encode() + body

    def answer(self, fields: Any, status: int = 200, *headers: str) -> Act:
        def act(connection: socket.socket, server: Faulty) -> bool:
            connection.sendall(self.raw(fields, status, *headers))
            return True

        return act

    @property
    def good(self) -> Act:
        return self.answer(self.PREDICTION)

    @property
    def promoted(self) -> Act:
        return self.answer(self.PROMOTED)

    def good_and_gone(self, connection: socket.socket, server: Faulty) -> bool:
        """Answers, promises to stay, and closes."""
        connection.sendall(self.raw(self.PREDICTION))
        return False

    def half(self, connection: socket.socket, server: Faulty) -> bool:
        connection.sendall(self.raw(self.PREDICTION)[:-10])
        return False

    @staticmethod
    def silent(connection: socket.socket, server: Faulty) -> bool:
        """Closes without a word."""
        return False

    @staticmethod
    def reset(connection: socket.socket, server: Faulty) -> bool:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return False

    @staticmethod
    def hang(connection: socket.socket, server: Faulty) -> bool:
        """Until the client leaves."""
        connection.settimeout(20)
        connection.recv(1)
        return False

    def drip(self, *, head: bool) -> Act:
        """Sends a byte now and then, of the head or of the body; no single wait for one is long."""

        def act(connection: socket.socket, server: Faulty) -> bool:
            whole = self.raw(self.PREDICTION)
            start = 0 if head else whole.index(b"\r\n\r\n") + 4
            connection.sendall(whole[:start])
            for place in range(start, len(whole)):
                connection.sendall(whole[place : place + 1])
                time.sleep(0.05)
            return False

        return act


class Driven:
    """An `AsyncClient` that can be asked like a `Client`."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        self._runner = asyncio.Runner()
        self._closed = False
        self._client = AsyncClient(*arguments, **named)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._client, name)
        return lambda *arguments, **named: self._runner.run(method(*arguments, **named))

    def __repr__(self) -> str:
        return repr(self._client)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._runner.run(self._client.close())
            self._runner.close()


@pytest.fixture
def acts() -> Acts:
    return Acts()


@pytest.fixture
def api() -> Iterator[Faulty]:
    server = Faulty()
    yield server
    server.stop()


@pytest.fixture(params=[Client, Driven], ids=["blocking", "asyncio"])
def client_of(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, api: Faulty) -> Iterator[Any]:
    """Makes a client of either kind; pauses are short. At the end every connection must have been closed."""
    monkeypatch.setattr(attempts, "FIRST_PAUSE", 0.01)
    opened: list[Any] = []

    def make(url: str | None = None, **named: Any) -> Any:
        opened.append(request.param(url or api.url, **named))
        return opened[-1]

    yield make
    for one in opened:
        one.close()
    end = time.monotonic() + 5
    while api.closed < api.connections:
        assert time.monotonic() < end, "a connection was left open"
        time.sleep(0.005)


@pytest.fixture
def client(client_of: Callable[..., Any]) -> Any:
    return client_of()


@pytest.fixture
def free_port() -> int:
    """A port that nobody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
