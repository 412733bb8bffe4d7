from __future__ import annotations

import asyncio

import pytest
from starlette.testclient import TestClient

from perdure.config import Settings
from perdure.stream import MemoryStream
from perdure_services.serving import create_app
from perdure_services.serving import service as module

HURRY = {"X-Request-Timeout-Ms": "120"}


def test_ready_only_when_a_version_is_loaded_and_answers(registry, publish, serving, shelf, until):
    with serving() as client:
        assert client.get("/healthz").status_code == 200
        response = client.get("/readyz")
        assert response.status_code == 503
        assert "perdure fit" in response.json()["reason"]
        publish(registry, "v1")
        until(lambda: client.get("/readyz").status_code == 200)
        assert shelf.made["v1"][0].threads == {"perdure-champion", "perdure-batcher-0"}, "a real inference answered"


def test_not_ready_while_the_model_hangs(registry, publish, serving, shelf, monkeypatch):
    monkeypatch.setattr(module, "PROBE_SECONDS", 0.05)
    publish(registry, "v1")
    with serving() as client:
        (model,) = shelf.made["v1"]
        model.gate.clear()
        response = client.get("/readyz")
        assert response.status_code == 503
        assert "no answer" in response.json()["reason"]
        model.gate.set()


def test_a_model_that_hangs_is_seen_though_it_just_answered(registry, publish, serving, shelf, until, monkeypatch):
    publish(registry, "v1")
    with serving() as client:
        (model,) = shelf.made["v1"]
        assert client.post("/v1/predict", json={"text": "order"}).status_code == 200
        assert client.get("/readyz").status_code == 200
        monkeypatch.setattr(module, "PROBE_SECONDS", 0.05)
        model.gate.clear()
        assert client.post("/v1/predict", json={"text": "order"}, headers=HURRY).status_code == 504
        response = client.get("/readyz")
        assert response.status_code == client.get("/v2/health/ready").status_code == 503
        assert "given no answer for" in response.json()["reason"]
        assert client.get("/healthz").status_code == 200, "it may answer yet"
        monkeypatch.setattr(module, "STUCK_SECONDS", 0.1)
        assert client.get("/healthz").status_code == 503, "it will not: only a restart helps"
        model.gate.set()
        until(lambda: client.get("/readyz").status_code == 200)
        assert client.get("/healthz").status_code == 200


def test_started_once_the_first_version_is_loaded(registry, publish, shelf, until):
    publish(registry, "v1")
    shelf.gate.clear()
    app = create_app(Settings(), registry=registry, stream=MemoryStream(), load=shelf)
    with TestClient(app) as client:
        assert (client.get("/startupz").status_code, client.get("/readyz").status_code) == (503, 503)
        assert client.get("/healthz").status_code == 200
        shelf.gate.set()
        until(lambda: client.get("/startupz").status_code == 200)
        assert client.get("/startupz").json() == {"started": True}
        app.state.service.drain()
        assert client.get("/startupz").status_code == 200


def test_started_without_a_version_too(serving):
    with serving() as client:
        assert (client.get("/startupz").status_code, client.get("/readyz").status_code) == (200, 503)


def test_not_ready_when_the_model_fails(registry, publish, serving, shelf):
    def fail(texts):
        if len(texts) == 1:
            raise RuntimeError("broken")
        return inner.scores(texts)

    inner = shelf("v1")
    shelf.scripts["v1"] = fail
    publish(registry, "v1")
    with serving() as client:
        response = client.get("/readyz")
        assert (response.status_code, response.json()["reason"]) == (503, "the model failed: RuntimeError")


def test_a_fresh_answer_is_proof_enough(registry, publish, serving, shelf, monkeypatch):
    publish(registry, "v1")
    with serving() as client:
        client.post("/v1/predict", json={"text": "order"})
        before = len(shelf.made["v1"][0].calls)
        assert client.get("/readyz").status_code == 200
        assert len(shelf.made["v1"][0].calls) == before
        monkeypatch.setattr(module, "FRESH_SECONDS", 0.0)
        assert client.get("/readyz").status_code == 200
        assert len(shelf.made["v1"][0].calls) == before + 1


@pytest.mark.parametrize("part", ["batcher", "recorder", "champions"])
def test_a_dead_thread_is_neither_live_nor_ready(registry, publish, serving, service_of, part):
    publish(registry, "v1")
    with serving() as client:
        assert client.get("/readyz").status_code == 200
        dying = getattr(service_of(client), part)
        (dying.stop if part == "champions" else dying.close)(5)
        assert client.get("/healthz").status_code == 503
        assert client.get("/readyz").status_code == 503


def test_while_draining_it_is_not_ready_but_answers(registry, publish, serving, service_of):
    publish(registry, "v1")
    with serving() as client:
        service_of(client).drain()
        assert client.get("/readyz").json() == {"ready": False, "reason": "stopping"}
        assert client.get("/readyz").status_code == client.get("/v2/health/ready").status_code == 503
        assert client.get("/healthz").status_code == 200
        assert client.post("/v1/predict", json={"text": "order"}).json()["recorded"] is True


def test_the_end_writes_what_was_recorded(registry, publish, serving, stream, records, service_of):
    publish(registry, "v1")
    with serving() as client:
        client.post("/v1/predict", json={"text": "order"})
        service = service_of(client)
        service.recorder.submit(records(stream) * 50)
    assert len(records(stream)) == 51
    assert not service.live
    assert asyncio.run(service.ready()).reason == "stopping"


def test_metrics_say_what_happened(registry, publish, serving):
    publish(registry, "v1")
    with serving() as client:
        client.post("/v1/predict", json={"texts": ["order", "refund", "order"]})
        client.post("/v1/predict", json={"text": ""})
        client.post("/v1/versions/nope/promote")
        client.get("/somewhere/else")
        client.request("BREW", "/v1/predict")
        response = client.get("/metrics")
        lines = response.text.splitlines()
        assert response.headers["content-type"].startswith("text/plain; version=")
    for line in (
        'perdure_http_requests_total{method="POST",route="/v1/predict",status="200"} 1.0',
        'perdure_http_requests_total{method="POST",route="/v1/predict",status="422"} 1.0',
        'perdure_http_requests_total{method="POST",route="/v1/versions/{version}/promote",status="404"} 1.0',
        'perdure_http_requests_total{method="GET",route="other",status="404"} 1.0',
        'perdure_http_requests_total{method="other",route="/v1/predict",status="405"} 1.0',
        'perdure_predictions_total{label="order@v1",version="v1"} 2.0',
        'perdure_predictions_total{label="refund@v1",version="v1"} 1.0',
        'perdure_champion_info{promotion="1",version="v1"} 1.0',
        'perdure_records_total{outcome="recorded"} 3.0',
        'perdure_batch_size_sum{version="v1"} 3.0',
        "perdure_swaps_total 1.0",
        "perdure_load_failures_total 0.0",
        "perdure_requests_waiting 0.0",
        "perdure_records_unsent 0.0",
        "perdure_http_requests_in_flight 1.0",
    ):
        assert line in lines
    assert any(
        line.startswith('perdure_http_request_duration_seconds_bucket{le="0.001",method="POST",route="/v1/predict"}')
        for line in lines
    )


def test_two_apps_in_one_process_count_for_themselves(registry, publish, serving):
    publish(registry, "v1")
    with serving() as one, serving() as other:
        one.post("/v1/predict", json={"text": "order"})
        assert 'route="/v1/predict"' in one.get("/metrics").text
        assert 'route="/v1/predict"' not in other.get("/metrics").text


def test_the_index_and_the_documentation_are_there(registry, publish, serving):
    publish(registry, "v1")
    with serving() as client:
        assert client.get("/").json()["serving"] == "v1"
        paths = client.get("/openapi.json").json()["paths"]
    assert {"/v1/predict", "/v1/feedback", "/v1/versions", "/v1/rollback", "/v2/models/{name}/infer"} <= set(paths)
    assert "requestBody" in paths["/v1/predict"]["post"]
