"""Deadlines, departures and limits, as a client meets them."""

from __future__ import annotations

import asyncio
import json
import math
import socket
import threading
import time
from functools import partial

import pytest
import uvicorn
from prometheus_client import CollectorRegistry, Counter

from perdure.config import Settings
from perdure.records import MAX_TEXT_BYTES
from perdure_services.serving import create_app, departure, door
from perdure_services.serving.body import CheckedRequest
from perdure_services.serving.deadline import current_deadline, deadline_in, wanted_by
from perdure_services.serving.departure import CLIENT_CLOSED_REQUEST, Departure
from perdure_services.serving.loop_lag import FEW, LATE_SECONDS, LoopLag
from perdure_services.serving.refusal import Refusal
from perdure_services.serving.server import listen


@pytest.fixture
def client(registry, publish, serving):
    publish(registry, "v1")
    with serving(max_texts=8, max_queue=1) as client:
        yield client


@pytest.fixture
def held(client, shelf, until):
    """The model at a closed gate, with one request in it."""
    (model,) = shelf.made["v1"]
    batcher = client.app.state.service.batcher
    model.gate.clear()
    before = len(model.calls)
    running = batcher.submit(["running"])
    until(lambda: len(model.calls) > before)
    yield model
    model.gate.set()
    running.result(5)


def counted(client, part):
    lines = client.get("/metrics").text.splitlines()
    return float(next(line for line in lines if part in line and not line.startswith("#")).split()[-1])


# ── Deadlines ──
@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ([], 30.0),
        ([(b"x-request-timeout-ms", b"1500")], 1.5),
        ([(b"x-request-timeout-ms", b" 20 ")], 0.02),
        ([(b"x-request-timeout-ms", b"99999999")], 30.0),
        ([(b"x-envoy-expected-rq-timeout-ms", b"700"), (b"x-request-timeout-ms", b"900")], 0.7),
        ([(b"x-envoy-upstream-rq-timeout-ms", b"700")], 30.0),
    ],
)
def test_a_deadline_is_the_shortest_that_is_asked_for(headers, seconds):
    before = time.monotonic()
    assert before + seconds <= deadline_in(headers, 30.0) < before + seconds + 1


@pytest.mark.parametrize("value", ["0", "-5", "1.5", "soon", "", "1_000", "+7", "9" * 13, "٣"])
def test_a_timeout_that_is_none_is_refused_in_words(client, value):
    response = client.post(
        "/v1/predict", json={"text": "order"}, headers={"X-Request-Timeout-Ms": value.encode("utf-8")}
    )
    assert response.status_code == 422
    assert "x-request-timeout-ms" in response.json()["error"]["what"]
    assert response.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/predict", {"text": "late order"}),
        (
            "/v2/models/perdure/infer",
            {"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["late order"]}]},
        ),
    ],
)
def test_past_its_deadline_a_request_is_answered_504_and_never_computed(client, held, stream, records, path, body):
    start = time.monotonic()
    response = client.post(path, json=body, headers={"X-Request-Timeout-Ms": "60"})
    assert 0.06 <= time.monotonic() - start < 2
    assert response.status_code == 504
    assert response.headers["content-type"] == "application/problem+json"
    # An object below /v1; below /v2 the protocol wants a string.
    assert "X-Request-Timeout-Ms" in str(response.json()["error"])
    held.gate.set()
    assert client.post("/v1/predict", json={"text": "order"}).status_code == 200
    assert ("late order",) not in held.calls
    assert [record.text for record in records(stream)] == ["order"]
    assert counted(client, "perdure_requests_abandoned_total") == 1.0


def test_the_server_has_a_deadline_of_its_own(registry, publish, serving, shelf):
    publish(registry, "v1")
    with serving(timeout_seconds=0.1) as client:
        (model,) = shelf.made["v1"]
        model.gate.clear()
        for headers in ({}, {"X-Request-Timeout-Ms": "60000"}):
            assert client.post("/v1/predict", json={"text": "order"}, headers=headers).status_code == 504
        # Other protocols do not come through the door.
        with pytest.raises(Refusal) as refusal:
            client.portal.call(partial(client.app.state.service.predict, ["order"], deadline=math.inf))
        assert refusal.value.status_code == 504
        model.gate.set()


def test_a_deadline_holds_for_what_is_done_inside():
    with wanted_by(5.0), wanted_by(3.0):
        assert current_deadline() == 3.0
    assert current_deadline() == math.inf


def test_other_protocols_give_a_deadline_of_their_own(client, held):
    service = client.app.state.service
    with pytest.raises(Refusal) as refusal:
        asyncio.run(service.predict(["order"], deadline=time.monotonic() + 0.02))
    assert refusal.value.status_code == 504


# ── The door ──
@pytest.fixture
def full(client, held):
    """No request may wait any more."""
    return client.app.state.service.batcher.submit(["waiting"])


def test_at_the_door_not_a_byte_of_the_body_is_read(client, full):
    read = []

    async def receive():
        read.append(True)
        return {"type": "http.request", "body": b"{}", "more_body": False}

    sent = []

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/predict",
        "raw_path": b"/v1/predict",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
        "http_version": "1.1",
        "scheme": "http",
        "client": None,
        "server": None,
        "asgi": {"version": "3.0"},
        "root_path": "",
    }
    asyncio.run(client.app(scope, receive, send))
    assert sent[0]["status"] == 429
    assert not read
    headers = dict(sent[0]["headers"])
    assert headers[b"retry-after"] == b"1"
    assert headers[b"x-content-type-options"] == b"nosniff", "what all answers have, this one has too"
    assert counted(client, "perdure_requests_shed_total") == 1.0
    assert counted(client, 'perdure_http_requests_total{method="POST",route="/v1/predict",status="429"}') == 1.0


def test_what_does_not_ask_the_model_passes_the_door(client, full):
    assert client.post("/v1/feedback", json={"id": "a", "label": "refund"}).status_code == 202
    assert client.get("/v2/models/perdure").status_code == 200
    assert client.get("/v1/versions").status_code == 200
    assert client.post("/v1/predict/nothing").status_code == 404
    assert client.get("/v1/predict").status_code == 405
    assert client.post("/v2/models/perdure/infer").status_code == 429
    assert client.post("/v1/predict").status_code == 429


def test_the_door_comes_before_the_key(guarded, make, shelf, until):
    make()
    with guarded(max_queue=1) as client:
        assert client.post("/v1/predict", json={"text": "order"}).status_code == 401
        model = shelf.made["v2"][0]
        model.gate.clear()
        batcher = client.app.state.service.batcher
        batcher.submit(["running"])
        until(lambda: len(model.calls) > 1)
        batcher.submit(["waiting"])
        assert client.post("/v1/predict", json={"text": "order"}).status_code == 429
        model.gate.set()


def door_of(client):
    client.get("/healthz")
    stack = client.app.middleware_stack
    while not isinstance(stack, door.Door):
        stack = stack.__dict__.get("app") or stack.__dict__["_app"]
    return stack


def test_paths_that_are_remembered_are_bounded(client):
    found = door_of(client)._route_at
    for number in range(2 * door.KNOWN_PATHS):
        found(f"/v1/{number}")
    assert found.cache_info().currsize == door.KNOWN_PATHS


# ── The event loop ──
@pytest.fixture
def lag():
    return LoopLag(Counter("shed", "x", registry=CollectorRegistry()))


def refused(lag, times):
    refusals = []
    for _ in range(times):
        try:
            lag.check()
        except Refusal as refusal:
            refusals.append((refusal.status_code, refusal.headers["Retry-After"]))
    assert set(refusals) <= {(429, "1")}
    return len(refusals)


def test_a_loop_in_time_refuses_nothing(lag):
    lag.under_way = 10 * FEW
    for _ in range(100):
        lag.note(LATE_SECONDS / 2)
    assert refused(lag, 1000) == 0


def test_a_loop_that_stays_behind_refuses_more_and_more(lag):
    lag.under_way = FEW + 1
    for _ in range(2):
        lag.note(0.15)
    assert refused(lag, 1000) == pytest.approx(300, abs=1)
    for _ in range(20):
        lag.note(0.15)
    assert refused(lag, 1000) == 1000
    for _ in range(10):
        lag.note(0.0)
    assert refused(lag, 1000) == pytest.approx(500, abs=1)
    for _ in range(10):
        lag.note(0.0)
    assert refused(lag, 1000) == 0


def test_a_pause_with_few_requests_refuses_nothing(lag):
    lag.under_way = FEW
    lag.note(5.0)
    assert refused(lag, 1000) == 0


def test_a_turn_of_the_loop_that_is_too_long_is_noticed_in_the_middle_of_it(lag):
    lag.under_way = 10 * FEW

    async def busy():
        beating = asyncio.create_task(lag.beat())
        await asyncio.sleep(0)
        before = refused(lag, 100)
        time.sleep(0.45)
        during = refused(lag, 100)
        await asyncio.sleep(0.01)
        beating.cancel()
        return before, during, lag.share

    before, during, share = asyncio.run(busy())
    assert before == 0
    assert during >= 30
    assert share >= 0.3


def test_what_is_under_way_is_counted(client):
    stack = door_of(client)
    seen = []

    def watched(inner):
        async def app(scope, receive, send):
            seen.append(stack._lag.under_way)
            await inner(scope, receive, send)

        return app

    stack._app = watched(stack._app)
    stack._direct = {route: watched(app) for route, app in stack._direct.items()}
    client.post("/v1/predict", json={"text": "order"})
    client.post("/v1/predict", json={"text": ""})
    client.post("/v1/feedback", json={"id": "a", "label": "refund"})
    assert seen == [1, 1, 0]
    assert stack._lag.under_way == 0


# ── Clients that leave ──
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


# ── Limits ──
def test_limits_are_settings(registry, publish, serving):
    publish(registry, "v1")
    with serving(max_texts=2, max_text_bytes=10, max_body_bytes=100) as client:

        def status(body):
            response = client.post("/v1/predict", json=body)
            return response.status_code, response.json().get("error", {}).get("what", "")

        assert status({"texts": ["order", "refund"]})[0] == 200
        assert status({"texts": ["a", "b", "c"]}) == (422, "3 texts in one request")
        assert status({"text": "x" * 10})[0] == status({"text": "ä" * 5})[0] == 200
        assert status({"texts": ["a", "x" * 11]}) == (413, "text 2 of 2 has more than the 10 bytes allowed")
        assert status({"text": "ä" * 5 + "x"})[0] == status({"text": "€" * 4})[0] == 413
        assert status({"text": "x" * 100}) == (413, "the body has more than 100 bytes")
        tensor = {"name": "text", "shape": [1], "datatype": "BYTES", "data": ["x" * 11]}
        assert client.post("/v2/models/perdure/infer", json={"inputs": [tensor]}).status_code == 413
    assert Settings().serving.max_text_bytes == MAX_TEXT_BYTES


@pytest.fixture
def asked(registry, stream, shelf):
    """Reads a body of at most 10 bytes."""
    settings = Settings().with_values({"serving.max_body_bytes": 10, "serving.timeout_seconds": 0.4})
    app = create_app(settings, registry=registry, stream=stream, load=shelf)

    def read_body(body, *, headers=(), seconds=math.inf, pause=0.0):
        sent = list(body)
        read = []

        async def receive():
            await asyncio.sleep(pause)
            part = sent.pop(0)
            read.append(part)
            return {"type": "http.request", "body": part, "more_body": bool(sent)}

        scope = {"type": "http", "headers": [(b"content-type", b"application/json"), *headers], "app": app}

        async def run():
            with wanted_by(time.monotonic() + seconds):
                return await CheckedRequest(scope, receive).body()

        try:
            return asyncio.run(run()), read
        except Refusal as refusal:
            return refusal, read

    return read_body


def test_a_body_that_says_that_it_is_too_long_is_not_read(asked):
    refusal, read = asked([b"1234", b"5678"], headers=[(b"content-length", b"11")])
    assert (refusal.status_code, refusal.value, read) == (413, "11", [])
    body, _ = asked([b"1234", b"5678"], headers=[(b"content-length", b"8")])
    assert body == b"12345678"
    # One that lies, or says nothing, is read up to the bound.
    refusal, read = asked([b"12345"] * 5, headers=[(b"content-length", b"5")])
    assert (refusal.status_code, len(read)) == (413, 3)


def test_a_body_that_comes_too_slowly_is_given_up(asked):
    start = time.monotonic()
    refusal, read = asked([b"1"] * 10, pause=0.05, seconds=0.12)
    assert refusal.status_code == 408
    assert refusal.headers == {"Connection": "close"}
    assert len(read) == 2
    assert asked([b"1"] * 10, pause=0.2)[0].status_code == 408
    assert time.monotonic() - start < 2


# ── The way out ──
def test_on_the_way_out_every_answer_ends_its_connection(client):
    before = client.get("/healthz")
    assert "connection" not in before.headers
    client.app.state.service.drain()
    for response in (client.get("/healthz"), client.post("/v1/predict", json={"text": "order"})):
        assert response.status_code == 200
        assert response.headers["connection"] == "close"
