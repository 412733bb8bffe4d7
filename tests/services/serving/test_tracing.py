"""Traces: one span a request, in the trace that the client began, with nothing in it of what was sent."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from perdure.errors import SettingError
from perdure_services.serving import api as api_module
from perdure_services.serving import tracing as module
from perdure_services.serving.tracing import Tracing, note, open_tracing

TEXT = "i am Zdenka Novakova and my order is lost"
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"


@pytest.fixture(autouse=True)
def _no_settings_of_others(monkeypatch):
    for name in list(os.environ):
        if name.startswith("OTEL_"):
            monkeypatch.delenv(name)


@pytest.fixture
def spans(monkeypatch):
    """What was traced, by name."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(api_module, "open_tracing", lambda: Tracing(provider))

    def found(name=None):
        all_spans = exporter.get_finished_spans()
        return [span for span in all_spans if name is None or span.name == name]

    return found


def test_a_request_is_a_span_with_queue_model_and_record_within(registry, publish, serving, spans, stream, monkeypatch):
    publish(registry, "v1")
    write = stream.append
    monkeypatch.setattr(stream, "append", lambda records: (time.sleep(0.03), write(records)))
    begin = time.time_ns()
    with serving(traces=True) as client:
        headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "X-Request-ID": "abc"}
        assert client.post("/v1/predict", json={"texts": ["order", "refund"]}, headers=headers).status_code == 200
    (request,) = spans("POST /v1/predict")
    assert request.kind == SpanKind.SERVER
    assert f"{request.context.trace_id:032x}" == TRACE
    assert f"{request.parent.span_id:016x}" == PARENT
    assert dict(request.attributes) == {
        "http.request.method": "POST",
        "http.route": "/v1/predict",
        "http.response.status_code": 200,
        "url.scheme": "http",
        "network.protocol.version": "1.1",
        "perdure.request_id": "abc",
    }
    inner = [spans(name)[0] for name in ("queue", "model", "record")]
    for span in inner:
        assert span.parent.span_id == request.context.span_id
        assert span.context.trace_id == request.context.trace_id
        assert begin <= request.start_time <= span.start_time + 1_000_000
        assert span.start_time <= span.end_time <= request.end_time + 1_000_000
    queue, model, record = inner
    assert queue.end_time == pytest.approx(model.start_time, abs=1e6)
    assert model.end_time <= record.start_time + 1_000_000
    assert record.end_time - record.start_time >= 30_000_000
    assert dict(model.attributes) == {"perdure.version": "v1", "perdure.texts": 2}
    assert dict(record.attributes) == {"perdure.fate": "recorded"}
    assert len(spans()) == 4


def test_time_in_the_queue_is_told_apart_from_the_model(registry, publish, serving, spans, shelf, service_of, until):
    publish(registry, "v1")
    with serving(traces=True) as client:
        (model,) = shelf.made["v1"]
        service = service_of(client)
        model.gate.clear()
        before = service.batcher.submit(["order"])
        until(lambda: len(model.calls) == 2)
        asking = threading.Thread(target=client.post, args=("/v1/predict",), kwargs={"json": {"text": "refund"}})
        asking.start()
        until(lambda: service.metrics.registry.get_sample_value("perdure_requests_waiting") == 1)
        time.sleep(0.1)
        model.gate.set()
        asking.join(5)
        assert before.result(5).version == "v1"
    (queue,), (inner,) = spans("queue"), spans("model")
    assert queue.end_time - queue.start_time >= 95_000_000
    assert inner.end_time - inner.start_time < queue.end_time - queue.start_time


def test_without_a_parent_a_trace_begins_and_each_request_has_its_own(registry, publish, serving, spans):
    publish(registry, "v1")
    with serving(traces=True) as client:
        for parent in (None, "00-zz-xx-01", f"00-{'0' * 32}-{PARENT}-01"):
            client.get("/healthz", headers={"traceparent": parent} if parent else {})
    found = spans("GET /healthz")
    assert [span.parent for span in found] == [None] * 3
    assert len({span.context.trace_id for span in found}) == 3


def test_what_the_client_does_not_sample_is_not_traced(registry, serving, spans):
    with serving(traces=True) as client:
        client.get("/healthz", headers={"traceparent": f"00-{TRACE}-{PARENT}-00"})
    assert spans() == []


def test_log_lines_name_the_trace(registry, serving, spans, caplog):
    bound = []
    with serving(traces=True, access_log=True) as client, pytest.MonkeyPatch.context() as patch:
        patch.setattr("perdure_services.serving.metering.log_request", lambda *_: bound.append(dict(module.bound())))
        client.get("/healthz", headers={"traceparent": f"00-{TRACE}-{PARENT}-01", "X-Request-ID": "abc"})
    (span,) = spans("GET /healthz")
    assert bound == [{"request_id": "abc", "trace_id": TRACE, "span_id": f"{span.context.span_id:016x}"}]


def test_nothing_that_was_sent_is_traced(guarded, make, spans, shelf):
    def quoting(texts):
        raise ValueError(f"cannot make tokens of {texts!r}")

    key = make("web", "predict", "feedback", "admin")
    headers = {"X-API-Key": key}
    with guarded(traces=True, raise_server_exceptions=False) as client:
        client.post("/v1/predict", json={"text": TEXT, "subject": "Zdenka"}, headers=headers)
        client.post("/v1/feedback", json={"id": "x", "label": "Zdenka"}, headers=headers)
        client.delete("/v1/subjects/Zdenka", headers=headers)
        client.get("/Zdenka", headers=headers)
        client.request("ZDENKA", "/healthz")
        (model,) = shelf.made["v2"]
        model._script = quoting
        assert client.post("/v1/predict", json={"text": TEXT}, headers=headers).status_code == 500
    told = "".join(span.to_json() for span in spans())
    assert "zdenka" not in told.lower()
    assert key[-64:] not in told
    assert {span.name for span in spans()} >= {"GET", "HTTP /healthz", "DELETE /v1/subjects/{subject}"}
    failed = [span for span in spans("POST /v1/predict") if span.status.status_code is StatusCode.ERROR]
    assert [(span.attributes["error.type"], span.events) for span in failed] == [("ValueError", ())]
    assert failed[0].attributes["http.response.status_code"] == 500


def test_a_refusal_is_no_failure(registry, publish, serving, spans):
    publish(registry, "v1")
    with serving(traces=True) as client:
        client.post("/v1/predict", json={"text": ""})
        client.get("/nowhere")
    statuses = {span.attributes["http.response.status_code"]: span.status.status_code for span in spans()}
    assert statuses == {422: StatusCode.UNSET, 404: StatusCode.UNSET}


def test_what_is_not_asked_for_is_not_traced(registry, publish, serving, spans):
    publish(registry, "v1")
    with serving() as client:
        client.post("/v1/predict", json={"text": "order"})
    note("queue", 0.0, 1.0)
    assert spans() == []


def test_without_traces_no_sdk_is_imported():
    program = (
        "import sys; import perdure_services.serving.command, perdure_services.serving.api; "
        "print([name for name in sys.modules if name.startswith(('opentelemetry.sdk', 'opentelemetry.exporter'))])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_fastapi_sends_nothing_of_its_own(registry, publish, serving, monkeypatch, service_of):
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr("opentelemetry.trace._TRACER_PROVIDER", provider)
    monkeypatch.setenv("FASTAPI_OTEL_AUTO_CONFIGURE", "true")
    publish(registry, "v1")
    with serving(raise_server_exceptions=False) as client:
        client.post("/v1/predict", json={"text": TEXT, "unknown": TEXT})
        client.delete("/v1/subjects/Zdenka")
        monkeypatch.setattr(service_of(client), "predict", None)
        client.post("/v1/predict", json={"text": TEXT})
    assert exporter.get_finished_spans() == ()


@pytest.fixture
def collector(monkeypatch):
    """Receives OTLP over HTTP; the requests that came, as (path, headers, content)."""
    came = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            came.append((self.path, dict(self.headers), ExportTraceServiceRequest.FromString(body)))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            return

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    yield came
    server.shutdown()
    thread.join(5)
    server.server_close()


def test_spans_reach_a_collector_by_the_end(registry, publish, serving, collector, monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=desk")
    publish(registry, "v1")
    with serving(traces=True) as client:
        client.post("/v1/predict", json={"text": "order"})
    ((path, headers, content),) = collector
    assert path == "/v1/traces"
    assert headers["x-tenant"] == "desk"
    (resource,) = content.resource_spans
    about = {pair.key: pair.value.string_value for pair in resource.resource.attributes}
    assert about["service.name"] == "perdure"
    assert about["service.version"]
    names = {span.name for scope in resource.scope_spans for span in scope.spans}
    assert names == {"POST /v1/predict", "queue", "model", "record"}


@pytest.mark.parametrize(
    ("name", "value"), [("OTEL_SERVICE_NAME", "desk"), ("OTEL_RESOURCE_ATTRIBUTES", "service.name=desk,team=a")]
)
def test_the_environment_names_the_service(collector, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    tracing = open_tracing()
    tracing.tracer.start_span("x").end()
    tracing.close()
    (resource,) = collector[0][2].resource_spans
    assert "desk" in {pair.value.string_value for pair in resource.resource.attributes if pair.key == "service.name"}


def test_a_collector_that_is_away_does_not_hold_up_the_end(registry, publish, serving, monkeypatch, caplog):
    monkeypatch.setattr(module, "CLOSE_SECONDS", 0.2)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    publish(registry, "v1")
    with serving(traces=True) as client:
        assert client.post("/v1/predict", json={"text": "order"}).status_code == 200
        begin = time.monotonic()
    assert time.monotonic() - begin < 3


def test_a_protocol_that_is_not_spoken_is_refused(monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    with pytest.raises(SettingError, match=r"OTEL_EXPORTER_OTLP_PROTOCOL is 'grpc'.*4318"):
        open_tracing()


def test_what_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(SettingError, match=r"perdure\[otel\]"):
        open_tracing()
