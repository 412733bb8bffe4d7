"""A registry, a stream and models that answer differently by version."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from starlette.testclient import TestClient

from perdure.config import Settings
from perdure.model.base import Classifier, Scores
from perdure.model.double import KeywordClassifier
from perdure.records import Record
from perdure.registry import Card, Registry
from perdure.registry.card import EncoderCard
from perdure.stream import MemoryStream, Stream
from perdure_services.keys import add_key, issue
from perdure_services.serving import create_app
from perdure_services.serving import keyring as keyring_module
from perdure_services.serving.server import listen, url_of
from perdure_services.serving.service import Service

KEYWORDS = {"order": "order", "refund": "refund", "login": "password"}


class ScriptedClassifier(Classifier):
    """Answers what its script says; notes the texts of each call and waits at its gate."""

    def __init__(self, version: str, script: Callable[[Sequence[str]], Scores] | None = None) -> None:
        self.version = version
        self._inner = KeywordClassifier(version, {f"{label}@{version}": word for label, word in KEYWORDS.items()})
        self.labels = self._inner.labels
        self.calls: list[tuple[str, ...]] = []
        self.threads: set[str] = set()
        self.gate = threading.Event()
        self.gate.set()
        self._script = script or self._inner.scores

    def scores(self, texts: Sequence[str]) -> Scores:
        self.calls.append(tuple(texts))
        self.threads.add(threading.current_thread().name)
        assert self.gate.wait(10), "the gate stayed shut"
        return self._script(texts)


class Shelf:
    """Loads scripted versions; one may be made to fail, or to take its time."""

    def __init__(self) -> None:
        self.made: dict[str, list[ScriptedClassifier]] = {}
        self.errors: dict[str, Exception] = {}
        self.scripts: dict[str, Callable[[Sequence[str]], Scores]] = {}
        self.asked: list[str] = []
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, version: str) -> Classifier:
        self.asked.append(version)
        assert self.gate.wait(10), "the gate stayed shut"
        if version in self.errors:
            raise self.errors[version]
        classifier = ScriptedClassifier(version, self.scripts.get(version))
        self.made.setdefault(version, []).append(classifier)
        return classifier


@pytest.fixture
def shelf() -> Shelf:
    return Shelf()


@pytest.fixture
def scripted() -> type[ScriptedClassifier]:
    return ScriptedClassifier


@pytest.fixture
def publish() -> Callable[..., None]:
    """Writes a version's card and, unless told otherwise, promotes it."""

    def write(
        registry: Registry, name: str, *, promote: bool = True, parent: str | None = None, **fields: object
    ) -> None:
        card = Card(
            name=name,
            parent=parent,
            kind="head" if parent else "first",
            created=1.0,
            encoder=EncoderCard(name="double", fingerprint="0"),
            labels=tuple(KEYWORDS),
            metrics={"accuracy": 0.5},
            verdict={"outcome": "promote", "sentence": f"{name} is better."},
        ).model_copy(update=fields)
        registry.write(card, {"model.json": b"{}"})
        if promote:
            registry.promote(name, reason="a test", by="tests")

    return write


@pytest.fixture
def registry() -> Registry:
    return Registry("memory://")


@pytest.fixture
def stream() -> Iterator[MemoryStream]:
    with MemoryStream() as opened:
        yield opened


@pytest.fixture
def until() -> Callable[[Callable[[], Any]], None]:
    """Waits until something is true."""

    def wait(true: Callable[[], Any], seconds: float = 5.0) -> None:
        end = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < end, "it never came true"
            time.sleep(0.005)

    return wait


@pytest.fixture
def records() -> Callable[[Stream], list[Record]]:
    """All records of a stream, in order."""

    def read(stream: Stream) -> list[Record]:
        found: list[Record] = []
        page = stream.read({}, 1000)
        while page.entries:
            found.extend(entry.record() for entry in page.entries)
            page = stream.read(page.next, 1000)
        return found

    return read


@pytest.fixture
def serving(
    registry: Registry, stream: MemoryStream, shelf: Shelf, until: Callable[..., None]
) -> Callable[..., AbstractContextManager[TestClient]]:
    """Runs the app over the fixtures above; waits for the first look at the registry."""

    @contextmanager
    def start(raise_server_exceptions: bool = True, **settings: Any) -> Iterator[TestClient]:
        values = {"refresh_seconds": 0.02, "drain_seconds": 2.0, **settings}
        tree = Settings().with_values({f"serving.{name}": value for name, value in values.items()})
        app = create_app(tree, registry=registry, stream=stream, load=shelf)
        with TestClient(app, raise_server_exceptions=raise_server_exceptions) as client:
            service: Service = app.state.service
            assert service.champions.wait_for_first_look(5)
            yield client

    return start


@pytest.fixture
def service_of() -> Callable[[TestClient], Service]:
    def find(client: TestClient) -> Service:
        service: Service = client.app.state.service  # type: ignore[attr-defined]
        return service

    return find


@pytest.fixture
def listening(registry: Registry, stream: MemoryStream, shelf: Shelf) -> Iterator[Callable[..., tuple[str, Service]]]:
    """Starts the app behind a real server; its URL and service. Settings are dotted, with `__` for the dot."""
    started: list[tuple[uvicorn.Server, threading.Thread]] = []

    def start(load: Callable[[str], Classifier] = shelf, http: str = "auto", **settings: Any) -> tuple[str, Service]:
        values = {name.replace("__", "."): value for name, value in settings.items()}
        tree = Settings().with_values({"serving.refresh_seconds": 0.02, **values})
        app = create_app(tree, registry=registry, stream=stream, load=load)
        server = uvicorn.Server(uvicorn.Config(app, http=http, log_config=None, ws="none", access_log=False))
        listener = listen("127.0.0.1", 0)
        url = url_of(listener)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        started.append((server, thread))
        service: Service = app.state.service
        assert service.champions.wait_for_first_look(30)
        return url, service

    yield start
    for server, thread in started:
        server.should_exit = True
        thread.join(10)
        assert not thread.is_alive()


# ── API keys ──
KEYS_MADE = datetime(2026, 11, 22, 12, tzinfo=UTC)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Of API keys."""
    return tmp_path / "keys.json"


@pytest.fixture
def make(file: Path) -> Callable[..., str]:
    """Adds a key to the file and returns it."""

    def add(name: str = "web", *scopes: Any, **named: Any) -> str:
        issued = issue(name, scopes or ("predict",), created=KEYS_MADE, **named)
        add_key(file, issued.key)
        return issued.text

    return add


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is looked at again with every request."""
    monkeypatch.setattr(keyring_module, "LOOK_SECONDS", 0.0)


@pytest.fixture
def guarded(
    registry: Registry, publish: Callable[..., None], serving: Callable[..., TestClient], file: Path
) -> Callable[..., TestClient]:
    """Starts an app that asks for keys."""
    publish(registry, "v1")
    publish(registry, "v2", parent="v1")

    def start(**settings: Any) -> TestClient:
        return serving(keys=str(file), **settings)

    return start


@pytest.fixture
def channel() -> Iterator[Callable[[TestClient], Any]]:
    """Opens a channel to the gRPC server beside an app."""
    import grpc

    opened: list[Any] = []

    def connect(client: TestClient) -> Any:
        opened.append(grpc.insecure_channel(f"127.0.0.1:{client.app.state.grpc_port}"))
        return opened[-1]

    yield connect
    for one in opened:
        one.close()
