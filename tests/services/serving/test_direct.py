"""What is answered without FastAPI is what FastAPI would have answered."""

from __future__ import annotations

import json

import pytest
from fastapi import Request
from pydantic import BaseModel

from perdure.config import MAX_TEXTS
from perdure_services.serving.access import open_to_all
from perdure_services.serving.direct import DirectRoute, body_model


@pytest.fixture
def client(registry, publish, serving):
    publish(registry, "v1")
    with serving() as client:
        yield client


def said(response):
    body = response.json()
    for one in (body, *body.get("predictions", ())):
        one.pop("id", None)
        one.pop("request_id", None)
    volatile = {"x-request-id", "date", "content-length"}
    headers = {name: value for name, value in response.headers.items() if name not in volatile}
    return response.status_code, body, headers


@pytest.mark.parametrize(
    "body",
    [
        b'{"text": "order"}',
        b'{"text": "d\xc3\xa9j\xc3\xa0 \xf0\x9f\x98\x80 order"}',
        b'{"texts": ["order", "refund"], "top_k": 2}',
        b'{"text": "order", "labels": ["refund"], "abstain": false}',
        b'{"text": "order", "top_k": 2.0}',
        b'{"text": "order", "labels": ["nobody"]}',
        b'{"text": "order", "explain": "neighbours"}',
        b'{"text": "order", "txet": 1}',
        b'{"text": ""}',
        b'{"text": 5}',
        b'{"text": "\\ud800"}',
        b'{"text": "a", "texts": ["b"]}',
        b'{"top_k": NaN, "text": "order"}',
        b"{}",
        b"[]",
        b"null",
        b"",
        b"{",
        b"\xff",
        b"[" * 100_000,
    ],
)
@pytest.mark.parametrize("path", ["/v1/predict", "/v1/embeddings"])
def test_both_ways_answer_alike(client, path, body):
    headers = {"Content-Type": "application/json"}
    direct = client.post(path, content=body, headers=headers)
    through = client.post(path + "?beside=1", content=body, headers=headers)
    assert said(direct) == said(through)


@pytest.mark.parametrize("path", ["/v1/predict", "/v1/embeddings", "/v2/models/perdure/infer"])
def test_of_a_million_texts_no_more_are_read_than_a_request_may_ever_have(client, path):
    many = ["a"] * 1_000_000
    tensor = {"name": "text", "shape": [len(many)], "datatype": "BYTES", "data": many}
    body = {"inputs": [tensor]} if "infer" in path else {"texts": many}
    refused = client.post(path, json=body)
    assert refused.status_code == 422
    assert f"{MAX_TEXTS} items" in refused.json()["detail"]


@pytest.mark.parametrize("kind", ["text/plain", "application/xml", None])
def test_both_ways_refuse_what_is_not_json(client, kind):
    headers = {"Content-Type": kind} if kind else {}
    direct = client.post("/v1/predict", content=b'{"text": "order"}', headers=headers)
    assert direct.status_code == 415
    assert said(direct) == said(client.post("/v1/predict?beside=1", content=b'{"text": "order"}', headers=headers))


def test_fastapi_is_not_asked(client, monkeypatch):
    monkeypatch.setattr("fastapi.routing.solve_dependencies", None)
    assert client.post("/v1/predict", json={"text": "order"}).status_code == 200
    assert client.post("/v1/feedback", json={"id": "a", "label": "refund"}).status_code == 202


def test_it_is_counted_under_its_route(client):
    client.post("/v1/predict", json={"text": "order"})
    client.post("/v1/predict", json={"text": ""})
    text = client.get("/metrics").text
    for status in ("200", "422"):
        assert f'perdure_http_requests_total{{method="POST",route="/v1/predict",status="{status}"}} 1.0' in text


def test_an_exception_nobody_expects_is_answered_500(client, monkeypatch, caplog):
    async def broken(*args, **named):
        raise ZeroDivisionError("the secret of the text")

    monkeypatch.setattr(client.app.state.service, "predict", broken)
    response = type(client)(client.app, raise_server_exceptions=False).post("/v1/predict", json={"text": "order"})
    assert response.status_code == 500
    assert "ZeroDivisionError" in json.dumps(response.json())
    assert "secret" not in response.text


class Body(BaseModel):
    text: str


async def good(body: Body, request: Request, more: int = 0) -> Body:
    return body


async def backwards(request: Request, body: Body) -> Body:
    return body


async def needy(body: Body, request: Request, more: int) -> Body:
    return body


async def bare(request: Request) -> Body:
    return Body(text="")


async def untyped(body: dict, request: Request) -> Body:
    return Body(text="")


def test_an_endpoint_takes_a_body_and_the_request():
    assert body_model(good) is Body
    for endpoint in (backwards, needy, bare, untyped):
        with pytest.raises(TypeError, match=endpoint.__name__):
            body_model(endpoint)
        with pytest.raises(TypeError, match=endpoint.__name__):
            DirectRoute("/", open_to_all(endpoint), methods=["POST"])
