"""What browsers are told of every answer, and the shape of errors."""

from __future__ import annotations

import re

import pytest
from starlette.responses import HTMLResponse

from perdure_services.serving.access import open_to_all
from perdure_services.serving.security_headers import DATA_POLICY, DOCS_POLICY, PAGE_POLICY

ALWAYS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}

OWN = "default-src 'self'; frame-ancestors 'none'"


@pytest.fixture
def client(registry, publish, serving):
    publish(registry, "v1")
    with serving(raise_server_exceptions=False) as client:
        yield client


def careful(response):
    told = {name: response.headers.get_list(name) for name in ALWAYS}
    assert told == {name: [value] for name, value in ALWAYS.items()}
    (policy,) = response.headers.get_list("Content-Security-Policy")
    assert "frame-ancestors 'none'" in policy
    return policy


def test_every_answer_is_marked(client):
    async def broken() -> None:
        raise RuntimeError("broken")

    client.app.add_api_route("/broken", open_to_all(broken))
    for response, status in (
        (client.post("/v1/predict", json={"text": "a refund"}), 200),
        (client.post("/v1/predict", json={}), 422),
        (client.get("/v1/predict"), 405),
        (client.get("/nowhere"), 404),
        (client.get("/metrics"), 200),
        (client.get("/readyz"), 200),
        (client.get("/broken"), 500),
    ):
        assert response.status_code == status
        assert careful(response) == DATA_POLICY


def test_pages_may_run_what_is_served_here_and_nothing_else(client):
    async def page() -> HTMLResponse:
        return HTMLResponse("<p>Hello</p>")

    async def own() -> HTMLResponse:
        return HTMLResponse("<p>Hello</p>", headers={"Content-Security-Policy": OWN, "Cache-Control": "max-age=9"})

    client.app.add_api_route("/page", open_to_all(page))
    client.app.add_api_route("/own", open_to_all(own))
    policy = careful(client.get("/page"))
    assert policy == PAGE_POLICY
    assert "unsafe" not in policy
    assert "https:" not in policy
    response = client.get("/own")
    assert response.headers.get_list("Content-Security-Policy") == [OWN]
    assert response.headers.get_list("Cache-Control") == ["max-age=9"]


@pytest.mark.parametrize("path", ["/docs", "/redoc"])
def test_the_docs_may_load_what_they_are_made_of(client, path):
    response = client.get(path)
    assert careful(response) == DOCS_POLICY
    allowed = {part.split()[0]: part.split()[1:] for part in DOCS_POLICY.split("; ")}
    needed = {"script": "script-src", "link": "style-src", "img": "img-src"}
    found = re.findall(r"<(script|link|img)\b[^>]*(?:src|href)=\"(https://[^/\"]+)([^\"]*)", response.text)
    assert found
    for tag, host, rest in found:
        directive = "img-src" if rest.endswith((".png", ".ico")) else needed[tag]
        assert host in allowed[directive], (tag, host)


def test_errors_are_problems_of_rfc_9457(client):
    for response in (
        client.post("/v1/predict", json={}),
        client.get("/nowhere"),
        client.put("/readyz"),
        client.post("/v1/predict", content=b"{", headers={"Content-Type": "application/json"}),
    ):
        assert response.headers["Content-Type"] == "application/problem+json"
        problem = response.json()
        assert set(problem) == {"type", "title", "status", "detail", "request_id", "error"}
        assert problem["status"] == response.status_code
        assert problem["title"]
        assert problem["detail"] == problem["error"]["what"]
        assert set(problem["error"]) == {"what", "value", "do"}
