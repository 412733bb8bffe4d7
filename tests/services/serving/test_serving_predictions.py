from __future__ import annotations

import json
import threading

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from perdure.config import Settings
from perdure.errors import StreamError
from perdure.records import Feedback, Interaction
from perdure_services.serving.schemas import MAX_FEEDBACK

JSON = {"Content-Type": "application/json"}


@pytest.fixture
def client(registry, publish, serving):
    publish(registry, "v1")
    with serving(max_texts=8) as client:
        yield client


def refused(response, status, *parts):
    problem = response.json()
    error = problem["error"]
    assert response.status_code == status, error
    if isinstance(error, str):
        # The inference protocol wants a string.
        assert response.url.path.startswith("/v2/")
        error = {"what": problem["detail"], "value": problem["value"], "do": problem["do"]}
    assert set(error) == {"what", "value", "do"}
    assert error["what"]
    assert error["do"]
    for part in parts:
        assert part in error["what"]
    return error


def post(client, body, path="/v1/predict"):
    return client.post(path, content=json.dumps(body), headers=JSON)


def test_one_text_gets_one_answer_that_is_recorded_as_it_was_given(client, stream, records):
    answer = client.post("/v1/predict", json={"text": "My Order is late", "subject": "ann"}).json()
    assert set(answer) == {"id", "label", "confidence", "version", "recorded"}
    assert (answer["label"], answer["version"], answer["recorded"]) == ("order@v1", "v1", True)
    (record,) = records(stream)
    assert isinstance(record, Interaction)
    assert (record.id, record.text, record.label, record.version) == (
        answer["id"],
        "My Order is late",
        "order@v1",
        "v1",
    )
    assert record.confidence == pytest.approx(answer["confidence"])
    assert record.subject == "ann"
    assert record.top == ()


def test_several_texts_get_answers_in_their_order(client, stream, records):
    texts = ["password lost", "where is my order", "refund please"]
    answer = client.post("/v1/predict", json={"texts": texts}).json()
    assert answer["version"] == "v1"
    assert [one["label"] for one in answer["predictions"]] == ["login@v1", "order@v1", "refund@v1"]
    assert [record.id for record in records(stream)] == [one["id"] for one in answer["predictions"]]
    assert [record.text for record in records(stream)] == texts
    assert len({one["id"] for one in answer["predictions"]}) == 3


def test_top_labels_come_best_first_when_asked_for_and_are_recorded(client, stream, records):
    answer = client.post("/v1/predict", json={"text": "refund", "top_k": 2}).json()
    assert [ranked["label"] for ranked in answer["top"]] == ["refund@v1", "order@v1"]
    assert answer["top"][0]["confidence"] == answer["confidence"] > answer["top"][1]["confidence"]
    assert [label for label, _ in records(stream)[0].top] == ["refund@v1", "order@v1"]
    assert "top" in client.post("/v1/predict", json={"text": "refund", "top_k": 1}).json()
    assert len(client.post("/v1/predict", json={"text": "refund", "top_k": 99}).json()["top"]) == 3


def test_a_nul_character_is_text_like_any_other(client, stream, records):
    assert post(client, {"text": "order\0"}).json()["label"] == "order@v1"
    assert records(stream)[0].text == "order\0"


@pytest.mark.parametrize(
    ("body", "status", "parts"),
    [
        ({"text": ""}, 422, ["text", "empty"]),
        ({"text": " \n\t"}, 422, ["text", "empty"]),
        ({"texts": ["order", "  "]}, 422, ["texts.1", "empty"]),
        ({"texts": []}, 422, ["texts"]),
        ({"texts": ["order"] * 9}, 422, ["9 texts"]),
        ({"texts": "order"}, 422, ["texts"]),
        ({}, 422, ["either 'text' or 'texts'"]),
        ({"text": "a", "texts": ["b"]}, 422, ["either 'text' or 'texts'"]),
        ({"txt": "a"}, 422, ["'txt'", "'text'"]),
        ({"text": 7}, 422, ["text"]),
        ({"text": None}, 422, ["either"]),
        ({"text": "a", "top_k": 0}, 422, ["top_k"]),
        ({"text": "a", "top_k": "3"}, 422, ["top_k"]),
        ({"text": "a", "top_k": True}, 422, ["top_k"]),
        ({"text": "a", "subject": ""}, 422, ["subject"]),
        ({"text": "a", "subject": "b\0"}, 422, ["subject", "NUL"]),
        ({"text": "a", "subject": "\udc00"}, 422, ["subject", "surrogate"]),
        ({"text": "half \ud83d"}, 422, ["U+D83D", "character 5"]),
        ({"text": "a" * 1_000_001}, 413, ["1000000 bytes"]),
        ({"text": "ä" * 500_001}, 413, ["1000000 bytes"]),
        ([], 422, ["not a JSON object"]),
        ("order", 422, ["not a JSON object"]),
        (None, 422, []),
    ],
)
def test_a_bad_request_is_refused_in_words(client, stream, records, body, status, parts):
    refused(post(client, body), status, *parts)
    assert records(stream) == []


def test_a_text_of_just_1_mb_is_answered(client):
    assert post(client, {"text": "ä" * 500_000}).status_code == 200


@pytest.mark.parametrize(
    ("content", "headers", "status", "part"),
    [
        (b'{"text": "caf\xe9"}', JSON, 400, "not UTF-8: invalid continuation byte at byte 13"),
        ('{"text": "a"}'.encode("utf-16"), JSON, 400, "not UTF-8"),
        (b'{"text": ', JSON, 400, "not JSON"),
        (b'{"text": "a", "top_k": NaN}', JSON, 400, "NaN"),
        (b'{"text": "a", "top_k": ' + b"9" * 5000 + b"}", JSON, 400, "not JSON"),
        (b'{"text": "a", "top_k": 1e999}', JSON, 422, "top_k"),
        (b'{"text": ' + b"[" * 200_000, JSON, 400, "nested"),
        (b"", JSON, 422, "JSON object"),
        (b'{"text": "a"}', {"Content-Type": "text/plain"}, 415, "text/plain"),
        (b'{"text": "a"}', {}, 415, "not declared as JSON"),
        (b" " * (Settings().serving.max_body_bytes + 1), JSON, 413, str(Settings().serving.max_body_bytes)),
    ],
)
def test_a_body_that_is_not_json_is_refused_in_words(client, content, headers, status, part):
    refused(client.post("/v1/predict", content=content, headers=headers), status, part)


@pytest.mark.parametrize(
    ("path", "name"), [("/v1/predict", "texts"), ("/v1/feedback", "feedback"), ("/v2/models/perdure/infer", "data")]
)
def test_a_body_full_of_mistakes_is_refused_at_the_first(client, path, name):
    wrong = [0] * 1_000_000
    tensor = {"name": "text", "shape": [1], "datatype": "BYTES", "data": wrong}
    response = post(client, {"inputs": [tensor]} if name == "data" else {name: wrong}, path)
    refused(response, 422, f"{name}.0")
    assert response.elapsed.total_seconds() < 1


def test_a_refused_value_is_shown_in_short(client):
    assert refused(post(client, {"text": "a" * 1_000_001}), 413)["value"] == "a" * 120 + "…"


def test_what_is_not_there_or_not_allowed_has_the_same_shape(client):
    refused(client.get("/v1/nothing"), 404, "/v1/nothing")
    refused(client.put("/v1/predict"), 405, "PUT")


# The app is the same for every example; it keeps nothing that one could leave to the next.
STEADY = {"derandomize": True, "database": None, "suppress_health_check": [HealthCheck.function_scoped_fixture]}

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
NAMES = st.sampled_from(["text", "texts", "top_k", "subject", "id", "label", "source", "feedback", "inputs", "data"])
PATHS = st.sampled_from(["/v1/predict", "/v1/feedback", "/v1/rollback", "/v2/models/perdure/infer"])


@settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    path=PATHS,
    body=st.one_of(
        st.dictionaries(NAMES, JSON_VALUES | st.text(st.characters(categories=["Cs", "Cc", "L"])), max_size=4).map(
            lambda value: json.dumps(value).encode()
        ),
        st.binary(max_size=40),
    ),
)
def test_no_body_whatever_makes_the_server_fail(client, path, body):
    response = client.post(path, content=body, headers=JSON)
    assert response.status_code < 500
    if response.status_code >= 400:
        refused(response, response.status_code)


@settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(text=st.text(min_size=1).filter(lambda text: text.strip()))
def test_every_text_of_whole_characters_is_answered_and_recorded(client, stream, records, text):
    answer = client.post("/v1/predict", json={"text": text}).json()
    last = records(stream)[-1]
    assert (last.id, last.text) == (answer["id"], text)


def test_feedback_is_recorded_even_for_an_id_that_nobody_knows(client, stream, records):
    response = client.post("/v1/feedback", json={"id": "not-seen-yet", "label": "refund", "source": "agent"})
    assert (response.status_code, response.json()) == (202, {"recorded": True})
    (record,) = records(stream)
    assert isinstance(record, Feedback)
    assert (record.interaction, record.label, record.source) == ("not-seen-yet", "refund", "agent")


def test_feedback_may_come_as_a_list(client, stream, records):
    items = [{"id": f"i{place}", "label": "refund"} for place in range(3)]
    assert client.post("/v1/feedback", json={"feedback": items}).json() == {"recorded": True}
    assert [(record.interaction, record.source) for record in records(stream)] == [
        ("i0", "user"),
        ("i1", "user"),
        ("i2", "user"),
    ]


@pytest.mark.parametrize(
    ("body", "part"),
    [
        ({"id": "a"}, "'id' and 'label'"),
        ({"label": "a"}, "'id' and 'label'"),
        ({"id": "a", "label": ""}, "label"),
        ({"id": "a", "label": "  "}, "label"),
        ({"id": "a", "label": "x" * 201}, "label"),
        ({"id": "a", "label": "x\0"}, "NUL"),
        ({"id": "a", "label": "\udfff"}, "surrogate"),
        ({"id": "x" * 101, "label": "a"}, "id"),
        ({"id": "a", "label": "b", "feedback": [{"id": "a", "label": "b"}]}, "either"),
        ({"feedback": []}, "feedback"),
        ({"feedback": [{"id": "a", "label": "b"}, {"id": "a"}]}, "feedback.1.label"),
        ({"feedback": [{"id": "a", "lable": "b"}]}, "'lable'"),
        ({"feedback": [{"id": "a", "label": "b"}] * (MAX_FEEDBACK + 1)}, str(MAX_FEEDBACK)),
    ],
)
def test_bad_feedback_is_refused_in_words(client, stream, records, body, part):
    refused(post(client, body, "/v1/feedback"), 422, part)
    assert records(stream) == []


def test_without_a_champion_the_answer_says_what_to_do(serving):
    with serving() as client:
        error = refused(client.post("/v1/predict", json={"text": "a"}), 503, "no version is served")
        assert "perdure fit" in error["do"]


def test_a_model_that_fails_is_a_500_in_the_same_shape(registry, publish, shelf, serving):
    def fail(texts):
        if "boom" in texts:
            raise RuntimeError("a tensor went missing")
        return inner.scores(texts)

    inner = shelf("v1")
    shelf.scripts["v1"] = fail
    publish(registry, "v1")
    with serving(raise_server_exceptions=False) as client:
        refused(client.post("/v1/predict", json={"text": "boom"}), 500, "RuntimeError")
        assert client.post("/v1/predict", json={"text": "order"}).status_code == 200


def test_while_the_stream_fails_answers_go_on_unrecorded_and_are_written_when_it_heals(
    registry, publish, serving, stream, records, until, service_of
):
    publish(registry, "v1")
    with serving() as client:
        stream.fail_with(StreamError("the disk is full"))
        first = client.post("/v1/predict", json={"text": "order"})
        assert (first.status_code, first.json()["recorded"]) == (200, False)
        second = client.post("/v1/predict", json={"text": "order"})
        assert second.elapsed.total_seconds() < 0.2, "it waited for a stream that is known to fail"
        said = client.post("/v1/feedback", json={"id": first.json()["id"], "label": "refund"})
        assert (said.status_code, said.json()) == (202, {"recorded": False})
        stream.heal()
        until(lambda: service_of(client).recorder.unsent == 0)
        ids = [getattr(record, "id", None) or record.interaction for record in records(stream)]
        assert ids == [first.json()["id"], second.json()["id"], first.json()["id"]]
        assert client.post("/v1/predict", json={"text": "order"}).json()["recorded"] is True


def test_an_operator_may_refuse_what_cannot_be_recorded(registry, publish, serving, stream, shelf):
    publish(registry, "v1")
    with serving(on_record_failure="refuse") as client:
        stream.fail_with(StreamError("the disk is full"))
        for _ in range(2):
            response = client.post("/v1/predict", json={"text": "order"})
            refused(response, 503, "cannot be recorded")
            assert response.headers["Retry-After"] == "1"
        asked = sum("order" in texts for texts in shelf.made["v1"][0].calls)
        assert asked == 1, "the model was asked for an answer that was known to be refused"
        refused(client.post("/v1/feedback", json={"id": "a", "label": "b"}), 503, "cannot be recorded")
        stream.heal()


def test_what_was_refused_is_withdrawn(registry, publish, serving, stream, records, monkeypatch, service_of, until):
    publish(registry, "v1")
    shut = threading.Event()
    write = stream.append

    def slowly(batch):
        assert shut.wait(10)
        write(batch)

    monkeypatch.setattr(stream, "append", slowly)
    with serving(on_record_failure="refuse") as client:
        for text in ("order being written", "order that waits"):
            refused(client.post("/v1/predict", json={"text": text}), 503, "cannot be recorded")
        shut.set()
        until(lambda: service_of(client).recorder.unsent == 0)
    assert [record.text for record in records(stream)] == ["order being written"]


def test_what_comes_too_late_to_be_acknowledged_is_written_all_the_same(
    registry, publish, serving, stream, records, monkeypatch, service_of, until
):
    publish(registry, "v1")
    shut = threading.Event()
    write = stream.append

    def slowly(batch):
        assert shut.wait(10)
        write(batch)

    monkeypatch.setattr(stream, "append", slowly)
    with serving() as client:
        answers = [client.post("/v1/predict", json={"text": "order"}).json() for _ in range(2)]
        assert [answer["recorded"] for answer in answers] == [False, False]
        shut.set()
        until(lambda: service_of(client).recorder.unsent == 0)
    assert [record.id for record in records(stream)] == [answer["id"] for answer in answers]


def test_what_finds_no_room_is_answered_and_says_so(registry, publish, serving, stream, service_of):
    publish(registry, "v1")
    with serving(record_queue=1) as client:
        stream.fail_with(StreamError("the disk is full"))
        assert client.post("/v1/predict", json={"text": "order"}).json()["recorded"] is False
        said = client.post("/v1/feedback", json={"id": "a", "label": "b"})
        assert (said.status_code, said.json()) == (202, {"recorded": False})
        assert client.post("/v1/predict", json={"text": "order"}).json()["recorded"] is False
        assert service_of(client).recorder.unsent == 1
        assert 'perdure_records_total{outcome="dropped"} 2.0' in client.get("/metrics").text
        stream.heal()


def test_recording_may_be_switched_off(registry, publish, serving, stream, records):
    publish(registry, "v1")
    with serving(record=False) as client:
        assert client.post("/v1/predict", json={"text": "order"}).json()["recorded"] is False
        error = refused(client.post("/v1/feedback", json={"id": "a", "label": "b"}), 409, "records nothing")
        assert "serving.record" in error["do"]
        assert records(stream) == []


def test_too_many_waiting_requests_are_told_to_come_back(registry, publish, serving, shelf, service_of):
    publish(registry, "v1")
    with serving(max_queue=1) as client:
        (model,) = shelf.made["v1"]
        model.gate.clear()
        batcher = service_of(client).batcher
        running = batcher.submit(["order"])
        while len(model.calls) < 2:
            pass
        waiting = batcher.submit(["order"])
        response = client.post("/v1/predict", json={"text": "order"})
        refused(response, 429, "wait for the model")
        assert response.headers["Retry-After"] == "1"
        model.gate.set()
        assert running.result(5).version == waiting.result(5).version == "v1"
