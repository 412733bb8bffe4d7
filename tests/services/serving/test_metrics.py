"""What Prometheus gets: names by its rules, a bounded number of series, and figures that are right."""

from __future__ import annotations

import re
import threading
import time
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from perdure_services.monitor.page import page
from perdure_services.serving import metrics as module
from perdure_services.serving.metrics import KEPT_VERSIONS, Metrics
from perdure_services.serving.series import all_series


@pytest.fixture
def metrics():
    return Metrics()


def value(metrics, name, **labels):
    return metrics.registry.get_sample_value(f"perdure_{name}", labels)


def versions(metrics, name):
    families = parse_text(metrics.text().decode())
    return {sample.labels.get("version") for one in families if one.name == f"perdure_{name}" for sample in one.samples}


def test_the_page_is_what_the_code_makes():
    file = Path(__file__).parents[3] / "docs" / "metrics.md"
    assert file.read_text(encoding="utf-8") == page(), "run `make metrics-table`"


def test_every_series_that_a_process_tells_is_on_the_page(guarded, make):
    key = make("web", "predict", "metrics")
    with guarded(grpc_port=0) as client:
        client.post("/v1/predict", json={"text": "order"}, headers={"X-API-Key": key})
        told = {one.name: one for one in parse_text(client.get("/metrics", headers={"X-API-Key": key}).text)}
    known = {series.name.removesuffix("_total"): series for series in all_series()}
    assert set(told) == set(known)
    for name, family in told.items():
        assert family.type == known[name].kind
        for sample in family.samples:
            assert set(sample.labels) - {"le"} == set(known[name].labels)


def test_names_follow_the_rules():
    for series in all_series():
        assert re.fullmatch(r"(perdure|process|python)_[a-z0-9_]+", series.name)
        assert (series.kind == "counter") == series.name.endswith("_total")
        assert series.meaning
        assert not re.search(r"_(ms|millis|minutes|kb|mb|percent|count|sum|bucket|created)(_|$)", series.name)


def test_a_batch_is_counted_for_the_version_that_answered(metrics):
    metrics.swapped("v1", 1)
    metrics.computed("v1", 3, 0.02)
    metrics.waited("v1", [0.004, 0.3])
    assert value(metrics, "batch_size_sum", version="v1") == 3
    assert value(metrics, "inference_duration_seconds_sum", version="v1") == pytest.approx(0.02)
    assert value(metrics, "queue_time_seconds_sum", version="v1") == pytest.approx(0.304)
    assert value(metrics, "queue_time_seconds_bucket", version="v1", le="0.005") == 1


def test_what_is_kept_by_version_goes_with_the_version(metrics):
    names = ("predictions", "queue_time_seconds", "batch_size", "inference_duration_seconds")
    for number in range(10):
        metrics.swapped(f"v{number}", number)
        metrics.predicted(f"v{number}", ["order"])
        if number % 2:  # Some never answer a batch.
            metrics.computed(f"v{number}", 1, 0.1)
            metrics.waited(f"v{number}", [0.1])
    kept = {f"v{number}" for number in range(10 - KEPT_VERSIONS, 10)}
    assert versions(metrics, names[0]) == kept
    for name in names[1:]:
        assert versions(metrics, name) == {one for one in kept if int(one[1]) % 2}
    metrics.computed("v0", 1, 0.1)
    metrics.waited("v0", [0.1])
    metrics.predicted("v0", ["order"])
    for name in names:
        assert "v0" not in versions(metrics, name), "the last answers of an old version bring nothing back"


def test_a_version_that_serves_again_counts_on(metrics):
    for number, name in enumerate(["v1", "v2", "v3", "v1", "v4"]):
        metrics.swapped(name, number)
        metrics.computed(name, 1, 0.1)
        metrics.waited(name, [0.1])
    assert versions(metrics, "batch_size") == {"v3", "v1", "v4"}
    assert value(metrics, "batch_size_count", version="v1") == 2


def test_labels_are_bounded(metrics, monkeypatch):
    monkeypatch.setattr(module, "MAX_LABELS", 3)
    metrics.swapped("v1", 1)
    metrics.predicted("v1", ["a", "b", "c", "d", "e", "a", "d"])
    told = {
        sample.labels["label"]: sample.value
        for family in parse_text(metrics.text().decode())
        if family.name == "perdure_predictions"
        for sample in family.samples
    }
    assert told == {"a": 2, "b": 1, "c": 1, "(other)": 3}
    for number in range(KEPT_VERSIONS):
        metrics.swapped(f"w{number}", number)
    assert versions(metrics, "predictions") == set()


def test_time_in_the_queue_is_the_time_until_the_model_begins(registry, publish, serving, shelf, service_of, until):
    publish(registry, "v1")
    with serving() as client:
        (model,) = shelf.made["v1"]
        service = service_of(client)
        model.gate.clear()
        first = service.batcher.submit(["order"])
        until(lambda: len(model.calls) == 2)
        second = service.batcher.submit(["refund"])
        time.sleep(0.15)
        threading.Timer(0.01, model.gate.set).start()
        assert first.result(5).version == second.result(5).version == "v1"
        assert value(service.metrics, "queue_time_seconds_bucket", version="v1", le="0.1") == 1, "the first at once"
        assert 0.15 <= value(service.metrics, "queue_time_seconds_sum", version="v1") < 5
        assert value(service.metrics, "inference_duration_seconds_sum", version="v1") >= 0.15


def test_time_to_record_is_counted(registry, publish, serving, stream, service_of, monkeypatch):
    publish(registry, "v1")
    write = stream.append
    monkeypatch.setattr(stream, "append", lambda records: (time.sleep(0.05), write(records)))
    with serving() as client:
        client.post("/v1/predict", json={"text": "order"})
        metrics = service_of(client).metrics
    assert value(metrics, "record_duration_seconds_count") == 1
    assert 0.05 <= value(metrics, "record_duration_seconds_sum") < 5


def test_openmetrics_is_told_to_those_who_ask(registry, publish, serving):
    publish(registry, "v1")
    with serving() as client:
        client.post("/v1/predict", json={"text": "order"})
        plain = client.get("/metrics")
        response = client.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert plain.headers["content-type"].startswith("text/plain; version=")
    assert response.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    names = {family.name for family in parse_openmetrics(response.text)}
    assert {"perdure_http_requests", "process_cpu_seconds"} <= names


def test_the_process_tells_of_itself(metrics):
    families = {family.name: family for family in parse_text(metrics.text().decode())}
    assert families["process_resident_memory_bytes"].samples[0].value > 1e6
    assert families["process_open_fds"].samples[0].value > 0
    assert set(families["perdure_build_info"].samples[0].labels) == {"version", "python"}
    assert not [name for name in families if name.endswith("_created")]
