from __future__ import annotations

import json
import threading
import time

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
        "abstained": "BOOL",
        "top_label": "BYTES",
        "top_confidence": "FP32",
    }
    assert client.get("/v2/models/perdure/versions/v1").json() == model


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
        ({"inputs": [tensor()], "parameters": {"label": "[]"}}, "'label': did you mean 'labels'"),
        ({"inputs": [tensor()], "parameters": {"labels": "order@v1"}}, "parameters.labels: is no JSON array"),
        ({"inputs": [tensor()], "parameters": {"labels": "[]"}}, "parameters.labels"),
        ({"inputs": [tensor()], "parameters": {"labels": '["ordr@v1"]'}}, "labels.0: version v1 knows no label"),
        ({"inputs": [tensor()], "parameters": {"top_k": "2"}}, "parameters.top_k"),
        ({"inputs": [tensor()], "outputs": [{"name": "scores"}]}, "outputs.0.name"),
        ({"inputs": [tensor()], "outputs": [{"name": "label"}] * 7}, "outputs: "),
        (
            {"inputs": [tensor()], "parameters": {"abstain": False}, "outputs": [{"name": "abstained"}]},
            "parameters.abstain is false",
        ),
    ],
)
def test_a_bad_request_is_refused_in_words(client, stream, records, body, part):
    response = infer(client, body)
    assert response.status_code == 422
    assert part in response.json()["error"]
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
        assert "perdure" in response.json()["do"]


def test_without_a_champion_it_is_unavailable(serving):
    with serving() as client:
        assert infer(client, {"inputs": [tensor()]}).status_code == 503
        assert client.get("/v2/health/ready").status_code == 503
        assert client.get("/v2/models/perdure").json()["versions"] == []


def test_parameters_say_which_labels_may_be_answered_and_how_many(client, stream, records):
    parameters = {"labels": '["login@v1", "order@v1"]', "top_k": 5, "subject": "ann"}
    answer = infer(client, {"inputs": [tensor()], "parameters": parameters}).json()
    outputs = {output["name"]: output for output in answer["outputs"]}
    assert set(outputs) == {"label", "confidence", "id", "top_label", "top_confidence"}
    # Neither is meant by "a refund": in the order of the version's labels.
    assert outputs["label"]["data"] == ["order@v1", "order@v1"]
    assert outputs["top_label"]["shape"] == outputs["top_confidence"]["shape"] == [2, 2]
    assert outputs["top_label"]["data"] == ["order@v1", "login@v1"] * 2
    assert outputs["top_confidence"]["data"] == pytest.approx([0.5, 0.5, 0.9 / 0.95, 0.05 / 0.95])
    assert {record.subject for record in records(stream)} == {"ann"}


def test_no_outputs_named_are_those_that_fit(client):
    answer = infer(client, {"inputs": [tensor()], "outputs": []}).json()
    assert [output["name"] for output in answer["outputs"]] == ["label", "confidence", "id"]


def test_nothing_is_recorded_where_the_version_cannot_say_whether_it_abstains(client, stream, records):
    refused = infer(client, {"inputs": [tensor()], "outputs": [{"name": "abstained"}]})
    assert refused.status_code == 409
    assert "version v1 cannot abstain" in refused.json()["detail"]
    assert records(stream) == []


def test_a_named_version_that_is_replaced_meanwhile_does_not_let_another_answer(
    client, registry, publish, shelf, service_of, until
):
    (model,), service = shelf.made["v1"], service_of(client)
    model.gate.clear()
    held = service.batcher.submit(["held"])
    until(lambda: ("held",) in model.calls)
    refused = []
    asking = threading.Thread(
        target=lambda: refused.append(
            client.post("/v2/models/perdure/versions/v1/infer", json={"inputs": [tensor()]}),
        )
    )
    asking.start()
    until(lambda: len(service.batcher._line))
    publish(registry, "v2", parent="v1")
    until(lambda: service.champions.current.version == "v2")
    model.gate.set()
    asking.join(5)
    assert held.result(5).version == "v1"
    assert refused[0].status_code == 404
    assert "'v1' is not served here, but version 'v2'" in refused[0].json()["error"]


def test_a_name_of_a_megabyte_is_refused_as_fast_as_a_short_one(client):
    began = time.perf_counter()
    refused = infer(client, {"inputs": [tensor()], "parameters": {"labels top" * 700_000: 1}})
    assert refused.status_code == 422
    assert "did you mean" in refused.json()["error"]
    # Looking for the nearest name among all its characters took about two seconds.
    assert time.perf_counter() - began < 1.0


def test_a_ranking_may_be_asked_for_as_an_output_alone(client):
    answer = infer(client, {"inputs": [tensor()], "outputs": [{"name": "top_label"}]}).json()
    assert [(output["name"], output["shape"]) for output in answer["outputs"]] == [("top_label", [2, 1])]


def test_a_version_may_be_named_as_long_as_it_is_the_one_that_serves(client):
    body = {"inputs": [tensor()]}
    assert client.post("/v2/models/perdure/versions/v1/infer", json=body).json()["model_version"] == "v1"
    refused = client.post("/v2/models/perdure/versions/v0/infer", json=body)
    assert refused.status_code == 404
    assert "'v0' is not served here, but version 'v1'" in refused.json()["error"]
    assert client.get("/v2/models/perdure/versions/v0/ready").status_code == 404
    assert client.get("/v2/models/perdure/versions/v1/ready").json()["ready"] is True


def test_an_error_is_a_string_as_the_protocol_wants_it(client):
    response = infer(client, {"inputs": [tensor(data=["a", ""])]})
    problem = response.json()
    assert response.headers["content-type"] == "application/problem+json"
    assert problem["error"] == f"{problem['detail']}: {problem['do']}"
    assert problem["value"] == ""
    unavailable = client.get("/v2/repository/index").json()
    assert isinstance(unavailable["error"], str)
    assert isinstance(client.get("/v1/nothing").json()["error"], dict)
