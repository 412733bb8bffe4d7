"""/metrics and /healthz, asked over real sockets."""

from __future__ import annotations

import socket
import threading
import time

import httpx
import pytest
from prometheus_client import CollectorRegistry, Counter
from prometheus_client.parser import text_string_to_metric_families

from perdure.errors import UsageError
from perdure_services.monitor import endpoint as module
from perdure_services.monitor.endpoint import Endpoint


@pytest.fixture
def told():
    registry = CollectorRegistry()
    Counter("perdure_things", "Things.", registry=registry).inc(3)
    return registry


@pytest.fixture
def problem():
    return [""]


@pytest.fixture
def url(told, problem):
    with Endpoint("127.0.0.1", 0, registry=told, problem=lambda: problem[0]) as endpoint:
        yield f"http://127.0.0.1:{endpoint.port}"


def test_the_series_are_told_in_both_formats(url):
    plain = httpx.get(f"{url}/metrics")
    assert plain.headers["content-type"].startswith("text/plain; version=")
    families = {family.name: family for family in text_string_to_metric_families(plain.text)}
    assert [sample.value for sample in families["perdure_things"].samples if sample.name == "perdure_things_total"] == [
        3
    ]
    openmetrics = httpx.get(f"{url}/metrics?x=1", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert openmetrics.headers["content-type"].startswith("application/openmetrics-text")
    assert openmetrics.text.endswith("# EOF\n")


def test_health_says_why_not(url, problem):
    well = httpx.get(f"{url}/healthz")
    assert (well.status_code, well.json()) == (200, {"live": True, "reason": ""})
    problem[0] = "it hangs"
    ill = httpx.get(f"{url}/healthz")
    assert (ill.status_code, ill.json()) == (503, {"live": False, "reason": "it hangs"})


@pytest.mark.parametrize("path", ["/", "/metricsz", "/readyz", "/metrics/"])
def test_there_is_nothing_else(url, path):
    assert httpx.get(f"{url}{path}").status_code == 404
    assert httpx.post(f"{url}/metrics").status_code == 501


def test_somebody_who_says_nothing_holds_up_nobody(url, monkeypatch):
    host, port = url.removeprefix("http://").split(":")
    silent = [socket.create_connection((host, int(port))) for _ in range(20)]
    try:
        for one in silent:
            one.sendall(b"GET /met")
        begun = time.monotonic()
        assert httpx.get(f"{url}/healthz").status_code == 200
        assert time.monotonic() - begun < 2
    finally:
        for one in silent:
            one.close()


def test_connections_that_stay_silent_are_closed(told, monkeypatch):
    monkeypatch.setattr(module._Handler, "timeout", 0.2)
    with (
        Endpoint("127.0.0.1", 0, registry=told, problem=str) as endpoint,
        socket.create_connection(("127.0.0.1", endpoint.port)) as silent,
    ):
        silent.settimeout(5)
        assert silent.recv(10) == b""


def test_a_port_that_is_taken_is_said(told, url):
    port = int(url.rpartition(":")[2])
    with pytest.raises(UsageError, match=rf"cannot be told at 127\.0\.0\.1:{port}: .*another host or port"):
        Endpoint("127.0.0.1", port, registry=told, problem=str)


def test_nothing_is_left_when_it_is_closed(told):
    before = threading.active_count()
    endpoint = Endpoint("127.0.0.1", 0, registry=told, problem=str)
    endpoint.close()
    assert threading.active_count() == before
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", endpoint.port), timeout=1)
