"""What one of several processes takes from its parent, and tells it."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import time

import pytest
import uvicorn

from perdure.config import Settings
from perdure.errors import RegistryError
from perdure_services.fleet.beat import ASKED, CONNECTION, Beat
from perdure_services.fleet.hello import Hello
from perdure_services.serving import command, create_app
from perdure_services.serving import service as service_module
from perdure_services.serving.siblings import Siblings
from perdure_services.serving.worker import Worker, serve


@pytest.fixture
def lines():
    parent, child = socket.socketpair()
    with parent, child:
        for line in (parent, child):
            line.setblocking(False)
        yield parent, child


@pytest.fixture
def worker(registry, publish, stream, shelf, lines, tmp_path):
    publish(registry, "v1")
    app = create_app(Settings(), registry=registry, stream=stream, load=shelf)
    siblings = Siblings(Hello(0, 2, 0, str(tmp_path), {}), {})
    config = uvicorn.Config(app, log_config=None)
    return Worker(config, app.state.service, siblings=siblings, line=lines[1], ready=lambda: "it runs")


def told(worker, lines):
    worker._tell()
    return Beat.decode(lines[0].recv(10_000).splitlines()[-1])


def test_it_serves_when_its_version_is_loaded_and_answers(worker, lines, monkeypatch):
    service = worker._service
    assert not told(worker, lines).serving
    service.champions.refresh()
    assert told(worker, lines).serving
    monkeypatch.setattr(type(service.batcher), "busy_seconds", 3.0)
    assert not told(worker, lines).serving
    monkeypatch.undo()
    service.drain()
    beat = told(worker, lines)
    assert (beat.serving, beat.leaving) == (False, False)


def test_it_is_live_when_its_service_is(worker, lines):
    service = worker._service
    assert not told(worker, lines).live, "its threads do not run yet"
    service.start()
    assert told(worker, lines).live
    service.close()


def test_what_is_to_be_said_is_told_from_then_on(worker, lines):
    assert told(worker, lines).line is None
    worker._set_ready()
    assert told(worker, lines).line == "it runs"


def test_connections_are_counted_and_messages_are_none(worker, lines, monkeypatch):
    taken = []
    monkeypatch.setattr(Worker, "_take", lambda self, connection: taken.append(connection))
    with socket.socket() as one, socket.socket() as other:
        for connection in (one, other):
            socket.send_fds(lines[0], [CONNECTION], [connection.fileno()])
            lines[0].send(ASKED)
    worker._hear()
    assert len(taken) == 2
    for connection in taken:
        connection.close()
    assert told(worker, lines).taken == 2


def test_that_another_one_was_asked_for_readiness_counts_but_is_not_told_on(worker, lines, monkeypatch):
    service = worker._service
    lines[0].send(ASKED)
    worker._hear()
    assert service.balanced
    assert not told(worker, lines).asked
    asyncio.run(service.ready())
    assert told(worker, lines).asked
    assert not told(worker, lines).asked, "once for each time"
    monkeypatch.setattr(service_module, "BALANCED_SECONDS", 0.0)
    assert not service.balanced


def test_its_libraries_have_the_threads_that_they_have_in_one_process(lines, tmp_path, monkeypatch):
    blas = []
    monkeypatch.setattr(sys, "setswitchinterval", lambda seconds: None)
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    monkeypatch.delenv("TOKENIZERS_PARALLELISM")
    monkeypatch.setattr(command, "threadpool_limits", lambda count, **given: blas.append(count))
    given = {"settings": Settings().with_values({"registry.url": str(tmp_path)}).model_dump(mode="json")}

    def loading(settings, registry):
        raise RegistryError("far enough")

    with pytest.raises(RegistryError, match="far enough"):
        serve(Hello(0, 2, 0, str(tmp_path), given), lines[1], loading)
    assert (blas, os.environ["TOKENIZERS_PARALLELISM"]) == ([1], "false")


def test_a_parent_that_listens_to_nobody_stops_nothing(worker, lines, caplog):
    worker._ready = lambda: "x" * 10_000
    worker._set_ready()
    for _ in range(100):
        worker._tell()
    assert "the parent process listens to nobody" in caplog.text
    assert not worker.should_exit


def test_who_leaves_says_so_and_takes_what_was_on_its_way(worker, lines, monkeypatch):
    taken = []
    monkeypatch.setattr(Worker, "_take", lambda self, connection: taken.append(connection))

    async def leave():
        await worker.lifespan.startup()
        worker.servers = []
        asyncio.get_running_loop().add_reader(lines[1], worker._hear)
        leaving = asyncio.create_task(worker.shutdown())
        await asyncio.sleep(0)
        assert Beat.decode(lines[0].recv(10_000).splitlines()[-1]).leaving
        with socket.socket() as late:
            socket.send_fds(lines[0], [CONNECTION], [late.fileno()])
        begin = time.monotonic()
        await leaving
        return time.monotonic() - begin

    worker.config.load()
    worker.lifespan = worker.config.lifespan_class(worker.config)
    assert asyncio.run(leave()) < 5
    assert len(taken) == 1
    taken[0].close()
