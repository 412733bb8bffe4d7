"""How much a request may hold, and how slowly it may come."""

from __future__ import annotations

import asyncio
import math
import time

import pytest

from perdure.config import Settings
from perdure.records import MAX_TEXT_BYTES
from perdure_services.serving import create_app
from perdure_services.serving.body import CheckedRequest
from perdure_services.serving.deadline import wanted_by
from perdure_services.serving.refusal import Refusal


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
    # One that lies, or says nothing that is a number, is read up to the bound.
    for said in (b"5", b"-1", b"many", b"\xb2", b"9" * 30):
        refusal, read = asked([b"12345"] * 5, headers=[(b"content-length", said)])
        assert (refusal.status_code, len(read)) == (413, 3)


def test_a_body_that_comes_too_slowly_is_given_up(asked):
    start = time.monotonic()
    refusal, read = asked([b"1"] * 10, pause=0.05, seconds=0.12)
    assert refusal.status_code == 408
    assert refusal.headers == {"Connection": "close"}
    assert len(read) == 2
    assert asked([b"1"] * 10, pause=0.2)[0].status_code == 408
    assert time.monotonic() - start < 2
