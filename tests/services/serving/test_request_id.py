"""Request ids, and what a request leaves in the log: enough to find it again, and nothing of what was sent."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import signal
import struct
import subprocess
import sys
import uuid

import pytest

from perdure.config import ALLOW_ANONYMOUS
from perdure.logs import JsonFormatter, TextFormatter
from perdure_services.keys import redacted

TEXT = "i am Zdenka Novakova and my order is lost"
SUBJECT = "zdenka@example.org"


@pytest.fixture
def lines(request):
    """Everything that any logger says, as it would stand in the log."""
    out = io.StringIO()
    handler = logging.StreamHandler(out)
    handler.setFormatter(getattr(request, "param", JsonFormatter)(redacted))
    # The client of the tests tells every URL; it is not the server.
    handler.addFilter(lambda record: not record.name.startswith("httpx"))
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.DEBUG)
    root.addHandler(handler)
    yield lambda: out.getvalue().splitlines()
    root.removeHandler(handler)
    root.setLevel(before)


def entries(lines, logger=""):
    """The JSON lines of our own loggers (asyncio and the HTTP client of the tests speak too)."""
    found = [json.loads(line) for line in lines()]
    return [one for one in found if one["logger"].startswith("perdure") and one["logger"].endswith(logger)]


def test_an_answer_names_its_request(registry, publish, serving):
    publish(registry, "v1")
    with serving() as client:
        ids = [client.post("/v1/predict", json={"text": "order"}).headers["x-request-id"] for _ in range(2)]
    assert len({uuid.UUID(id) for id in ids}) == 2


@pytest.mark.parametrize("given", ["7b1c", "a" * 128, "Root=1-67891233-abcdef012345678912345678", "a_b:c/d+e=.@-"])
def test_a_sane_id_is_taken_over(registry, serving, given):
    with serving() as client:
        for path in ("/healthz", "/nowhere", "/docs"):
            response = client.get(path, headers={"X-Request-ID": given})
            assert response.headers.get_list("x-request-id") == [given]


@pytest.mark.parametrize(
    "given",
    ["", "a" * 129, "a b", 'a"b', "-a", "a\tb", "é", "a,b", "<script>", f"perdure_{'0' * 12}_{'a' * 64}", "a{b}"],
)
def test_any_other_is_replaced(serving, given):
    with serving() as client:
        response = client.get("/healthz", headers={"X-Request-ID": given.encode("latin-1")})
        assert uuid.UUID(response.headers["x-request-id"])


def test_a_refusal_names_its_request(registry, publish, serving):
    publish(registry, "v1")
    with serving() as client:
        headers = {"X-Request-ID": "abc"}
        for response in (
            client.get("/nowhere", headers=headers),
            client.post("/v1/predict", json={"text": ""}, headers=headers),
            client.post("/v1/predict", content=b"{", headers={**headers, "content-type": "application/json"}),
            client.put("/v1/predict", headers=headers),
        ):
            assert response.json()["request_id"] == response.headers["x-request-id"] == "abc"


def test_so_does_a_failure_of_the_server(registry, publish, serving, monkeypatch, service_of, lines):
    publish(registry, "v1")
    with serving(raise_server_exceptions=False) as client:
        monkeypatch.setattr(service_of(client), "predict", None)
        response = client.post("/v1/predict", json={"text": TEXT}, headers={"X-Request-ID": "abc"})
        assert response.status_code == 500
        assert response.json()["request_id"] == "abc"
        assert response.headers.get_list("x-request-id") == ["abc"]
        assert response.headers["x-content-type-options"] == "nosniff"
    (line,) = [one for one in entries(lines, "refusal") if one["level"] == "error"]
    assert line["request_id"] == "abc"
    assert line["message"] == "POST /v1/predict failed"
    assert "TypeError" in line["exception"]


def test_requests_do_not_take_ids_from_each_other(registry, publish, serving, lines):
    publish(registry, "v1")
    with serving(access_log=True) as client:
        for number in range(3):
            client.get("/healthz", headers={"X-Request-ID": f"given-{number}"})
        made = client.get("/healthz").headers["x-request-id"]
    told = [line["request_id"] for line in entries(lines, "access_log")]
    assert told == ["given-0", "given-1", "given-2", made]


def test_the_access_log_is_asked_for(registry, publish, serving, lines, guarded, make):
    key = make("web", "predict")
    with guarded() as client:
        client.get("/healthz")
    assert not entries(lines, "access_log")
    with guarded(access_log=True) as client:
        client.post("/v1/predict", json={"text": TEXT}, headers={"X-API-Key": key})
        client.get("/somewhere/else")
        client.request("BREW", "/v1/predict")
    first, second, third = entries(lines, "access_log")
    assert re.fullmatch(r"POST /v1/predict 200 in \d+\.\d ms", first["message"])
    assert (first["method"], first["route"], first["status"], first["key"]) == ("POST", "/v1/predict", 200, "web")
    assert 0 < first["seconds"] < 5
    assert (second["route"], second["status"]) == ("other", 404)
    assert "key" not in second
    assert (third["method"], third["status"]) == ("other", 405)


def test_the_access_log_names_the_key_whichever_way_the_tensors_came(lines, guarded, make):
    key = make("web", "predict")
    tensor = struct.pack("<I", len(TEXT)) + TEXT.encode()
    given = {"name": "text", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": len(tensor)}}
    front = json.dumps({"inputs": [given]}).encode()
    headers = {"X-API-Key": key, "Inference-Header-Content-Length": str(len(front))}
    with guarded(access_log=True) as client:
        assert client.post("/v2/models/perdure/infer", content=front + tensor, headers=headers).status_code == 200
    (line,) = entries(lines, "access_log")
    assert (line["status"], line["key"]) == (200, "web")


def quoting(texts):
    raise ValueError(f"cannot make tokens of {texts!r}")


@pytest.mark.parametrize("lines", [JsonFormatter, TextFormatter], indirect=True)
def test_nothing_that_was_sent_comes_into_the_log(
    registry, publish, guarded, make, shelf, stream, monkeypatch, lines, service_of
):
    web, boss = make("web", "predict", "feedback"), make("boss", "admin")
    asking, ruling = {"Authorization": f"Bearer {web}"}, {"X-API-Key": boss}
    with guarded(access_log=True, raise_server_exceptions=False) as client:
        sent = {"text": TEXT, "subject": SUBJECT}
        assert client.post("/v1/predict", json=sent, headers=asking).status_code == 200
        client.post("/v1/feedback", json={"id": "x", "label": "zdenkas_label"}, headers=asking)
        client.post("/v1/predict", json={"text": TEXT, "unknown": 1}, headers=asking)
        client.post("/v1/predict", content=TEXT.encode(), headers={**asking, "content-type": "application/json"})
        client.get(f"/v1/{web}/{SUBJECT}", headers=ruling)
        client.get("/healthz", headers={"X-Request-ID": web})
        client.post(f"/v1/versions/{boss}/promote", headers=ruling)
        client.delete(f"/v1/subjects/{SUBJECT}", headers=ruling)
        monkeypatch.setattr(stream, "forget", lambda subject, until: quoting([subject]))
        assert client.delete(f"/v1/subjects/{SUBJECT}", headers=ruling).status_code == 500
        (model,) = shelf.made["v2"]
        model._script = quoting
        failed = client.post("/v1/predict", json=sent, headers={**asking, "X-Request-ID": "the-one-that-failed"})
        assert failed.status_code == 500
        model._script = model._inner.scores
        monkeypatch.setattr(stream, "append", lambda records: quoting([record.text for record in records]))
        lost = client.post("/v1/predict", json=sent, headers={**asking, "X-Request-ID": "the-one-not-recorded"})
        assert lost.json()["recorded"] is False
    said = "\n".join(lines())
    for secret in (TEXT, "Zdenka", "zdenka", web, boss, web[-64:], boss[-64:]):
        assert secret not in said
    for id, where in (("the-one-that-failed", "version v2 failed"), ("the-one-not-recorded", "cannot be written")):
        told = [line for line in lines() if where in line]
        assert told
        assert all(id in line for line in told), "a thread's line about a request names it"
    assert "ValueError" in said


@pytest.mark.e2e
def test_a_process_that_logs_json_says_nothing_else(tmp_path):
    program = "import sys; sys.argv = ['perdure', *sys.argv[1:]]; from perdure.cli import main; main()"
    settings = (f"serving.allow_anonymous={ALLOW_ANONYMOUS}", "log.format=json")
    options = [option for setting in settings for option in ("--set", setting)]
    process = subprocess.Popen(
        [sys.executable, "-c", program, "serve", "--host", "0.0.0.0", "--port", "0", *options],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        text=True,
    )
    lines = []
    for text in process.stderr:
        lines.append(json.loads(text))
        if "has nothing to serve" in lines[-1]["message"]:
            process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0
    assert process.stdout.read() == ""
    process.stdout.close()
    process.stderr.close()
    assert [line["level"] for line in lines[:3]] == ["warning", "warning", "info"]
    assert "asks nobody who they are" in lines[0]["message"]
    assert lines[-1]["message"] == "stopped"
