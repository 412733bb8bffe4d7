"""What surrounds a call over gRPC: id, trace, admission, key, deadline, departure and a line in the log."""

from __future__ import annotations

import asyncio
import threading
import time
import uuid
from types import SimpleNamespace

import grpc
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from perdure.logs import bound
from perdure_services.serving import api as api_module
from perdure_services.serving.loop_lag import LoopLag
from perdure_services.serving.refusal import Refusal
from perdure_services.serving.rpc import call as call_module
from perdure_services.serving.rpc import handler as handler_module
from perdure_services.serving.rpc import open_inference_pb2 as pb
from perdure_services.serving.tracing import Tracing

NAME = "inference.GRPCInferenceService"
TEXT = "i am Zdenka Novakova and my order is lost"
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"


def message(*texts, model="perdure"):
    request = pb.ModelInferRequest(model_name=model)
    tensor = request.inputs.add(name="text", datatype="BYTES", shape=[len(texts)])
    tensor.contents.bytes_contents.extend(text.encode() for text in texts)
    return request.SerializeToString()


def begin(channel, sent=None, *, method="ModelInfer", timeout=10, **metadata):
    """A call under way, to be asked for its result."""
    headers = [(name.replace("_", "-"), value) for name, value in metadata.items()]
    call = channel.unary_unary(f"/{NAME}/{method}")
    return call.future(message("order") if sent is None else sent, timeout=timeout, metadata=headers)


def ended(call):
    """Its code, its details and its trailing metadata."""
    return call.code(), call.details(), dict(call.trailing_metadata())


class Silence:
    """A call that opens, and of which no message comes until it is let go."""

    def __init__(self, channel, timeout=None, **metadata):
        self._said = threading.Event()
        headers = [(name.replace("_", "-"), value) for name, value in metadata.items()]
        call = channel.stream_unary(f"/{NAME}/ModelInfer")
        self.call = call.future(self._messages(), timeout=timeout, metadata=headers)

    def _messages(self):
        self._said.wait(20)
        yield from ()

    def end(self):
        """The same as `ended`."""
        self.call.exception(15)
        self._said.set()
        return ended(self.call)


@pytest.fixture
def logged(monkeypatch):
    """The lines of the access log, with what was bound to each."""
    lines = []
    monkeypatch.setattr(handler_module, "log_call", lambda *said: lines.append((*said, dict(bound()))))
    return lines


@pytest.fixture
def spans(monkeypatch):
    """What was traced, by name."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(api_module, "open_tracing", lambda: Tracing(provider))
    return lambda name: [span for span in exporter.get_finished_spans() if span.name == name]


def counted(client, code, method="ModelInfer"):
    found = client.app.state.service.metrics.registry
    return found.get_sample_value("perdure_grpc_requests_total", {"method": method, "code": code}) or 0


# ── the id ──
def test_every_answer_names_its_call(registry, publish, serving, channel, logged, until):
    publish(registry, "v1")
    with serving(grpc_port=0, access_log=True) as client:
        calls = channel(client)
        good = begin(calls, x_request_id="abc")
        assert good.result()
        assert ended(good)[2]["x-request-id"] == "abc"
        made = begin(calls)
        assert made.result()
        assert uuid.UUID(ended(made)[2]["x-request-id"])
        code, details, trailing = ended(begin(calls, message(" "), x_request_id="def"))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert details.endswith(" (request def)")
        assert trailing["x-request-id"] == "def"
        replaced = ended(begin(calls, x_request_id="a b"))[2]["x-request-id"]
        assert uuid.UUID(replaced)
        until(lambda: len(logged) == 4)
    assert [line[-1]["request_id"] for line in logged] == ["abc", logged[1][-1]["request_id"], "def", replaced]


def test_metadata_that_no_client_of_grpc_sends_is_taken_all_the_same():
    """Bytes that are not UTF-8 come so."""
    context = SimpleNamespace(invocation_metadata=lambda: (("x-request-id", "é\ufffd"), ("é", "a"), ("x-bin", b"\xff")))
    call = call_module.Call(context, None)
    assert uuid.UUID(call.id)
    assert call.headers[2] == (b"x-bin", b"\xff")


def test_the_access_log_says_what_was_called_by_whom_and_how_it_ended(guarded, make, channel, logged, until):
    key = make("web", "predict")
    with guarded(grpc_port=0) as client:
        assert begin(channel(client), x_api_key=key).result()
        assert begin(channel(client), b"", method="ServerLive").result()
    assert logged == []
    with guarded(grpc_port=0, access_log=True) as client:
        calls = channel(client)
        assert begin(calls, x_api_key=key).result()
        begin(calls).exception()
        begin(calls, b"", method="Nothing").exception()
        until(lambda: len(logged) == 3)
    assert [(method, code, name) for method, code, _, name, _ in logged] == [
        ("ModelInfer", "OK", "web"),
        ("ModelInfer", "UNAUTHENTICATED", None),
        ("other", "UNIMPLEMENTED", None),
    ]
    assert all(0 < seconds < 5 for _, _, seconds, _, _ in logged)


def test_a_line_of_the_access_log(caplog):
    caplog.set_level("INFO", logger="perdure_services")
    handler_module.log_call("ModelInfer", "OK", 0.0123, "web")
    (line,) = caplog.records
    assert line.getMessage() == "gRPC ModelInfer OK in 12.3 ms"
    assert line.fields == {"rpc": "ModelInfer", "code": "OK", "seconds": 0.0123, "key": "web"}


# ── the trace ──
def test_a_call_is_a_span_in_the_trace_of_its_client(registry, publish, serving, channel, spans, until, logged):
    publish(registry, "v1")
    method = f"{NAME}/ModelInfer"
    with serving(grpc_port=0, traces=True, access_log=True) as client:
        calls = channel(client)
        assert begin(calls, traceparent=f"00-{TRACE}-{PARENT}-01", x_request_id="abc").result()
        until(lambda: len(spans(method)) == 1)
        begin(calls, message(" ")).exception()
        begin(calls, b"", method="Zdenka").exception()
        until(lambda: len(spans(method)) == 2 and spans("grpc"))
    call, refused = spans(method)
    assert call.kind is SpanKind.SERVER
    assert (f"{call.context.trace_id:032x}", f"{call.parent.span_id:016x}") == (TRACE, PARENT)
    assert dict(call.attributes) == {
        "rpc.system.name": "grpc",
        "rpc.method": method,
        "rpc.response.status_code": "OK",
        "perdure.request_id": "abc",
    }
    assert call.status.status_code is StatusCode.UNSET
    for name in ("queue", "model", "record"):
        assert spans(name)[0].parent.span_id == call.context.span_id
    assert logged[0][-1]["span_id"] == f"{call.context.span_id:016x}"
    # What a client did wrong is no failure of the server.
    assert refused.attributes["rpc.response.status_code"] == "INVALID_ARGUMENT"
    assert refused.status.status_code is StatusCode.UNSET
    (unknown,) = spans("grpc")
    assert (unknown.attributes["rpc.method"], unknown.attributes["error.type"]) == ("_OTHER", "UNIMPLEMENTED")
    assert "Zdenka" not in unknown.to_json()


def test_a_failure_is_traced_without_what_was_sent(registry, publish, serving, channel, spans, shelf, until):
    def quoting(texts):
        raise ValueError(f"cannot make tokens of {texts!r}")

    publish(registry, "v1")
    with serving(grpc_port=0, traces=True) as client:
        shelf.made["v1"][0]._script = quoting
        assert ended(begin(channel(client), message(TEXT)))[0] is grpc.StatusCode.INTERNAL
        until(lambda: spans(f"{NAME}/ModelInfer"))
    (failed,) = spans(f"{NAME}/ModelInfer")
    assert (failed.status.status_code, failed.attributes["error.type"]) == (StatusCode.ERROR, "ValueError")
    assert "Zdenka" not in failed.to_json()


# ── the door ──
@pytest.fixture
def unread(monkeypatch):
    """Messages that were asked for."""
    asked = []
    read = call_module.Call.message

    async def noted(self, kind, until):
        asked.append(kind)
        return await read(self, kind, until)

    monkeypatch.setattr(call_module.Call, "message", noted)
    return asked


def test_what_may_not_come_in_is_not_read(registry, publish, serving, channel, unread, monkeypatch):
    def shed(self):
        raise Refusal(429, "too many", do="wait", headers={"Retry-After": "2"})

    publish(registry, "v1")
    monkeypatch.setattr(LoopLag, "check", shed)
    with serving(grpc_port=0) as client:
        calls = channel(client)
        code, details, trailing = Silence(calls, x_request_id="abc").end()
        assert (code, details) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "too many: wait (request abc)")
        assert (trailing["retry-after"], trailing["grpc-retry-pushback-ms"]) == ("2", "2000")
        assert ended(begin(calls, b"x" * 5_000_000))[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert unread == []
        assert begin(calls, b"", method="ServerLive").result()


def test_a_call_that_would_wait_too_long_is_refused_at_once(
    registry, publish, serving, channel, shelf, until, service_of, unread
):
    publish(registry, "v1")
    with serving(grpc_port=0, max_queue=1, max_batch=1) as client:
        model, batcher = shelf.made["v1"][0], service_of(client).batcher
        model.gate.clear()
        waiting = [batcher.submit(["order"])]
        until(lambda: ("order",) in model.calls)
        waiting.append(batcher.submit(["refund"]))
        code, details, _ = Silence(channel(client)).end()
        model.gate.set()
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "wait for the model" in details
        assert unread == []
        assert [one.result(5).version for one in waiting] == ["v1", "v1"]


def test_a_deadline_that_cannot_be_kept_is_told_at_the_door(registry, publish, serving, channel, service_of, unread):
    publish(registry, "v1")
    with serving(grpc_port=0) as client:
        asked = []
        service_of(client).batcher.check = lambda deadline: asked.append(deadline - time.monotonic())
        calls = channel(client)
        begin(calls, timeout=5).result()
        begin(calls, timeout=5, x_request_timeout_ms="2000").result()
        begin(calls, timeout=None).result()
        assert asked == [pytest.approx(5, abs=1), pytest.approx(2, abs=1), pytest.approx(30, abs=2)]
        code, details, _ = ended(begin(calls, x_request_timeout_ms="soon"))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert "whole number of milliseconds" in details
        assert len(unread) == 3


def test_the_key_is_asked_for_before_the_message(guarded, make, channel, unread):
    make("other", "admin")
    with guarded(grpc_port=0) as client:
        assert Silence(channel(client)).end()[0] is grpc.StatusCode.UNAUTHENTICATED
    assert unread == []


@pytest.mark.parametrize("how", ["good", "refused", "failed", "left"])
def test_whoever_was_let_in_is_counted_until_the_end(
    registry, publish, serving, channel, shelf, until, how, monkeypatch
):
    lags = []
    built = LoopLag.__init__
    monkeypatch.setattr(LoopLag, "__init__", lambda self, shed: (lags.append(self), built(self, shed))[1])
    publish(registry, "v1")
    with serving(grpc_port=0) as client:
        model, (lag,) = shelf.made["v1"][0], lags
        in_flight = client.app.state.service.metrics.registry.get_sample_value
        if how == "failed":
            model._script = None
        model.gate.clear()
        sent = message("order", "order") if how != "refused" else message("order", " ")
        call = begin(channel(client), sent)
        if how != "refused":
            until(lambda: ("order", "order") in model.calls)
            assert (lag.under_way, in_flight("perdure_grpc_requests_in_flight")) == (1, 1)
        if how == "left":
            call.cancel()
            until(lambda: lag.under_way == 0)
        model.gate.set()
        if how != "left":
            call.exception()
        until(lambda: (lag.under_way, in_flight("perdure_grpc_requests_in_flight")) == (0, 0))


# ── departure and deadline ──
def test_a_call_that_is_cancelled_frees_its_place(
    registry, publish, serving, channel, shelf, until, service_of, stream, records
):
    publish(registry, "v1")
    with serving(grpc_port=0, max_batch=1) as client:
        model, service = shelf.made["v1"][0], service_of(client)
        model.gate.clear()
        held = service.batcher.submit(["first order"])
        until(lambda: ("first order",) in model.calls)
        call = begin(channel(client), message("second order"))
        until(lambda: len(service.batcher._line))
        call.cancel()
        until(lambda: not len(service.batcher._line))
        until(lambda: counted(client, "CANCELLED") == 1)
        model.gate.set()
        assert held.result(5).version == "v1"
        assert begin(channel(client), message("third order")).result()
        assert ("second order",) not in model.calls
        assert [record.text for record in records(stream)] == ["third order"]


def test_a_call_whose_time_is_up_counts_as_that(serving, channel, until, service_of):
    async def thinking():
        await asyncio.sleep(5)

    with serving(grpc_port=0) as client:
        service_of(client).ready = thinking
        call = begin(channel(client), b"", method="ServerReady", timeout=0.2)
        assert ended(call)[0] is grpc.StatusCode.DEADLINE_EXCEEDED
        until(lambda: counted(client, "DEADLINE_EXCEEDED", "ServerReady") == 1)


def test_a_deadline_in_the_metadata_holds_while_the_model_works(registry, publish, serving, channel, shelf):
    publish(registry, "v1")
    with serving(grpc_port=0) as client:
        shelf.made["v1"][0].gate.clear()
        began = time.monotonic()
        code, details, _ = ended(begin(channel(client), x_request_timeout_ms="200"))
        assert time.monotonic() - began < 3
        shelf.made["v1"][0].gate.set()
    assert (code, details[:30]) == (grpc.StatusCode.DEADLINE_EXCEEDED, "no answer was there in time: s")


def test_a_message_that_does_not_come_is_not_waited_for(registry, publish, serving, channel):
    publish(registry, "v1")
    with serving(grpc_port=0, timeout_seconds=0.2) as client:
        began = time.monotonic()
        code, details, _ = Silence(channel(client)).end()
        assert 0.15 < time.monotonic() - began < 9
        assert code is grpc.StatusCode.DEADLINE_EXCEEDED
        assert "the message did not come in time" in details


# ── what cannot be answered ──
@pytest.mark.parametrize(
    ("sent", "part"),
    [
        (b"\xff\xff\xff", "cannot be read as one of the type inference.ModelInferRequest"),
        (b"\x0a\x01\xff", "cannot be read as one of the type inference.ModelInferRequest"),
        (b"", "there is no model ''"),
    ],
)
def test_a_message_that_is_none_is_the_clients_mistake(registry, publish, serving, channel, sent, part, caplog):
    publish(registry, "v1")
    with serving(grpc_port=0) as client:
        code, details, _ = ended(begin(channel(client), sent))
    assert code in {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND}
    assert part in details
    assert not [line for line in caplog.records if line.levelname == "ERROR"]


def test_a_call_without_a_message_is_the_clients_mistake(registry, publish, serving, channel):
    publish(registry, "v1")
    with serving(grpc_port=0) as client:
        call = channel(client).stream_unary(f"/{NAME}/ModelInfer").future(iter(()), timeout=5)
        code, details, _ = ended(call)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "without a message" in details


def test_a_method_that_is_not_there_is_told(serving, channel, until):
    with serving(grpc_port=0) as client:
        code, details, trailing = ended(begin(channel(client), method="RepositoryModelLoad"))
        assert code is grpc.StatusCode.UNIMPLEMENTED
        assert "there is no such method here" in details
        assert trailing["x-request-id"]
        until(lambda: counted(client, "UNIMPLEMENTED", "other") == 1)
