"""Who may call what: over every route, with every kind of key."""

from __future__ import annotations

import logging
import re
from datetime import UTC, datetime, timedelta

import pytest
from fastapi import APIRouter

from perdure_services.keys import SCOPES, issue
from perdure_services.serving import access as access_module
from perdure_services.serving import keyring as keyring_module
from perdure_services.serving.access import GuardedRoute, open_to_all
from perdure_services.serving.keyring import Keyring

OPEN = {
    ("GET", "/"),
    ("GET", "/docs"),
    ("GET", "/docs/oauth2-redirect"),
    ("GET", "/redoc"),
    ("GET", "/openapi.json"),
    ("GET", "/healthz"),
    ("GET", "/readyz"),
    ("GET", "/startupz"),
    ("GET", "/v2"),
    ("GET", "/v2/health/live"),
    ("GET", "/v2/health/ready"),
    ("GET", "/v2/models/{name}/ready"),
}
"""What asks for no key, all of it: probes, and what tells no more than the source does."""

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)


def bearer(text):
    return {"Authorization": f"Bearer {text}"}


def predict(client, headers=None):
    return client.post("/v1/predict", json={"text": "a refund"}, headers=headers or {})


def series(client, name):
    found = client.app.state.service.metrics.text().decode()
    return sum(float(line.rsplit(" ", 1)[1]) for line in found.splitlines() if line.startswith(name))


def routes_of(routes, prefix=""):
    """(method, path, route) of all routes, those of included routers too."""
    for route in routes:
        router = getattr(route, "original_router", None) or getattr(route, "app", None)
        if getattr(router, "routes", None):
            yield from routes_of(router.routes, prefix + (getattr(route, "path", None) or ""))
            continue
        for method in sorted(route.methods - {"HEAD"}):
            yield method, prefix + route.path, route


def called(client, method, path, headers=None):
    there = re.sub(r"\{[^}]*\}", "perdure", path)
    content = {"json": {}} if method in {"POST", "PUT", "PATCH"} else {}
    return client.request(method, there, headers=headers or {}, **content)


def test_every_route_asks_for_a_key_or_is_one_of_the_few_that_are_open(guarded, make):
    make("web", "predict")
    with guarded() as client:
        found = {(method, path): route for method, path, route in routes_of(client.app.routes)}
        described = client.get("/openapi.json").json()["paths"]
        assert {(method.upper(), path) for path, methods in described.items() for method in methods} <= {
            (method, re.sub(":[a-z]+}", "}", path)) for method, path in found
        }, "the walk above misses routes"
        assert set(found) >= OPEN
        for (method, path), route in found.items():
            needed = getattr(route, "needed", None)
            status = called(client, method, path).status_code
            assert ((method, path) in OPEN) == (needed is None), f"{method} {path} is not declared"
            assert (status == 401) == (needed is not None), f"{method} {path} answers {status} without a key"


@pytest.mark.parametrize("scope", SCOPES)
def test_a_key_may_do_what_its_scopes_say_and_no_more(guarded, make, scope):
    text = make("one", scope)
    allowed = {
        "predict": {
            ("POST", "/v1/predict"),
            ("POST", "/v1/embeddings"),
            ("GET", "/v2/models/{name}"),
            ("GET", "/v2/models/{name}/versions/{version}"),
            ("GET", "/v2/models/{name}/versions/{version}/ready"),
            ("POST", "/v2/models/{name}/infer"),
            ("POST", "/v2/models/{name}/versions/{version}/infer"),
        },
        "feedback": {("POST", "/v1/feedback")},
        "admin": {
            ("GET", "/v1/versions"),
            ("POST", "/v1/versions/{version:path}/promote"),
            ("POST", "/v1/rollback"),
            ("DELETE", "/v1/subjects/{subject:any}"),
        },
        "metrics": {("GET", "/metrics")},
        "explain": set(),
    }
    with guarded() as client:
        for method, path, _ in routes_of(client.app.routes):
            if (method, path) in OPEN:
                continue
            response = called(client, method, path, bearer(text))
            if (method, path) in allowed[scope]:
                assert response.status_code not in {401, 403}, (method, path)
            else:
                assert response.status_code == 403, (method, path)
                problem = response.json()
                cause = problem if path.startswith("/v2") else problem["error"]
                assert cause["value"] == scope
                missing = re.search(r"has not the scope (\w+)", problem["detail"])[1]
                assert f'scope="{missing}"' in response.headers["WWW-Authenticate"]
                assert missing in cause["do"]
        assert series(client, 'perdure_access_refused_total{reason="scope"}') == sum(map(len, allowed.values())) - len(
            allowed[scope]
        )


def test_a_route_that_says_nothing_cannot_be_made(guarded, make):
    async def forgotten() -> None: ...

    with pytest.raises(TypeError, match="/v1/forgotten says not who may call it"):
        APIRouter(prefix="/v1", route_class=GuardedRoute).add_api_route("/forgotten", forgotten)
    make()
    with guarded() as client:
        with pytest.raises(TypeError, match="/late"):
            client.app.add_api_route("/late", forgotten)
        client.app.add_api_route("/late", open_to_all(forgotten))
        assert client.get("/late").status_code == 200


def test_the_key_comes_in_one_of_two_headers(guarded, make):
    good, other = make(), make("other", "admin")
    with guarded() as client:
        for headers in (
            bearer(good),
            {"authorization": f"bEaReR   {good} "},
            {"X-API-Key": good},
            {"x-api-key": good, "Authorization": "Basic dXNlcjpwYXNz"},
            {"x-api-key": good, "Authorization": f"Bearer {other}"},
        ):
            assert predict(client, headers).status_code == 200, headers
        response = predict(client, {"x-api-key": other, "Authorization": f"Bearer {good}"})
        assert response.status_code == 403


def test_without_a_key_a_request_is_told_how_to_send_one(guarded, make):
    make()
    with guarded() as client:
        response = predict(client)
        assert response.status_code == 401
        assert response.headers["WWW-Authenticate"] == 'Bearer realm="perdure"'
        assert response.headers["Content-Type"] == "application/problem+json"
        problem = response.json()
        assert (problem["type"], problem["title"], problem["status"]) == ("about:blank", "Unauthorized", 401)
        assert problem["detail"] == problem["error"]["what"] == "this needs an API key"
        assert "Authorization: Bearer" in problem["error"]["do"]
        assert series(client, 'perdure_http_requests_total{method="POST",route="/v1/predict",status="401"}') == 1


def wrong(good):
    """What looks like a key, and what does not; by name."""
    other = issue("x", ("predict",), created=NOW).text
    return {
        "nothing": "",
        "another": other,
        "another secret under a known id": good[:21] + other[21:],
        "a known secret under another id": other[:21] + good[21:],
        "one digit less": good[:-1],
        "one digit more": good + "0",
        "the last digit": good[:-1] + ("0" if good[-1] != "0" else "1"),
        "capitals": good.upper(),
        "only the id": good[:20],
        "no prefix": good.removeprefix("perdure_"),
        "twice": f"{good} {good}",
        "in quotes": f'"{good}"',
        "letters beyond ASCII": "é" * 85,
        "long": "perdure_" + "a" * 20_000,
    }


def test_keys_sent_in_every_wrong_way_open_nothing_and_show_nowhere(guarded, make, caplog, stream, records, shelf):
    caplog.set_level(logging.DEBUG)
    good = make("web", "predict")
    secret = good[21:]
    with guarded(raise_server_exceptions=False) as client:
        bodies = []
        for name, text in wrong(good).items():
            value = text.encode("latin-1")
            for headers in ({"Authorization": b"Bearer " + value}, {"X-API-Key": value}, {"Authorization": value}):
                response = predict(client, headers)
                assert response.status_code == 401, (name, headers)
                bodies.append(response)
        assert series(client, 'perdure_access_refused_total{reason="unknown"}') > 20
        assert predict(client, {"Authorization": good}).status_code == 401, "no scheme"
        assert predict(client, {"Authorization": f"Basic {good}"}).status_code == 401
        assert predict(client, {"Cookie": f"key={good}"}).status_code == 401
        bodies.append(client.post(f"/v1/predict?api_key={good}&key={good}", json={"text": "refund"}))
        bodies.append(client.post("/v1/predict", json={"text": 1, "key": good}, headers=bearer(good)))
        bodies.append(client.post("/v1/predict", json={good: good}, headers=bearer(good)))
        bodies.append(client.post("/v1/predict", content=good, headers=bearer(good) | {"Content-Type": good}))
        bodies.append(client.get(f"/{good}", headers=bearer(good)))
        bodies.append(client.get(f"/v2/models/{good}", headers=bearer(good)))
        bodies.append(client.request("PUT", f"/v1/versions/{good}/promote", headers=bearer(good)))
        bodies.append(client.post(f"/v1/versions/{good}/promote", headers=bearer(good)))
        model = shelf.made["v2"][-1]
        model._script = lambda texts: 1 / 0
        bodies.append(predict(client, bearer(good)))
        assert bodies[-1].status_code >= 500
        assert all(response.status_code >= 400 for response in bodies)
        for response in bodies:
            shown = response.text + repr(response.headers)
            assert secret not in shown
            assert secret.upper() not in shown
            assert secret[:16] not in shown
        assert secret[:16] not in client.app.state.service.metrics.text().decode()
        assert records(stream) == []
    ours = [record for record in caplog.records if record.name.startswith("perdure")]
    assert ours
    told = "\n".join(record.getMessage() + (record.exc_text or "") for record in ours)
    assert secret[:16] not in told


def test_the_body_of_a_stranger_is_not_read(guarded, make):
    make()
    read = []

    with guarded() as client:
        app = client.app
        sent = []

        async def receive():
            read.append(1)
            return {"type": "http.request", "body": b"{}", "more_body": False}

        async def send(message):
            sent.append(message)

        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "path": "/v1/predict",
            "raw_path": b"/v1/predict",
            "root_path": "",
            "query_string": b"",
            "headers": [(b"content-type", b"application/json")],
            "scheme": "http",
            "server": ("x", 80),
            "client": ("y", 1),
        }
        client.portal.call(app, scope, receive, send)
    assert sent[0]["status"] == 401
    assert read == []


def test_without_a_file_of_keys_nobody_is_asked(registry, publish, serving):
    publish(registry, "v1")
    with serving() as client:
        assert predict(client).status_code == 200
        assert predict(client, bearer("whatever")).status_code == 200
        assert client.get("/metrics").status_code == 200
        assert client.post("/v1/rollback").status_code == 409


def test_metrics_may_be_opened(guarded, make):
    make()
    with guarded(open_metrics=True) as client:
        assert client.get("/metrics").status_code == 200
        assert predict(client).status_code == 401
        assert client.get("/v1/versions").status_code == 401


def test_an_expired_key_is_told_so_and_only_to_its_owner(guarded, make, monkeypatch):
    text = make(expires=NOW + timedelta(hours=1))
    end = (NOW + timedelta(hours=1)).timestamp()
    clock = [end - 1.0]
    monkeypatch.setattr(keyring_module.time, "time", lambda: clock[0])
    with guarded() as client:
        assert predict(client, bearer(text)).status_code == 200
        clock[0] = end
        response = predict(client, bearer(text))
        assert response.status_code == 401
        assert "web has expired" in response.json()["detail"]
        assert 'error="invalid_token"' in response.headers["WWW-Authenticate"]
        stranger = text[:-1] + ("0" if text[-1] != "0" else "1")
        assert "expired" not in predict(client, bearer(stranger)).text
        assert series(client, 'perdure_access_refused_total{reason="expired"}') == 1


def test_promotions_name_the_key_that_asked(guarded, make, registry):
    text = make("ops", "admin")
    with guarded() as client:
        assert client.post("/v1/versions/v1/promote", headers=bearer(text)).status_code == 200
        assert registry.champion().by == "api:ops"
        assert client.post("/v1/rollback", headers=bearer(text)).json()["promotion"]["by"] == "api:ops"


def test_above_its_rate_a_key_waits_and_no_other_does(guarded, make, file, monkeypatch, looked):
    clock = [50.0]
    monkeypatch.setattr(
        access_module, "Keyring", lambda path, registry: Keyring(path, registry, clock=lambda: clock[0])
    )
    slow, fast = make("slow", rate=0.25, burst=2), make("fast")
    default = make("default", rate=3.0)
    with guarded() as client:
        assert [predict(client, bearer(slow)).status_code for _ in range(3)] == [200, 200, 429]
        response = predict(client, bearer(slow))
        assert response.headers["Retry-After"] == "4"
        assert "slow sends more than 0.25 requests a second" in response.json()["detail"]
        assert predict(client, bearer(fast)).status_code == 200
        assert [predict(client, bearer(default)).status_code for _ in range(4)] == [200, 200, 200, 429]
        assert predict(client, bearer(default)).headers["Retry-After"] == "1"
        clock[0] += 3.9
        assert predict(client, bearer(slow)).status_code == 429
        make("later")
        assert predict(client, bearer(slow)).status_code == 429, "another key's coming fills no bucket"
        clock[0] += 0.2
        assert [predict(client, bearer(slow)).status_code for _ in range(2)] == [200, 429]
        assert series(client, 'perdure_access_refused_total{reason="rate"}') == 7


def test_what_a_key_may_not_do_costs_it_no_token(guarded, make):
    text = make("slow", "feedback", rate=0.001)
    with guarded() as client:
        assert [predict(client, bearer(text)).status_code for _ in range(3)] == [403] * 3
        body = {"id": "x", "label": "refund"}
        said = [client.post("/v1/feedback", json=body, headers=bearer(text)).status_code for _ in range(2)]
        assert said == [202, 429]


def test_the_description_says_what_each_operation_needs(guarded, make):
    make()
    with guarded() as client:
        described = client.get("/openapi.json").json()
    assert described["components"]["securitySchemes"]["bearer"]["scheme"] == "bearer"
    assert described["components"]["securitySchemes"]["apiKey"]["name"] == "X-API-Key"
    assert "PredictRequest" in described["components"]["schemas"]
    assert described["paths"]["/v1/predict"]["post"]["security"] == [{"bearer": ["predict"]}, {"apiKey": ["predict"]}]
    assert described["paths"]["/v1/rollback"]["post"]["security"][0] == {"bearer": ["admin"]}
    assert "security" not in described["paths"]["/healthz"]["get"]
