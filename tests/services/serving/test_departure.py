"""Clients that leave before their answer is there."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time

import pytest
import uvicorn

from perdure.config import Settings
from perdure_services.serving import create_app, departure
from perdure_services.serving.departure import CLIENT_CLOSED_REQUEST, Departure
from perdure_services.serving.server import listen


@pytest.fixture
def address(registry, publish, shelf, stream):
    """A server at a real socket, and its app."""
    publish(registry, "v1")
    tree = Settings().with_values({"serving.refresh_seconds": 0.02, "serving.timeout_seconds": 20})
    app = create_app(tree, registry=registry, stream=stream, load=shelf)
    listener = listen("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, ws="none", access_log=False))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    end = time.monotonic() + 10
    while not (server.started and app.state.service.champions.current):
        assert time.monotonic() < end
        time.sleep(0.01)
    yield listener.getsockname(), app
    for model in shelf.made["v1"]:
        model.gate.set()
    server.should_exit = True
    thread.join(20)
    listener.close()


def request_for(text):
    body = json.dumps({"text": text}).encode()
    return (
        b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        % len(body)
        + body
    )


def test_a_client_that_leaves_is_not_computed(address, shelf, until, stream, records):
    place, app = address
    service = app.state.service
    (model,) = shelf.made["v1"]
    model.gate.clear()
    calls = len(model.calls)
    running = service.batcher.submit(["running"])
    until(lambda: len(model.calls) > calls)
    leaving = socket.create_connection(place)
    leaving.sendall(request_for("gone order"))
    staying = socket.create_connection(place)
    staying.settimeout(10)
    staying.sendall(request_for("order"))
    until(lambda: len(service.batcher._line) == 2)
    time.sleep(1.5 * departure.PATIENCE_SECONDS)
    leaving.close()
    until(lambda: len(service.batcher._line) == 1)
    model.gate.set()
    running.result(5)
    assert staying.recv(65536).startswith(b"HTTP/1.1 200")
    staying.close()
    assert ("gone order",) not in model.calls
    until(lambda: f'status="{CLIENT_CLOSED_REQUEST}"' in service.metrics.text().decode())
    assert [record.text for record in records(stream)] == ["order"]


def answering(receive, work, **named):
    """What `work` becomes in a task that watches its client."""

    async def run():
        watched = Departure({}, receive)
        with watched:
            watched.watch()
            return await work(), watched.gone
        return None, watched.gone

    return run(**named)


async def stays():
    await asyncio.sleep(60)


async def leaves():
    return {"type": "http.disconnect"}


def test_what_ends_before_the_client_leaves_is_answered():
    async def work():
        return "done"

    assert asyncio.run(answering(stays, work)) == ("done", False)
    # Whether it has left is not asked for an answer that is there at once.
    assert asyncio.run(answering(leaves, work)) == ("done", False)


def test_what_goes_on_when_the_client_leaves_is_cancelled():
    cleaned = []

    async def work():
        try:
            await asyncio.sleep(60)
        finally:
            cleaned.append(True)

    assert asyncio.run(answering(leaves, work)) == (None, True)
    assert cleaned


def test_after_the_answer_nobody_is_watched():
    asked = []

    async def receive():
        asked.append(True)
        return {"type": "http.disconnect"}

    async def run():
        async def work():
            return "done"

        assert await answering(receive, work) == ("done", False)
        await asyncio.sleep(2 * departure.PATIENCE_SECONDS)

    asyncio.run(run())
    assert not asked


def test_a_task_that_is_cancelled_by_client_and_server_stays_cancelled():
    went_on = []

    async def run():
        async def work():
            watched = Departure({}, leaves)
            with watched:
                watched.watch()
                try:
                    await asyncio.sleep(60)
                except asyncio.CancelledError:
                    task.cancel()
                    raise
            went_on.append(True)

        task = asyncio.create_task(work())
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())
    assert not went_on


def test_a_task_that_others_cancel_stays_cancelled():
    async def run():
        task = asyncio.create_task(answering(stays, stays))
        await asyncio.sleep(2 * departure.PATIENCE_SECONDS)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return len(asyncio.all_tasks())

    assert asyncio.run(run()) == 1, "nobody watches any more"
