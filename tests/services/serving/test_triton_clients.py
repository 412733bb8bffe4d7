"""NVIDIA's client of the inference protocol, over both of its ways in, against a real server."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
import uvicorn
from tritonclient.utils import InferenceServerException

from perdure.config import Settings
from perdure_services.serving import create_app
from perdure_services.serving.server import listen

TEXTS = ["a refund", "Größe order", "my password"]


@pytest.fixture
def key(file, make):
    return make("triton", "predict")


@pytest.fixture
def ports(registry, publish, stream, shelf, file, key, until):
    """Of a server that asks for keys: HTTP and gRPC."""
    publish(registry, "v1")
    settings = {"refresh_seconds": 0.02, "grpc_port": 0, "keys": str(file), "drain_seconds": 2.0}
    tree = Settings().with_values({f"serving.{name}": value for name, value in settings.items()})
    app = create_app(tree, registry=registry, stream=stream, load=shelf)
    listener = listen("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, ws="none", access_log=False))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        until(lambda: server.started, 10)
        assert app.state.service.champions.wait_for_first_look(10)
        yield listener.getsockname()[1], app.state.grpc_port
    finally:
        server.should_exit = True
        thread.join(10)
    assert not thread.is_alive()


@pytest.fixture(params=["http", "grpc"])
def triton(request, ports, key):
    """The module, a client, and what it must send with each call."""
    http, grpc = ports
    if request.param == "http":
        module, client = tritonclient.http, tritonclient.http.InferenceServerClient(f"127.0.0.1:{http}")
        headers = {"Authorization": f"Bearer {key}"}
    else:
        module, client = tritonclient.grpc, tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{grpc}")
        headers = {"authorization": f"Bearer {key}"}
    with client:
        yield module, client, headers


def tensor(module, texts, **named):
    data = np.asarray(texts, dtype=object)
    found = module.InferInput("text", list(data.shape), "BYTES")
    found.set_data_from_numpy(data, **named)
    return found


def test_health_and_metadata(triton):
    module, client, headers = triton
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("perdure")
    assert client.is_model_ready("perdure", "v1", headers=headers)
    server, model = client.get_server_metadata(), client.get_model_metadata("perdure", headers=headers)
    if module is tritonclient.http:
        assert (server["name"], model["versions"]) == ("perdure", ["v1"])
    else:
        assert (server.name, list(model.versions)) == ("perdure", ["v1"])


def test_inference_as_the_client_does_it_by_default(triton, stream, records):
    module, client, headers = triton
    result = client.infer("perdure", [tensor(module, TEXTS)], request_id="mine", headers=headers)
    assert [label.decode() for label in result.as_numpy("label")] == ["refund@v1", "order@v1", "login@v1"]
    assert result.as_numpy("confidence").dtype == np.float32
    assert result.as_numpy("confidence") == pytest.approx([0.9, 0.9, 0.9])
    assert [id.decode() for id in result.as_numpy("id")] == [record.id for record in records(stream)]
    assert [record.text for record in records(stream)] == TEXTS


def test_a_version_outputs_and_parameters(triton):
    module, client, headers = triton
    result = client.infer(
        "perdure",
        [tensor(module, TEXTS)],
        model_version="v1",
        outputs=[module.InferRequestedOutput("top_label"), module.InferRequestedOutput("top_confidence")],
        parameters={"labels": '["order@v1", "login@v1"]', "top_k": 2},
        headers=headers,
    )
    assert result.as_numpy("top_label").shape == (3, 2)
    assert [label.decode() for label in result.as_numpy("top_label")[2]] == ["login@v1", "order@v1"]
    assert result.as_numpy("top_confidence").sum(axis=1) == pytest.approx([1.0, 1.0, 1.0])
    assert result.as_numpy("label") is None


def test_over_http_texts_and_outputs_may_be_json(ports, key):
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    with tritonclient.http.InferenceServerClient(f"127.0.0.1:{ports[0]}") as client:
        outputs = [tritonclient.http.InferRequestedOutput("label", binary_data=False)]
        texts = [tensor(tritonclient.http, TEXTS, binary_data=False)]
        result = client.infer("perdure", texts, outputs=outputs, headers=headers)
        assert list(result.as_numpy("label")) == ["refund@v1", "order@v1", "login@v1"]


def test_without_a_key_it_is_told_so(triton, stream, records):
    module, client, _ = triton
    with pytest.raises(InferenceServerException, match="this needs an API key"):
        client.infer("perdure", [tensor(module, TEXTS)])
    assert records(stream) == []
