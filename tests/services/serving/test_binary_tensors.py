from __future__ import annotations

import json
import struct

import numpy as np
import pytest

from perdure.config import ServingSettings
from perdure_services.serving.binary_tensors import HEADER


@pytest.fixture
def client(registry, publish, serving):
    publish(registry, "v1")
    with serving(max_texts=8) as client:
        yield client


def packed(*texts):
    raw = [text if isinstance(text, bytes) else text.encode() for text in texts]
    return b"".join(struct.pack("<I", len(text)) + text for text in raw)


def send(client, tensor, *, length=None, size=None, headers=None, **more):
    side = 2 if tensor == packed("a refund", "Größe order") else 1
    field = {"name": "text", "shape": [side], "datatype": "BYTES"}
    field["parameters"] = {"binary_data_size": len(tensor) if size is None else size}
    front = json.dumps({"inputs": [field], **more}).encode()
    said = {HEADER: str(len(front) if length is None else length), **(headers or {})}
    return client.post("/v2/models/perdure/infer", content=front + tensor, headers=said)


TWO = packed("a refund", "Größe order")


def test_texts_may_stand_behind_the_json(client, stream, records):
    answer = send(client, TWO)
    assert answer.status_code == 200, answer.text
    outputs = {output["name"]: output["data"] for output in answer.json()["outputs"]}
    assert outputs["label"] == ["refund@v1", "order@v1"]
    assert [record.text for record in records(stream)] == ["a refund", "Größe order"]


@pytest.mark.parametrize("kind", ["application/octet-stream", "application/json", "text/plain"])
def test_the_header_says_what_the_body_is_whatever_its_type(client, kind):
    assert send(client, TWO, headers={"Content-Type": kind}).status_code == 200


def test_outputs_come_behind_the_json_where_asked_for(client):
    wanted = [{"name": "confidence", "parameters": {"binary_data": True}}, {"name": "id"}]
    wanted.append({"name": "label", "parameters": {"binary_data": True}})
    answer = send(client, TWO, outputs=wanted, id="mine")
    length = int(answer.headers[HEADER])
    head, behind = json.loads(answer.content[:length]), answer.content[length:]
    assert (head["model_name"], head["model_version"], head["id"]) == ("perdure", "v1", "mine")
    confidence, named, label = head["outputs"]
    assert len(named["data"]) == 2
    assert "parameters" not in named
    assert confidence["parameters"] == {"binary_data_size": 8}
    assert "data" not in confidence
    assert np.frombuffer(behind[:8], "<f4") == pytest.approx([0.9, 0.9])
    assert label["parameters"] == {"binary_data_size": len(behind) - 8}
    assert behind[8:] == packed("refund@v1", "order@v1")


def test_one_parameter_asks_for_all_outputs_so_and_an_output_may_differ(client):
    everything = send(client, TWO, parameters={"binary_data_output": True})
    head = json.loads(everything.content[: int(everything.headers[HEADER])])
    assert all("parameters" in output for output in head["outputs"])
    assert "id" not in head
    one = [{"name": "label", "parameters": {"binary_data": False}}]
    plain = send(client, TWO, parameters={"binary_data_output": True}, outputs=one)
    assert HEADER not in plain.headers
    assert plain.json()["outputs"][0]["data"] == ["refund@v1", "order@v1"]


@pytest.mark.parametrize(
    ("tensor", "changes", "status", "part"),
    [
        (packed("a refund")[:-1], {}, 400, "element 0 of the tensor ends behind"),
        (packed("a") + b"\1\0", {}, 400, "element 1 of the tensor ends behind"),
        (b"\xff\xff\xff\xff", {}, 400, "element 0"),
        (packed(b"\xff"), {}, 422, "inputs.0.data.0: the text is not UTF-8"),
        (packed("order"), {"size": 8}, 400, "ends behind its 8 bytes"),
        (packed("order"), {"size": 10}, 400, "does not fit the 9 bytes left"),
        (packed("order"), {"size": -1}, 400, "binary_data_size"),
        (packed("order"), {"size": True}, 400, "binary_data_size"),
        (packed("order"), {"size": "9"}, 400, "binary_data_size"),
        (packed("order"), {"size": 0}, 400, "belong to no input"),
        (packed("order"), {"length": 10**6}, 400, HEADER),
        (packed("order"), {"length": "-1"}, 400, HEADER),
        (packed("order"), {"length": "9" * 5000}, 400, HEADER),
        (packed("order"), {"length": 3}, 400, "not JSON"),
        (b"", {}, 422, "inputs.0.data"),
        (packed(""), {}, 422, "inputs.0.data.0"),
        (packed("a", "b"), {}, 422, "shape [1] holds 1 texts, but data holds 2"),
        (packed("a" * ServingSettings().max_body_bytes), {}, 413, "bytes"),
        (packed("a" * 1_000_001), {}, 413, "1000000 bytes"),
    ],
)
def test_bytes_that_do_not_fit_are_refused_in_words(client, stream, records, tensor, changes, status, part):
    answer = send(client, tensor, **changes)
    assert answer.status_code == status, answer.text
    assert part in answer.json()["error"]
    assert records(stream) == []


def test_without_the_header_a_body_of_another_type_is_refused(client):
    answer = client.post("/v2/models/perdure/infer", content=b"{}", headers={"Content-Type": "text/plain"})
    assert answer.status_code == 415


def test_the_header_opens_no_other_route(client):
    body = json.dumps({"text": "order"}).encode()
    headers = {HEADER: str(len(body)), "Content-Type": "text/plain"}
    assert client.post("/v1/predict", content=body, headers=headers).status_code == 415


def test_the_server_says_that_it_speaks_the_extension(client):
    assert client.get("/v2").json()["extensions"] == ["binary_tensor_data"]
