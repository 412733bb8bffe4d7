"""What a signal starts, and how long the end may take."""

from __future__ import annotations

import asyncio
import signal
import threading
import time

import pytest
import uvicorn

from perdure.config import Settings
from perdure.errors import StreamError
from perdure_services.serving import create_app
from perdure_services.serving import service as module
from perdure_services.serving.server import KEEP_ALIVE_SECONDS, Server, run


@pytest.fixture
def server(registry, publish, shelf, stream):
    publish(registry, "v1")
    tree = Settings().with_values({"serving.lame_duck_seconds": 0.3, "serving.refresh_seconds": 0.02})
    app = create_app(tree, registry=registry, stream=stream, load=shelf)
    return Server(uvicorn.Config(app, log_config=None), app.state.service, lambda: None)


def exits(server):
    """Whether the next tick ends it."""
    return asyncio.run(server.on_tick(1))


def test_whoever_asks_for_readiness_is_given_time_to_see_it_go(server):
    service = server._service
    asyncio.run(service.ready())
    server.handle_exit(signal.SIGTERM, None)
    assert asyncio.run(service.ready()).reason == "stopping"
    assert not exits(server)
    time.sleep(0.31)
    assert exits(server)


def test_where_nobody_asks_for_readiness_it_ends_at_once(server, monkeypatch):
    server.handle_exit(signal.SIGTERM, None)
    assert exits(server)


def test_who_asked_long_ago_does_not_count(server, monkeypatch):
    asyncio.run(server._service.ready())
    monkeypatch.setattr(module, "BALANCED_SECONDS", 0.0)
    server.handle_exit(signal.SIGTERM, None)
    assert exits(server)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_it_at_once(server, number):
    asyncio.run(server._service.ready())
    server.handle_exit(signal.SIGTERM, None)
    assert not exits(server)
    server.handle_exit(number, None)
    assert exits(server)
    assert not server.force_exit, "requests under way are answered all the same"
    server.handle_exit(signal.SIGINT, None)
    assert server.force_exit


def test_a_person_at_the_keyboard_does_not_wait(server):
    asyncio.run(server._service.ready())
    server.handle_exit(signal.SIGINT, None)
    assert exits(server)
    assert not server.force_exit


def test_the_end_takes_no_longer_than_told_though_the_model_hangs(registry, publish, serving, shelf, until, service_of):
    publish(registry, "v1")
    with serving(drain_seconds=30.0) as client:
        service = service_of(client)
        (model,) = shelf.made["v1"]
        model.gate.clear()
        calls = len(model.calls)
        service.batcher.submit(["order"])
        until(lambda: len(model.calls) > calls)
        service.end_within(0.1)
        start = time.monotonic()
        service.close()
        took = time.monotonic() - start
        model.gate.set()
    assert 0.1 <= took < 5


def test_records_are_written_though_requests_have_used_up_the_time(
    registry, publish, serving, stream, records, service_of
):
    publish(registry, "v1")
    with serving(drain_seconds=30.0) as client:
        stream.fail_with(StreamError("the disk is full"))
        assert client.post("/v1/predict", json={"text": "order"}).json()["recorded"] is False
        healing = threading.Timer(0.2, stream.heal)
        healing.start()
        service_of(client).end_within(0.0)
        service_of(client).close()
        healing.join()
    assert [record.text for record in records(stream)] == ["order"]


def test_the_time_to_end_counts_from_when_nothing_more_is_taken(server, monkeypatch):
    async def ended(self, sockets=None):
        pass

    monkeypatch.setattr(uvicorn.Server, "shutdown", ended)
    service = server._service
    asyncio.run(server.shutdown())
    assert asyncio.run(service.ready()).reason == "stopping"
    assert service._end == pytest.approx(time.monotonic() + service.settings.drain_seconds, abs=1.0)


def test_a_connection_may_idle_longer_than_a_proxy_keeps_it(monkeypatch, registry, stream, shelf):
    made = []

    class Listener:
        def getsockname(self):
            return ("127.0.0.1", 1)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            return False

    monkeypatch.setattr(Server, "run", lambda self, sockets: made.append(self.config))
    monkeypatch.setattr("perdure_services.serving.server.sys.setswitchinterval", made.append)
    run(Settings(), listener=Listener(), registry=registry, stream=stream, load=shelf, announce=print)
    seconds, config = made
    assert config.timeout_keep_alive == KEEP_ALIVE_SECONDS > 60
    assert 0 < seconds < 0.005


def test_on_the_way_out_every_answer_ends_its_connection(registry, publish, serving, service_of):
    publish(registry, "v1")
    with serving() as client:
        before = client.get("/healthz")
        assert "connection" not in before.headers
        service_of(client).drain()
        for response in (client.get("/healthz"), client.post("/v1/predict", json={"text": "order"})):
            assert response.status_code == 200
            assert response.headers["connection"] == "close"
