"""Deadlines, and the door, as a client meets them."""

from __future__ import annotations

import asyncio
import math
import time
from functools import partial

import pytest

from perdure_services.serving import door
from perdure_services.serving.deadline import current_deadline, deadline_in, wanted_by
from perdure_services.serving.refusal import Refusal


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
