"""What is sent, what is refused before, and what never shows."""

from __future__ import annotations

import logging
import traceback

import pytest

from perdure.client import AsyncClient, Client, Said
from perdure.errors import (
    ApiBusy,
    ApiConflict,
    ApiError,
    ApiKeyRefused,
    ApiNotFound,
    ApiRefused,
    ApiRequestInvalid,
    UsageError,
)

KEY = "perdure-secret-0123456789"


def test_requests_look_as_the_api_wants_them(api, acts, client):
    two = {"predictions": [acts.PREDICTION, acts.PREDICTION], "version": "v1"}
    api.script = [
        acts.answer(acts.PREDICTION | {"top": [{"label": "order", "confidence": 0.9}], "new": 1}),
        acts.answer(two),
        acts.answer({"recorded": True}, 202),
        acts.answer({"recorded": True}, 202),
        acts.promoted,
        acts.answer({"subject": "a", "removed": 0, "message": ""}, 202),
    ]
    ranked = client.predict("order", top=3, subject="anna")
    assert [(one.label, one.confidence) for one in ranked.top] == [("order", 0.9)]
    assert len(client.predict(("order", "refund"))) == 2
    client.feedback("id-1", "refund", source="desk")
    client.feedback((Said("id-1", "refund"), Said("id-2", "order", "desk")))
    client.rollback(reason="why")
    client.forget("a/../b c.ü?#%")
    asked = api.asked
    assert [(one.method, one.path) for one in asked] == [
        ("POST", "/v1/predict"),
        ("POST", "/v1/predict"),
        ("POST", "/v1/feedback"),
        ("POST", "/v1/feedback"),
        ("POST", "/v1/rollback"),
        ("DELETE", "/v1/subjects/a%2F%2E%2E%2Fb%20c%2E%C3%BC%3F%23%25"),
    ]
    assert [one.fields for one in asked[:5]] == [
        {"text": "order", "top_k": 3, "subject": "anna"},
        {"texts": ["order", "refund"]},
        {"id": "id-1", "label": "refund", "source": "desk"},
        {"feedback": [{"id": "id-1", "label": "refund"}, {"id": "id-2", "label": "order", "source": "desk"}]},
        {"reason": "why"},
    ]
    assert asked[0].headers["content-type"] == "application/json"
    assert asked[0].headers["host"] == api.url.removeprefix("http://")
    assert "authorization" not in asked[0].headers
    assert "content-type" not in asked[5].headers


def test_half_of_a_surrogate_pair_reaches_the_api(api, acts, client):
    api.script = [acts.good]
    client.predict("half \ud800")
    assert api.asked[0].body == b'{"text":"half \\ud800"}'


def test_a_long_text_arrives_whole(api, acts, client):
    api.script = [acts.good]
    text = "".join(f"{number} " for number in range(60_000))
    client.predict(text)
    assert api.asked[0].fields == {"text": text}


def test_a_path_of_the_url_is_kept(api, acts, client_of):
    api.script = [acts.good]
    client_of(f"{api.url}/team/perdure/").predict("order")
    assert api.asked[0].path == "/team/perdure/v1/predict"


# ── the key ──
@pytest.mark.parametrize("given", [KEY, f"{KEY}\n"])
def test_the_key_is_sent(api, acts, client_of, given):
    api.script = [acts.good]
    client_of(api_key=given).predict("order")
    assert api.asked[0].headers["authorization"] == f"Bearer {KEY}"


def test_the_key_comes_from_the_environment(api, acts, client_of, monkeypatch):
    api.script = [acts.good]
    monkeypatch.setenv("PERDURE_API_KEY", KEY)
    client_of().predict("order")
    client_of(api_key="another").predict("order")
    client_of(api_key="").predict("order")
    assert [one.headers.get("authorization") for one in api.asked] == [f"Bearer {KEY}", "Bearer another", None]


def test_the_key_never_shows(api, acts, client_of, free_port, caplog):
    caplog.set_level(logging.DEBUG)
    api.script = [
        acts.answer({}, 401), acts.answer({}, 503, "Retry-After: 0"), acts.reset, acts.answer(b"no"), acts.silent,
    ]  # fmt: skip
    client = client_of(api_key=KEY)
    shown = [repr(client), str(client)]
    for ask in (lambda: client.predict("a"), lambda: client.predict("b"), client.rollback):
        with pytest.raises(ApiError) as caught:
            ask()
        shown += ["".join(traceback.format_exception(caught.value)), repr(caught.value), repr(vars(caught.value))]
    assert len(api.asked) == 5
    with pytest.raises(ApiError) as caught:
        client_of(f"http://127.0.0.1:{free_port}", api_key=KEY, tries=1).predict("order")
    shown += [repr(caught.value), caplog.text]
    assert caplog.text
    assert not [text for text in shown if "secret" in text]


@pytest.mark.parametrize("bad", [f"{KEY} x", f"{KEY}\nX-Admin: yes", f"{KEY}\x00", f"{KEY}ü"])
@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_a_key_that_is_none_is_refused_without_being_shown(kind, bad):
    with pytest.raises(UsageError, match=r"API key \(\d+ characters, not shown\)") as caught:
        kind(api_key=bad)
    assert "secret" not in str(caught.value)


# ── what cannot be used ──
@pytest.mark.parametrize(
    "url",
    [
        "", "localhost:8000", "ftp://host", "http://", "http://host:0", "http://host:x", "http://host:99999",
        "http://höst", "http://host/?a=b", "http://host/#a", "http://host/a b", "http://host\n", "http://[::1",
    ],
)  # fmt: skip
def test_a_url_that_is_none_is_refused(url):
    with pytest.raises(UsageError, match="URL"):
        Client(url)


def test_a_password_in_the_url_is_refused_without_being_shown():
    with pytest.raises(UsageError, match="give an API key as api_key") as caught:
        Client(f"http://me:{KEY}@host")
    assert "secret" not in str(caught.value)


def test_no_connections_are_refused():
    with pytest.raises(UsageError, match="connections must be at least 1, got 0"):
        Client(connections=0)


def test_requests_that_cannot_be_are_refused(api, client):
    with pytest.raises(UsageError, match="the subject is ' '"):
        client.forget(" ")
    with pytest.raises(UsageError, match="the version is ''"):
        client.promote("")
    with pytest.raises(UsageError, match="half of a surrogate pair at character 1"):
        client.forget("a\udc00")
    with pytest.raises(UsageError, match="has no label"):
        client.feedback("id-1")
    with pytest.raises(UsageError, match="give each its own"):
        client.feedback([Said("id-1", "order")], "order")
    assert api.asked == []


def test_a_closed_client_says_so(api, acts, client):
    api.script = [acts.good]
    client.predict("order")
    client.close()
    with Client(api.url) as other:
        pass
    with pytest.raises(UsageError, match=r"Client\('.*'\) is closed: make a new one, or call promote inside"):
        other.promote("v2")


def test_the_environment_leads_nothing_astray(api, acts, client_of, monkeypatch, tmp_path):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login me password mine\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    api.script = [acts.good]
    client_of(api_key=KEY).predict("order")
    assert api.asked[0].headers["authorization"] == f"Bearer {KEY}"


# ── refusals ──
@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, ApiRequestInvalid),
        (401, ApiKeyRefused),
        (403, ApiKeyRefused),
        (404, ApiNotFound),
        (409, ApiConflict),
        (408, ApiBusy),
        (413, ApiRequestInvalid),
        (422, ApiRequestInvalid),
        (429, ApiBusy),
        (500, ApiRefused),
        (503, ApiBusy),
        (599, ApiRefused),
    ],
)
def test_each_refusal_has_its_class(api, acts, client_of, status, kind):
    api.script = [acts.answer({}, status)]
    with pytest.raises(ApiRefused) as caught:
        client_of(tries=1).predict("order")
    assert type(caught.value) is kind
    assert caught.value.status == status
    assert isinstance(caught.value, ValueError) == (kind is ApiRequestInvalid)


@pytest.mark.parametrize(
    ("fields", "title", "detail", "value", "do"),
    [
        (
            {"title": "Too large", "status": 413, "detail": "9 texts", "value": 9, "do": "send at most 8"},
            "Too large", "9 texts", 9, "send at most 8",
        ),
        (
            {"error": {"what": "9 texts", "value": 9, "do": "send at most 8"}},
            "Request Entity Too Large", "9 texts", 9, "send at most 8",
        ),
        ({"detail": [{"m": 1}]}, "Request Entity Too Large", '[{"m": 1}]', None, "send less in one request"),
        ({"error": "scripted"}, "Request Entity Too Large", "scripted", None, "send less in one request"),
        (b"<p>too\n large</p>", "Request Entity Too Large", "<p>too large</p>", None, "send less in one request"),
        (b"", "Request Entity Too Large", "no reason was given", None, "send less in one request"),
        ([1], "Request Entity Too Large", "no reason was given", None, "send less in one request"),
        (b"\xff" * 900, "Request Entity Too Large", "\ufffd" * 500 + "…", None, "send less in one request"),
    ],
)  # fmt: skip
def test_a_refusal_says_what_the_api_said(api, acts, client, fields, title, detail, value, do):
    api.script = [acts.answer(fields, 413)]
    with pytest.raises(ApiRequestInvalid) as caught:
        client.predict("order")
    said = caught.value
    assert (said.title, said.detail, said.value, said.do) == (title, detail, value, do)
    assert f"refused predict with 413 {title}: {detail}" in str(said)
    assert str(said).endswith(f"Do: {do}")
    assert ("(value: 9)" in str(said)) == (value == 9)


def test_a_refusal_names_the_request_as_the_log_of_the_api_does(api, acts, client):
    api.script = [acts.answer({"detail": "9 texts"}, 413, "X-Request-ID: abc"), acts.answer({}, 413)]
    with pytest.raises(ApiRequestInvalid, match=r"413 .*: 9 texts \(request abc\)\. Do: ") as caught:
        client.predict("order")
    assert caught.value.request_id == "abc"
    with pytest.raises(ApiRequestInvalid, match=r"no reason was given\. Do: ") as caught:
        client.predict("order")
    assert caught.value.request_id is None


def test_a_redirect_is_told_and_not_followed(api, acts, client_of):
    api.script = [acts.answer(b"", 307, "Location: https://elsewhere.example/v1/predict")]
    with pytest.raises(ApiRefused, match=r"give the URL that it names: https://elsewhere\.example/v1/predict"):
        client_of(api_key=KEY).predict("order")
    assert len(api.asked) == 1
