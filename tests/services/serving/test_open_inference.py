from __future__ import annotations

import json

import pytest


@pytest.fixture
def client(registry, publish, serving):
    publish(registry, "v1")
    with serving(max_texts=8) as client:
        yield client


def tensor(**changes):
    return {"name": "text", "shape": [2], "datatype": "BYTES", "data": ["a refund", "an order"], **changes}


def infer(client, body, model="perdure"):
    return client.post(f"/v2/models/{model}/infer", json=body)


def test_the_server_and_the_model_describe_themselves(client):
    server = client.get("/v2").json()
    assert server["name"] == "perdure"
    assert set(server) == {"name", "version", "extensions"}
    model = client.get("/v2/models/perdure").json()
    assert (model["name"], model["versions"]) == ("perdure", ["v1"])
    assert model["inputs"] == [{"name": "text", "datatype": "BYTES", "shape": [-1]}]
    assert {output["name"]: output["datatype"] for output in model["outputs"]} == {
        "label": "BYTES",
        "confidence": "FP32",
        "id": "BYTES",
    }


def test_health(client):
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json() == {"ready": True}
    assert client.get("/v2/models/perdure/ready").json() == {"name": "perdure", "ready": True}


def test_inference_answers_and_records(client, stream, records):
    answer = infer(client, {"id": "mine", "inputs": [tensor()]}).json()
    assert (answer["model_name"], answer["model_version"], answer["id"]) == ("perdure", "v1", "mine")
    outputs = {output["name"]: output for output in answer["outputs"]}
    assert outputs["label"] == {
        "name": "label",
        "shape": [2],
        "datatype": "BYTES",
        "data": ["refund@v1", "order@v1"],
    }
    assert outputs["confidence"]["datatype"] == "FP32"
    assert outputs["confidence"]["data"] == pytest.approx([0.9, 0.9])
    assert outputs["id"]["data"] == [record.id for record in records(stream)]


def test_an_id_that_was_not_sent_is_not_answered(client):
    assert "id" not in infer(client, {"inputs": [tensor()]}).json()


def test_only_the_outputs_asked_for_come(client):
    answer = infer(client, {"inputs": [tensor()], "outputs": [{"name": "confidence"}]}).json()
    assert [output["name"] for output in answer["outputs"]] == ["confidence"]


@pytest.mark.parametrize(
    ("shape", "data"),
    [([2, 1], ["a refund", "an order"]), ([2, 1], [["a refund"], ["an order"]]), ([1, 2], [["a refund", "an order"]])],
)
def test_data_may_be_nested(client, shape, data):
    answer = infer(client, {"inputs": [tensor(shape=shape, data=data)]}).json()
    assert answer["outputs"][0]["data"] == ["refund@v1", "order@v1"]


@pytest.mark.parametrize(
    ("body", "part"),
    [
        ({}, "inputs"),
        ({"inputs": []}, "inputs"),
        ({"inputs": [tensor(), tensor()]}, "inputs"),
        ({"inputs": [tensor(name="image")]}, "inputs.0.name"),
        ({"inputs": [tensor(datatype="FP32")]}, "inputs.0.datatype"),
        ({"inputs": [tensor(shape=[3])]}, "holds 3 texts, but data holds 2"),
        ({"inputs": [tensor(shape=[-1])]}, "inputs.0.shape"),
        ({"inputs": [tensor(shape=[])]}, "inputs.0.shape"),
        ({"inputs": [tensor(shape=[10**30])]}, "inputs.0"),
        ({"inputs": [tensor(data=["a", ""])]}, "inputs.0.data.1"),
        ({"inputs": [tensor(data=[1, 2])]}, "inputs.0.data.0"),
        ({"inputs": [tensor(shape=[9], data=["a"] * 9)]}, "9 texts"),
        ({"inputs": [tensor()], "outputs": [{"name": "scores"}]}, "outputs.0.name"),
    ],
)
def test_a_bad_request_is_refused_in_words(client, stream, records, body, part):
    response = infer(client, body)
    assert response.status_code == 422
    assert part in response.json()["error"]["what"]
    assert records(stream) == []


def test_half_a_surrogate_pair_and_a_text_too_long_are_refused(client):
    half = json.dumps({"inputs": [tensor(data=["a\ud800", "b"])]})
    response = client.post("/v2/models/perdure/infer", content=half, headers={"Content-Type": "application/json"})
    assert response.status_code == 422
    assert infer(client, {"inputs": [tensor(data=["a" * 1_000_001, "b"])]}).status_code == 413


def test_another_model_is_not_found(client):
    for response in (
        infer(client, {"inputs": [tensor()]}, "other"),
        client.get("/v2/models/other"),
        client.get("/v2/models/other/ready"),
    ):
        assert response.status_code == 404
        assert "perdure" in response.json()["error"]["do"]


def test_without_a_champion_it_is_unavailable(serving):
    with serving() as client:
        assert infer(client, {"inputs": [tensor()]}).status_code == 503
        assert client.get("/v2/health/ready").status_code == 503
        assert client.get("/v2/models/perdure").json()["versions"] == []
