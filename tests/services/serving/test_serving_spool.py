"""Serving before a remote stream: what its being away, full or slow changes for requests, and what not."""

from __future__ import annotations

import logging
import threading
import time

import pytest
import typer
from typer.testing import CliRunner

from perdure.config import Settings, SpoolSettings
from perdure.errors import StoreBusy, StreamError
from perdure.records import Erasure
from perdure.stream import MemoryStream
from perdure_services.serving import command, recorder
from perdure_services.serving.service import Service
from perdure_services.serving.spool import forwarder as forwarding
from perdure_services.serving.spool.spool import Spool
from perdure_services.serving.spool.spooled_stream import SpooledStream, with_spool


class RemoteStream(MemoryStream):
    """Waits at its gate; removes nothing, as a log on a network does not."""

    remote = True

    def __init__(self):
        super().__init__()
        self.gate = threading.Event()
        self.gate.set()

    def _append(self, added):
        assert self.gate.wait(10)
        super()._append(added)

    def forget(self, subject, until):
        return 0


@pytest.fixture
def remote():
    return RemoteStream()


@pytest.fixture
def stream(remote, tmp_path, monkeypatch):
    monkeypatch.setattr(forwarding, "FIRST_RETRY_SECONDS", 0.005)
    monkeypatch.setattr(forwarding, "MAX_RETRY_SECONDS", 0.05)
    spool = Spool(tmp_path / "spool", max_bytes=2000, fsync="always", fsync_seconds=1)
    with SpooledStream(remote, spool) as opened:
        yield opened


@pytest.fixture
def published(registry, publish):
    publish(registry, "v1")


def predict(client, text="order", **more):
    begin = time.monotonic()
    response = client.post("/v1/predict", json={"text": text, **more})
    return response, time.monotonic() - begin


def fill(client):
    """Predicts until one is not recorded; the answers that were."""
    kept = []
    while (answer := predict(client)[0].json())["recorded"]:
        kept.append(answer["id"])
        assert len(kept) < 100
    return kept


def test_what_is_recorded_reaches_the_remote_stream(published, serving, remote, records, until, service_of):
    with serving() as client:
        answer = predict(client, subject="ann")[0].json()
        assert answer["recorded"] is True
        assert client.post("/v1/feedback", json={"id": answer["id"], "label": "refund"}).json() == {"recorded": True}
        until(lambda: len(records(remote)) == 2)
        assert {getattr(one, "id", None) or one.interaction for one in records(remote)} == {answer["id"]}
        until(lambda: service_of(client).stream.spool.records == 0)
        lines = client.get("/metrics").text.splitlines()
        for line in (
            'perdure_records_total{outcome="recorded"} 2.0',
            "perdure_stream_acknowledged_total 2.0",
            "perdure_stream_resent_total 0.0",
            "perdure_spool_records 0.0",
            "perdure_spool_bytes 0.0",
            "perdure_spool_oldest_seconds 0.0",
            "perdure_spool_damaged_segments 0.0",
            "perdure_records_unsent 0.0",
        ):
            assert line in lines


@pytest.mark.parametrize("policy", ["answer", "refuse"])
@pytest.mark.parametrize("how", ["away", "hanging"])
def test_a_broker_that_is_away_changes_nothing_for_requests(published, serving, remote, records, until, policy, how):
    with serving(on_record_failure=policy) as client:
        if how == "away":
            remote.fail_with(StreamError("no broker"))
        else:
            remote.gate.clear()
        answers = []
        for _ in range(5):
            response, seconds = predict(client)
            assert (response.status_code, response.json()["recorded"]) == (200, True)
            assert seconds < 0.2
            answers.append(response.json()["id"])
        assert client.post("/v1/feedback", json={"id": "x", "label": "refund"}).json() == {"recorded": True}
        assert client.get("/readyz").status_code == client.get("/healthz").status_code == 200
        assert "perdure_spool_records 6.0" in client.get("/metrics").text.splitlines()
        assert records(remote) == []
        remote.heal()
        remote.gate.set()
        until(lambda: len(records(remote)) == 6)
        assert {one.id for one in records(remote) if hasattr(one, "id")} == set(answers)


def test_a_full_spool_is_said_at_once_and_mends_itself(published, serving, remote, records, until, service_of, caplog):
    caplog.set_level(logging.INFO, logger=recorder.__name__)
    with serving() as client:
        remote.fail_with(StreamError("no broker"))
        kept = fill(client)
        assert len(kept) > 3
        for _ in range(3):
            response, seconds = predict(client)
            assert (response.status_code, response.json()["recorded"]) == (200, False)
            assert seconds < 0.2, "it waited for room"
        response = client.post("/v1/feedback", json={"id": "x", "label": "refund" * 30})
        assert (response.status_code, response.json()) == (202, {"recorded": False})
        service = service_of(client)
        until(lambda: service.recorder.unsent == 0)
        assert service.metrics.registry.get_sample_value("perdure_records_total", {"outcome": "dropped"}) == 5
        assert service.live
        remote.heal()
        until(lambda: service.stream.spool.records == 0)
        last = predict(client)[0].json()
        assert last["recorded"] is True
        until(lambda: len(records(remote)) == len(kept) + 1)
        assert {one.id for one in records(remote)} == {*kept, last["id"]}
    said = [(record.levelname, record.exc_info) for record in caplog.records if record.name == recorder.__name__]
    assert said == [("ERROR", None), ("INFO", None)], "once, and once when it ends"


def test_an_operator_may_refuse_while_the_spool_is_full(published, serving, remote, until, service_of):
    with serving(on_record_failure="refuse") as client:
        remote.fail_with(StreamError("no broker"))
        while (response := predict(client)[0]).status_code == 200:
            assert response.json()["recorded"]
        assert response.status_code == 503
        assert "cannot be recorded" in response.json()["error"]["what"]
        assert predict(client)[1] < 0.2
        remote.heal()
        until(lambda: service_of(client).stream.spool.records == 0)
        assert predict(client)[0].json()["recorded"] is True


def test_a_subject_is_forgotten_in_the_spool(published, serving, remote, records, until, service_of):
    with serving() as client:
        remote.fail_with(StreamError("no broker"))
        theirs = predict(client, subject="ann")[0].json()["id"]
        others = predict(client, subject="bob")[0].json()["id"]
        client.post("/v1/feedback", json={"id": theirs, "label": "refund"})
        response = client.delete("/v1/subjects/ann")
        assert (response.status_code, response.json()["removed"]) == (202, 2)
        for part in ("2 records that waited in this server's spool", "nothing was removed from the stream", "own"):
            assert part in response.json()["message"]
        remote.heal()
        until(lambda: len(records(remote)) == 2)
        until(lambda: service_of(client).stream.spool.records == 0)
        found = {type(one): one for one in records(remote)}
        assert found[Erasure].subject == "ann"
        assert {one.id for one in records(remote) if hasattr(one, "id")} == {others}


def test_a_dead_forwarder_is_neither_live_nor_ready(published, serving, service_of):
    with serving() as client:
        assert client.get("/readyz").status_code == 200
        service_of(client).forwarder.close(1)
        assert client.get("/healthz").status_code == client.get("/readyz").status_code == 503


def test_what_the_end_does_not_send_the_next_start_does(published, serving, remote, records, until, tmp_path):
    with serving(drain_seconds=0.2) as client:
        remote.fail_with(StreamError("no broker"))
        kept = [predict(client)[0].json()["id"] for _ in range(4)]
    assert records(remote) == []
    remote.heal()
    with serving():
        until(lambda: len(records(remote)) == 4)
    assert {one.id for one in records(remote)} == set(kept)


def test_the_end_sends_what_waits(published, serving, remote, records):
    with serving() as client:
        remote.gate.clear()
        kept = [predict(client)[0].json()["id"] for _ in range(4)]
        threading.Timer(0.05, remote.gate.set).start()
    assert {one.id for one in records(remote)} == set(kept)


def test_a_remote_stream_gets_a_spool_and_a_local_one_does_not(remote, registry, shelf, tmp_path):
    settings = SpoolSettings(path=str(tmp_path / "one"), max_bytes=5000, fsync="never")
    local = MemoryStream()
    assert with_spool(local, settings) is local
    assert not (tmp_path / "one").exists()
    spooled = with_spool(remote, settings)
    assert isinstance(spooled, SpooledStream)
    assert not spooled.remote
    assert spooled.end() == remote.end()
    with pytest.raises(StoreBusy):
        with_spool(remote, settings)
    spooled.close()
    with pytest.raises(StreamError):
        remote.end()
    with pytest.raises(ValueError, match="with_spool"):
        Service(Settings().serving, registry=registry, stream=remote, load=shelf)


def test_the_command_keeps_the_spool_where_the_settings_say(remote, tmp_path, monkeypatch):
    given = []
    app = typer.Typer()
    app.command("serve")(command.serve)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "open_stream", lambda settings: remote)
    monkeypatch.setattr(command, "run", lambda settings, **named: given.append(named["stream"]))
    arguments = ["--port", "0", "--set", "spool.path=here/spool", "--set", "spool.max_bytes=100"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    (spooled,) = given
    assert isinstance(spooled, SpooledStream)
    assert spooled.beyond is remote
    assert str(spooled.spool.folder) == "here/spool"
    other = Spool("here/spool", max_bytes=100, fsync="never", fsync_seconds=1)
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1
    assert "belongs to process" in result.stderr
    other.close()
