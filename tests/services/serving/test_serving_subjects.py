from __future__ import annotations

import pytest

from perdure.errors import StreamError
from perdure.records import Erasure
from perdure_services.serving import service as module


@pytest.fixture
def client(registry, publish, serving):
    publish(registry, "v1")
    with serving() as client:
        yield client


def predict(client, subject):
    return client.post("/v1/predict", json={"text": f"order of {subject}", "subject": subject}).json()["id"]


@pytest.mark.parametrize(("subject", "path"), [("ann", "ann"), ("a/b c%", "a%2Fb%20c%25"), ("Åsa", "%C3%85sa")])
def test_forgetting_reaches_the_stream_now_and_is_recorded_for_the_rest(client, stream, records, subject, path):
    theirs = predict(client, subject)
    client.post("/v1/feedback", json={"id": theirs, "label": "refund"})
    others = predict(client, "bob")
    response = client.delete(f"/v1/subjects/{path}")
    answer = response.json()
    assert response.status_code == 202
    assert (answer["subject"], answer["removed"]) == (subject, 2)
    for part in ("2 recorded entries", "next turn", "weights already trained", "old reports"):
        assert part in answer["message"]
    kept = records(stream)
    assert [getattr(record, "id", None) for record in kept] == [others, None]
    assert isinstance(kept[1], Erasure)
    assert kept[1].subject == subject


def test_a_subject_that_nobody_knows_is_forgotten_all_the_same(client, stream, records):
    answer = client.delete("/v1/subjects/nobody").json()
    assert answer["removed"] == 0
    assert "nothing was removed" in answer["message"]
    assert [record.subject for record in records(stream)] == ["nobody"]


@pytest.mark.parametrize("path", ["%00", "%20", "x" * 201])
def test_a_subject_that_cannot_be_one_is_refused(client, stream, records, path):
    response = client.delete(f"/v1/subjects/{path}")
    assert response.status_code == 422
    assert "subject" in response.json()["error"]["what"]
    assert records(stream) == []


def test_no_subject_is_not_all_subjects(client, stream, records):
    predict(client, "ann")
    assert client.delete("/v1/subjects/").status_code in {404, 422}
    assert len(records(stream)) == 1


def test_what_waits_of_the_subject_is_reached_too(client, stream, records, until, service_of):
    stream.fail_with(StreamError("the disk is full"))
    predict(client, "ann")
    assert service_of(client).recorder.unsent == 1
    stream.heal()
    assert client.delete("/v1/subjects/ann").json()["removed"] == 1
    assert [type(record) for record in records(stream)] == [Erasure]


def test_a_request_that_cannot_be_recorded_is_not_accepted(client, stream, records, monkeypatch, service_of, until):
    monkeypatch.setattr(module, "ERASURE_SECONDS", 0.05)
    predict(client, "ann")
    stream.fail_with(StreamError("the disk is full"))
    response = client.delete("/v1/subjects/ann")
    assert response.status_code == 503
    assert "cannot be recorded" in response.json()["error"]["what"]
    assert len(records(stream)) == 1
    stream.heal()


def test_a_stream_that_cannot_remove_now_is_said(client, stream, monkeypatch):
    def fail(subject, until):
        raise StreamError("another process keeps the log in use: forget again")

    monkeypatch.setattr(stream, "forget", fail)
    response = client.delete("/v1/subjects/ann")
    assert response.status_code == 503
    assert "forget again" in response.json()["error"]["what"]
