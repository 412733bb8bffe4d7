"""Neighbours and embeddings, over a real replay memory that another connection writes."""

from __future__ import annotations

import base64
import shutil
import threading
from contextlib import contextmanager

import numpy as np
import pytest
from starlette.testclient import TestClient

from perdure.config import Settings
from perdure.errors import ExtraMissing, UsageError
from perdure.memory import ingest
from perdure.model.base import Classifier
from perdure.model.double import KeywordClassifier
from perdure.records import Feedback, Interaction
from perdure.stream import MemoryStream
from perdure_replay import ReplayMemory
from perdure_services.serving import aside as aside_module
from perdure_services.serving import create_app
from perdure_services.serving import remembered as remembered_module
from perdure_services.serving.exclusive import Exclusive

NOW = 1_700_000_000.0
WORDS = {"order": "order", "refund": "refund", "login": "password"}
SAMPLES = [
    ("a refund please", "refund", "ann"),
    ("refund of my order", "refund", "bob"),
    ("my password is lost", "login", "ann"),
    ("where is my order", "order", "cem"),
]


class Versions:
    """Loads keyword classifiers; each counts who asks it, and may be held."""

    def __init__(self):
        self.gate = threading.Event()
        self.gate.set()
        self.embedding = threading.Event()
        self.embedded = []
        self.words = {"v1": WORDS, "v2": {**WORDS, "other": "other"}}

    def __call__(self, version):
        versions = self

        class Held(KeywordClassifier):
            def embeddings(self, texts):
                versions.embedding.set()
                versions.embedded.append(tuple(texts))
                assert versions.gate.wait(10)
                return super().embeddings(texts)

        return Held(version, self.words[version])


@pytest.fixture
def versions():
    return Versions()


@pytest.fixture
def memory(tmp_path):
    """Makes a memory that holds the samples, embedded in the space of v1."""
    opened = []

    def make(name="memory", samples=SAMPLES, embedded=True):
        settings = Settings().with_values({"memory.path": str(tmp_path / name), "device": "cpu"})
        memory = ReplayMemory(settings, clock=lambda: NOW)
        opened.append(memory)
        with MemoryStream() as stream:
            for number, (text, label, subject) in enumerate(samples):
                said = Interaction(time=NOW - 10, id=f"i{number}", text=text, label=label, subject=subject)
                stream.append([said, Feedback(time=NOW - 5, interaction=f"i{number}", label=label)])
            ingest(stream, memory)
        if embedded:
            embed(memory, KeywordClassifier("v1", WORDS))
        return memory

    yield make
    for one in opened:
        one.close()


def embed(memory, classifier):
    samples = memory.samples()
    vectors = classifier.embeddings([sample.text for sample in samples])
    memory.embed(classifier.space, [sample.key for sample in samples], vectors)


@pytest.fixture
def client(registry, publish, stream, versions, tmp_path):
    """Runs an app over v1."""
    publish(registry, "v1")

    @contextmanager
    def start(**settings):
        named = {"serving.refresh_seconds": 0.02, "serving.drain_seconds": 2.0, "memory.path": str(tmp_path / "memory")}
        tree = Settings().with_values({**named, **settings})
        app = create_app(tree, registry=registry, stream=stream, load=versions)
        with TestClient(app) as client:
            assert app.state.service.champions.wait_for_first_look(5)
            yield client

    return start


def explained(client, text, **fields):
    answer = client.post("/v1/predict", json={"text": text, "explain": "neighbours", **fields})
    assert answer.status_code == 200, answer.text
    return [(one["text"], one["label"], one["similarity"]) for one in answer.json()["neighbours"]]


def refused(client, status, part, **fields):
    answer = client.post("/v1/predict", json={"text": "a refund", "explain": "neighbours", **fields})
    assert answer.status_code == status, answer.text
    assert str(status) in client.get("/openapi.json").json()["paths"]["/v1/predict"]["post"]["responses"]
    assert part in answer.json()["error"]["what"]
    assert answer.json()["error"]["do"]


def test_the_nearest_samples_come_nearest_first(client, memory, stream, records):
    memory()
    with client() as api:
        found = explained(api, "refund", neighbours=2)
        assert [one[:2] for one in found] == [("a refund please", "refund"), ("refund of my order", "refund")]
        assert [one[2] for one in found] == pytest.approx([1.0, 0.5**0.5], abs=1e-3)
        assert max(one[2] for one in found) <= 1.0
        assert len(explained(api, "refund")) == 4
        several = {"texts": ["password", "order"], "neighbours": 1}
        answer = api.post("/v1/predict?explain=neighbours", json=several).json()
        texts = [[near["text"] for near in one["neighbours"]] for one in answer["predictions"]]
        assert texts == [["my password is lost"], ["where is my order"]]
        assert len(records(stream)) == 4
        assert "neighbours" not in api.post("/v1/predict", json={"text": "refund"}).json()


def test_how_many_is_a_setting(client, memory):
    memory()
    with client(**{"serving.neighbours": 3}) as api:
        assert len(explained(api, "refund")) == 3


@pytest.mark.parametrize(
    ("query", "fields"),
    [
        ("?explain=nearest", {}),
        ("", {"explain": "nearest"}),
        ("", {"explain": "neighbours", "neighbours": 0}),
        ("", {"explain": "neighbours", "neighbours": 101}),
    ],
)
def test_what_is_no_explanation_is_refused(client, memory, stream, records, query, fields):
    memory()
    with client() as api:
        assert api.post(f"/v1/predict{query}", json={"text": "refund", **fields}).status_code == 422
    assert records(stream) == []


def test_what_the_trainer_adds_and_forgets_is_seen_at_once(client, memory):
    written = memory()
    with client() as api:
        assert len(explained(api, "refund")) == 4
        assert written.forget("ann", NOW).samples == 2
        texts = {text for text, *_ in explained(api, "refund")}
        assert texts == {"refund of my order", "where is my order"}
        with MemoryStream() as stream:
            said = Interaction(time=NOW - 4, id="new", text="refund refund", label="refund")
            stream.append([said, Feedback(time=NOW - 3, interaction="new", label="refund")])
            written.ingest(stream.read({}, 10))
        embed(written, KeywordClassifier("v1", WORDS))
        assert explained(api, "refund", neighbours=1)[0][0] == "refund refund"


def test_the_trainer_writes_while_serving_looks(client, memory):
    written = memory()
    with client() as api:
        for number in range(5):
            explained(api, "refund")
            written.forget(f"nobody {number}", NOW)
            embed(written, KeywordClassifier("v1", WORDS))


def test_another_memory_in_its_place_is_noticed(client, memory, tmp_path):
    memory().close()
    with client() as api:
        assert len(explained(api, "refund")) == 4
        memory("fresh", [("refund it", "refund", "dan")]).close()
        shutil.move(tmp_path / "memory", tmp_path / "old")
        shutil.move(tmp_path / "fresh", tmp_path / "memory")
        assert [text for text, *_ in explained(api, "refund")] == ["refund it"]


def test_only_samples_of_the_same_space_count(client, memory, registry, publish, until, stream, records):
    written = memory()
    with client() as api:
        explained(api, "refund")
        publish(registry, "v2", parent="v1")
        until(lambda: api.post("/v1/predict", json={"text": "refund"}).json()["version"] == "v2")
        before = len(records(stream))
        refused(api, 409, "memory holds samples of the space 'keywords order refund password' only")
        assert len(records(stream)) == before
        embed(written, KeywordClassifier("v2", {**WORDS, "other": "other"}))
        assert explained(api, "refund", neighbours=1)[0][0] == "a refund please"


def test_a_memory_that_was_never_embedded_says_so(client, memory):
    memory(embedded=False)
    with client() as api:
        refused(api, 409, "but memory holds no embedded samples")


def test_where_there_is_no_memory_it_says_what_to_do_and_looks_again(client, memory, stream, records):
    with client() as api:
        refused(api, 409, "there is no memory to explain by")
        assert records(stream) == []
        memory()
        assert len(explained(api, "refund")) == 4


def test_where_no_memory_is_installed_it_says_what_to_install(client, monkeypatch):
    monkeypatch.setattr(remembered_module, "entry_points", lambda group: ())
    with client() as api:
        refused(api, 501, "no replay memory is installed")


def test_without_faiss_it_says_what_to_install(client, memory, monkeypatch):
    def missing(*_):
        raise ExtraMissing("searching memory", "FAISS")

    memory()
    monkeypatch.setattr(ReplayMemory, "neighbours", missing)
    with client() as api:
        refused(api, 501, "install perdure[cpu]")


def test_ordinary_requests_do_not_wait_for_an_explanation(client, memory, versions):
    memory()
    with client() as api:
        asking = threading.Thread(target=explained, args=(api, "refund"))
        original, looking, go_on = ReplayMemory.neighbours, threading.Event(), threading.Event()

        def slow(self, vectors, k):
            looking.set()
            assert go_on.wait(10)
            return original(self, vectors, k)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ReplayMemory, "neighbours", slow)
            asking.start()
            assert looking.wait(5)
            assert api.post("/v1/predict", json={"text": "refund"}).status_code == 200
            assert asking.is_alive()
            go_on.set()
            asking.join(5)
        assert not asking.is_alive()


def test_those_that_wait_are_bounded(client, versions, monkeypatch):
    monkeypatch.setattr(aside_module, "MAX_WAITING", 1)
    with client() as api:
        versions.gate.clear()
        held = threading.Thread(target=api.post, args=("/v1/embeddings",), kwargs={"json": {"texts": ["order"]}})
        held.start()
        assert versions.embedding.wait(5)
        crowded = api.post("/v1/embeddings", json={"texts": ["order"]})
        assert (crowded.status_code, crowded.headers["Retry-After"]) == (429, "1")
        versions.gate.set()
        held.join(5)
        assert api.post("/v1/embeddings", json={"texts": ["order"]}).status_code == 200


def test_past_its_deadline_nothing_is_waited_for_and_what_waits_is_never_computed(client, memory, versions):
    memory()
    soon = {"X-Request-Timeout-Ms": "60"}
    with client() as api:
        versions.gate.clear()
        late = api.post("/v1/embeddings", json={"texts": ["order"]}, headers=soon)
        assert (late.status_code, "X-Request-Timeout-Ms" in late.json()["error"]["do"]) == (504, True)
        for path, body in (("/v1/embeddings", {"texts": ["login"]}), ("/v1/predict?explain=neighbours", {"text": "x"})):
            assert api.post(path, json=body, headers=soon).status_code == 504
        versions.gate.set()
        assert api.post("/v1/embeddings", json={"texts": ["refund"]}).status_code == 200
        assert versions.embedded == [("order",), ("refund",)]


def test_an_explanation_needs_a_scope_of_its_own_and_spends_one_request(client, memory, make, file, stream, records):
    memory()
    plain, both, only = make("plain"), make("both", "predict", "explain", rate=0.001, burst=2), make("only", "explain")
    body = {"text": "refund", "explain": "neighbours"}
    with client(**{"serving.keys": str(file)}) as api:
        for path, asked in (("/v1/predict", body), ("/v1/predict?explain=neighbours", {"text": "refund"})):
            denied = api.post(path, json=asked, headers={"X-API-Key": plain})
            assert denied.status_code == 403
            assert "has not the scope explain" in denied.json()["detail"]
            assert api.post(path, json=asked, headers={"X-API-Key": only}).status_code == 403
            assert api.post(path, json=asked).status_code == 401
        assert records(stream) == []
        assert [api.post("/v1/predict", json=body, headers={"X-API-Key": both}).status_code for _ in range(3)] == [
            200,
            200,
            429,
        ]


def test_embeddings_are_of_length_one_and_say_whose_they_are(client, stream, records):
    texts = ["a refund of my order", "password", "nothing"]
    with client(**{"serving.max_batch": 2}) as api:
        answer = api.post("/v1/embeddings", json={"texts": texts}).json()
        assert (answer["version"], answer["space"]) == ("v1", "keywords order refund password")
        assert (answer["dimensions"], answer["encoding"]) == (4, "float")
        vectors = np.asarray(answer["embeddings"])
        assert vectors == pytest.approx(KeywordClassifier("v1", WORDS).embeddings(texts))
        assert np.linalg.norm(vectors, axis=1) == pytest.approx([1, 1, 1])
        packed = api.post("/v1/embeddings", json={"texts": texts, "encoding": "base64"}).json()
        rows = [np.frombuffer(base64.b64decode(row), "<f4") for row in packed["embeddings"]]
        assert np.stack(rows) == pytest.approx(vectors, abs=1e-7)
    assert records(stream) == []


@pytest.mark.parametrize(
    ("body", "part"),
    [
        ({}, "texts"),
        ({"texts": []}, "texts"),
        ({"texts": ["a", " "]}, "texts.1: the text is empty"),
        ({"texts": ["a"] * 9}, "9 texts in one request"),
        ({"texts": ["a"], "encoding": "float16"}, "encoding"),
        ({"text": "a"}, "did you mean 'texts'"),
    ],
)
def test_what_cannot_be_embedded_is_refused_in_words(client, body, part):
    with client(**{"serving.max_texts": 8}) as api:
        answer = api.post("/v1/embeddings", json=body)
        assert answer.status_code == 422
        assert part in answer.json()["error"]["what"]


def test_a_version_without_embeddings_and_none_at_all_say_so(registry, publish, serving):
    with serving() as client:
        assert client.post("/v1/embeddings", json={"texts": ["a"]}).status_code == 503
        publish(registry, "v1")
    with serving() as client:
        answer = client.post("/v1/embeddings", json={"texts": ["a"]})
        assert answer.status_code == 501
        assert "version v1 has no embeddings" in answer.json()["error"]["what"]


def test_one_thread_at_a_time_asks_a_version():
    class Jealous(Classifier):
        version, labels = "v1", ("a",)

        def __init__(self):
            self.inside, self.most, self.entered = 0, 0, threading.Event()

        def scores(self, texts):
            self.inside += 1
            self.most = max(self.most, self.inside)
            self.entered.set()
            threading.Event().wait(0.05)
            self.inside -= 1

        embeddings = scores

    inner = Jealous()
    guarded = Exclusive(inner)
    threads = [threading.Thread(target=ask, args=(["a"],)) for ask in (guarded.scores, guarded.embeddings) * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert inner.most == 1
    assert guarded.space is None
    with pytest.raises(UsageError, match="version v1 has no embeddings"):
        Classifier.embeddings(inner, ["a"])
