"""The inference protocol over gRPC, asked with its own messages."""

from __future__ import annotations

import struct
import threading

import grpc
import pytest

from perdure.errors import RegistryError
from perdure.judge.threshold import BELOW
from perdure.registry import Card
from perdure.registry.card import EncoderCard
from perdure_services.serving.rpc import open_inference_pb2 as pb

NAME = "inference.GRPCInferenceService"


def ask(channel, method, request, **named):
    answer = getattr(pb, f"{method}Response")
    call = channel.unary_unary(
        f"/{NAME}/{method}",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=answer.FromString,
    )
    return call(request, timeout=named.pop("timeout", 10), **named)


def refused(channel, method, request, **named):
    with pytest.raises(grpc.RpcError) as error:
        ask(channel, method, request, **named)
    return error.value


def texts(*values, raw=False, **fields):
    request = pb.ModelInferRequest(model_name="perdure", **fields)
    tensor = request.inputs.add(name="text", datatype="BYTES", shape=[len(values)])
    encoded = [value if isinstance(value, bytes) else value.encode() for value in values]
    if raw:
        request.raw_input_contents.append(b"".join(struct.pack("<I", len(one)) + one for one in encoded))
    else:
        tensor.contents.bytes_contents.extend(encoded)
    return request


def values(answer):
    found = {}
    for output in answer.outputs:
        data = output.contents.fp32_contents if output.datatype == "FP32" else output.contents.bytes_contents
        found[output.name] = [one.decode() if isinstance(one, bytes) else one for one in data]
    return found


@pytest.fixture
def v1(registry, publish, serving, channel):
    publish(registry, "v1")
    with serving(grpc_port=0, max_texts=8) as client:
        yield channel(client)


def test_the_server_and_the_model_describe_themselves(v1):
    assert ask(v1, "ServerLive", pb.ServerLiveRequest()).live is True
    assert ask(v1, "ServerReady", pb.ServerReadyRequest()).ready is True
    assert ask(v1, "ModelReady", pb.ModelReadyRequest(name="perdure")).ready is True
    assert ask(v1, "ModelReady", pb.ModelReadyRequest(name="perdure", version="v1")).ready is True
    assert ask(v1, "ServerMetadata", pb.ServerMetadataRequest()).name == "perdure"
    model = ask(v1, "ModelMetadata", pb.ModelMetadataRequest(name="perdure"))
    assert (model.name, list(model.versions)) == ("perdure", ["v1"])
    assert [(one.name, one.datatype, list(one.shape)) for one in model.inputs] == [("text", "BYTES", [-1])]
    outputs = {one.name: (one.datatype, list(one.shape)) for one in model.outputs}
    assert outputs["label"] == ("BYTES", [-1])
    assert outputs["top_confidence"] == ("FP32", [-1, -1])


def test_inference_answers_and_records(v1, stream, records):
    answer = ask(v1, "ModelInfer", texts("a refund", "Größe order", id="mine"))
    assert (answer.model_name, answer.model_version, answer.id) == ("perdure", "v1", "mine")
    assert values(answer)["label"] == ["refund@v1", "order@v1"]
    assert values(answer)["confidence"] == pytest.approx([0.9, 0.9])
    assert values(answer)["id"] == [record.id for record in records(stream)]
    assert [record.text for record in records(stream)] == ["a refund", "Größe order"]
    assert [list(output.shape) for output in answer.outputs] == [[2]] * 3
    assert not answer.raw_output_contents


def test_raw_contents_are_answered_with_raw_contents(v1, stream, records):
    answer = ask(v1, "ModelInfer", texts("a refund", "Größe order", raw=True))
    assert not any(output.HasField("contents") for output in answer.outputs)
    raw = dict(zip([output.name for output in answer.outputs], answer.raw_output_contents, strict=True))
    assert raw["label"] == b"\x09\0\0\0refund@v1\x08\0\0\0order@v1"
    assert struct.unpack("<2f", raw["confidence"]) == pytest.approx([0.9, 0.9])
    assert [record.text for record in records(stream)] == ["a refund", "Größe order"]


def test_parameters_and_outputs_are_those_of_rest(v1, stream, records):
    request = texts("a refund")
    request.parameters["labels"].string_param = '["login@v1", "order@v1"]'
    request.parameters["top_k"].int64_param = 5
    request.parameters["subject"].string_param = "ann"
    answer = ask(v1, "ModelInfer", request)
    assert values(answer)["top_label"] == ["order@v1", "login@v1"]
    assert [list(output.shape) for output in answer.outputs if output.name == "top_label"] == [[1, 2]]
    assert records(stream)[0].subject == "ann"
    request.outputs.add(name="label")
    assert list(values(ask(v1, "ModelInfer", request))) == ["label"]


def series(client, code):
    """How many inferences ended so."""
    name = f'perdure_grpc_requests_total{{code="{code}",method="ModelInfer"}}'
    found = client.app.state.service.metrics.text().decode().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in found if line.startswith(name))


def test_an_abstention_is_a_boolean(registry, serving, channel):
    card = Card(
        name="v1",
        kind="first",
        created=1.0,
        encoder=EncoderCard(name="double", fingerprint="0"),
        labels=("order",),
        metrics={BELOW: 0.95},
    )
    registry.write(card, {"model.json": b"{}"})
    registry.promote("v1", reason="a test", by="tests")
    with serving(grpc_port=0) as client:
        for raw in (False, True):
            request = texts("order", "refund", raw=raw)
            request.parameters["abstain"].bool_param = True
            answer = ask(channel(client), "ModelInfer", request)
            place = [output.name for output in answer.outputs].index("abstained")
            assert answer.outputs[place].datatype == "BOOL"
            if raw:
                assert answer.raw_output_contents[place] == b"\1\1"
            else:
                assert list(answer.outputs[place].contents.bool_contents) == [True, True]


INVALID = grpc.StatusCode.INVALID_ARGUMENT


def changed(request, **fields):
    """With fields of its one input changed."""
    for name, value in fields.items():
        if name == "shape":
            request.inputs[0].shape[:] = value
        else:
            setattr(request.inputs[0], name, value)
    return request


def with_parameter(name, **value):
    request = texts("order")
    request.parameters[name].CopyFrom(pb.InferParameter(**value))
    return request


def both():
    request = texts("order", raw=True)
    request.inputs[0].contents.bytes_contents.append(b"order")
    return request


def one_too_many():
    request = texts("order", raw=True)
    request.raw_input_contents.append(b"")
    return request


@pytest.mark.parametrize(
    ("request_of", "part"),
    [
        (lambda: pb.ModelInferRequest(model_name="perdure"), "inputs"),
        (lambda: texts(), "inputs.0"),
        (lambda: texts("a", " "), "inputs.0.data.1: the text is empty"),
        (lambda: texts(b"\xff"), "inputs.0.data.0: the text is not UTF-8"),
        (lambda: texts(b"\xff", raw=True), "inputs.0.data.0: the text is not UTF-8"),
        (lambda: texts("a" * 1_000_001), "1000000 bytes"),
        (lambda: texts(*["a"] * 9), "9 texts"),
        (lambda: texts(*["a"] * 100, raw=True), "9 texts in one request: send at most 8"),
        (lambda: changed(texts("a"), shape=[2]), "holds 2 texts, but data holds 1"),
        (lambda: changed(texts("a"), shape=[-1]), "inputs.0.shape"),
        (lambda: changed(texts("a"), name="image"), "inputs.0.name"),
        (lambda: changed(texts("a"), datatype="FP32"), "inputs.0.datatype"),
        (lambda: changed(texts("a", raw=True), datatype="FP32"), "inputs.0.datatype"),
        (lambda: with_parameter("label", string_param="[]"), "did you mean 'labels'"),
        (lambda: with_parameter("labels", string_param='["ordr@v1"]'), "did you mean 'order@v1'"),
        (lambda: with_parameter("top_k", string_param="3"), "parameters.top_k"),
        (lambda: with_parameter("top_k", int64_param=0), "parameters.top_k"),
        (both, "in its contents and in raw_input_contents"),
        (one_too_many, "1 inputs, but 2 raw_input_contents"),
    ],
)
def test_a_bad_request_is_refused_in_words(v1, stream, records, request_of, part):
    error = refused(v1, "ModelInfer", request_of())
    assert error.code() == INVALID
    assert part in error.details()
    assert records(stream) == []


def test_what_is_not_there_is_not_found(v1):
    for request in (pb.ModelReadyRequest(name="other"), pb.ModelReadyRequest(name="perdure", version="v0")):
        assert refused(v1, "ModelReady", request).code() == grpc.StatusCode.NOT_FOUND
    assert refused(v1, "ModelMetadata", pb.ModelMetadataRequest(name="x")).code() == grpc.StatusCode.NOT_FOUND
    request = texts("order", model_version="v0")
    assert refused(v1, "ModelInfer", request).code() == grpc.StatusCode.NOT_FOUND


def test_a_message_longer_than_a_body_may_be_is_refused(v1):
    error = refused(v1, "ModelInfer", texts("a" * 8_000_001))
    assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


def test_without_a_champion_it_is_unavailable(serving, channel):
    with serving(grpc_port=0) as client:
        error = refused(channel(client), "ModelInfer", texts("order"))
        assert error.code() == grpc.StatusCode.UNAVAILABLE
        assert "perdure fit" in error.details()
        assert dict(error.trailing_metadata())["retry-after"] == "1"
        assert ask(channel(client), "ServerReady", pb.ServerReadyRequest()).ready is False


def test_a_full_queue_is_resource_exhausted_and_a_deadline_takes_its_request_along(
    registry, publish, serving, channel, shelf, until
):
    publish(registry, "v1")
    with serving(grpc_port=0, max_queue=1, max_batch=1) as client:
        calls, model = channel(client), shelf.made["v1"][0]
        model.gate.clear()
        held = threading.Thread(target=ask, args=(calls, "ModelInfer", texts("first order")))
        held.start()
        until(lambda: ("first order",) in model.calls)
        late = threading.Thread(
            target=lambda: late_errors.append(refused(calls, "ModelInfer", texts("late order"), timeout=0.4))
        )
        late_errors: list[grpc.RpcError] = []
        late.start()
        until(lambda: len(client.app.state.service.batcher._line))
        full = refused(calls, "ModelInfer", texts("third order"))
        assert full.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "retry-after" in dict(full.trailing_metadata())
        late.join(5)
        assert late_errors[0].code() == grpc.StatusCode.DEADLINE_EXCEEDED
        until(lambda: series(client, "CANCELLED") + series(client, "DEADLINE_EXCEEDED") == 1)
        model.gate.set()
        held.join(5)
        assert values(ask(calls, "ModelInfer", texts("last order")))["label"] == ["order@v1"]
        # Nobody waited for it any more, so the model was not asked.
        assert ("late order",) not in model.calls


def test_a_model_that_fails_is_an_internal_error_without_its_reason(registry, publish, serving, channel, shelf, caplog):
    def fail(texts):
        if "secret" in texts[0]:
            raise RuntimeError(texts[0])
        return good(texts)

    publish(registry, "v1")
    with serving(grpc_port=0) as client:
        good = shelf.made["v1"][0]._script
        shelf.made["v1"][0]._script = fail
        error = refused(channel(client), "ModelInfer", texts("a secret"))
        assert error.code() == grpc.StatusCode.INTERNAL
        assert "RuntimeError" in error.details()
        assert "a secret" not in error.details()


def metadata(key):
    return [("authorization", f"Bearer {key}")]


def test_the_same_keys_are_asked_for(guarded, make, channel, stream, records):
    good, other, slow = make(), make("other", "admin"), make("slow", "predict", rate=0.001, burst=1)
    with guarded(grpc_port=0) as client:
        calls = channel(client)
        for method, request in (
            ("ModelInfer", texts("order")),
            ("ModelMetadata", pb.ModelMetadataRequest(name="perdure")),
            ("ModelReady", pb.ModelReadyRequest(name="perdure", version="v2")),
        ):
            assert refused(calls, method, request).code() == grpc.StatusCode.UNAUTHENTICATED
            wrong = refused(calls, method, request, metadata=metadata(good[:-1] + "x"))
            assert wrong.code() == grpc.StatusCode.UNAUTHENTICATED
            assert good[-20:-1] not in wrong.details()
            denied = refused(calls, method, request, metadata=metadata(other))
            assert denied.code() == grpc.StatusCode.PERMISSION_DENIED
            assert "predict" in denied.details()
        assert records(stream) == []
        assert ask(calls, "ModelInfer", texts("order"), metadata=metadata(good)).model_version == "v2"
        assert ask(calls, "ModelInfer", texts("order"), metadata=[("x-api-key", good)]).model_version == "v2"
        assert ask(calls, "ServerReady", pb.ServerReadyRequest()).ready is True
        assert ask(calls, "ModelReady", pb.ModelReadyRequest(name="perdure")).ready is True
        # One rate for both ways in.
        body, headers = {"text": "order"}, {"X-API-Key": slow}
        assert client.post("/v1/predict", json=body, headers=headers).status_code == 200
        spent = refused(calls, "ModelInfer", texts("order"), metadata=metadata(slow))
        assert spent.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert int(dict(spent.trailing_metadata())["retry-after"]) > 1


def test_calls_are_counted_by_how_they_ended(registry, publish, serving, channel, until):
    publish(registry, "v1")
    with serving(grpc_port=0) as client:
        calls = channel(client)
        ask(calls, "ModelInfer", texts("order"))
        refused(calls, "ModelInfer", texts(" "))
        until(lambda: series(client, "INVALID_ARGUMENT") == 1)
        assert series(client, "OK") == 1
        found = client.app.state.service.metrics.text().decode()
        assert 'perdure_grpc_request_duration_seconds_count{method="ModelInfer"} 2.0' in found


def test_calls_under_way_are_answered_when_serving_ends_and_no_others_are_taken(
    registry, publish, serving, channel, shelf, until
):
    publish(registry, "v1")
    answers = []
    with serving(grpc_port=0, drain_seconds=5.0) as client:
        calls, model = channel(client), shelf.made["v1"][0]
        model.gate.clear()
        held = threading.Thread(target=lambda: answers.append(ask(calls, "ModelInfer", texts("first order"))))
        held.start()
        until(lambda: ("first order",) in model.calls)
        threading.Timer(0.3, model.gate.set).start()
    held.join(5)
    assert [values(answer)["label"] for answer in answers] == [["order@v1"]]
    assert refused(calls, "ServerLive", pb.ServerLiveRequest(), timeout=2).code() == grpc.StatusCode.UNAVAILABLE


def test_it_is_off_by_default(registry, publish, serving):
    publish(registry, "v1")
    with serving() as client:
        assert not hasattr(client.app.state, "grpc_port")
        assert "perdure_grpc" not in client.app.state.service.metrics.text().decode()


def test_an_error_of_ours_is_told_as_over_http(registry, publish, serving, channel, service_of, monkeypatch, caplog):
    async def fail(*texts, **named):
        raise RegistryError("the registry is away")

    publish(registry, "v1")
    with serving(grpc_port=0) as client:
        monkeypatch.setattr(service_of(client), "predict", fail)
        error = refused(channel(client), "ModelInfer", texts("order"))
    assert error.code() == grpc.StatusCode.UNAVAILABLE
    assert "the registry is away: look at the registry and try again" in error.details()
    assert dict(error.trailing_metadata())["retry-after"] == "1"
    assert "ModelInfer could not be done: the registry is away" in caplog.text


@pytest.mark.parametrize("name", ["😀" * 4000, "x" * 20_000, "%\n\0" * 4000])
def test_details_that_would_not_fit_a_header_are_cut(v1, name):
    error = refused(v1, "ModelMetadata", pb.ModelMetadataRequest(name=name), metadata=[("x-request-id", "abc")])
    assert error.code() == grpc.StatusCode.NOT_FOUND
    assert error.details().startswith("there is no model '")
    assert error.details().endswith("… (request abc)")
