"""What the clients can ask beside a label, over an API behind a real server."""

from __future__ import annotations

import asyncio
import threading

import numpy as np
import pytest
import uvicorn

from perdure.client import AsyncClient, Client
from perdure.client.answers import EncodedEmbeddings
from perdure.config import Settings
from perdure.errors import ApiConflict, ApiRequestInvalid, UsageError
from perdure.judge.threshold import BELOW
from perdure.memory import ingest
from perdure.model.double import KeywordClassifier
from perdure.records import Feedback, Interaction
from perdure.registry import Card
from perdure.registry.card import EncoderCard
from perdure.stream import MemoryStream
from perdure_replay import ReplayMemory
from perdure_services.serving import create_app
from perdure_services.serving.server import listen, url_of

CLASSIFIER = KeywordClassifier("v1", {"order": "order", "refund": "refund", "login": "password"})


@pytest.fixture
def settings(tmp_path):
    named = {"serving.refresh_seconds": 0.02, "memory.path": str(tmp_path / "memory"), "device": "cpu"}
    return Settings().with_values(named)


@pytest.fixture
def url(registry, stream, settings, until):
    encoder = EncoderCard(name="double", fingerprint="0")
    card = Card(name="v1", kind="first", created=1.0, encoder=encoder, labels=("order",), metrics={BELOW: 0.95})
    registry.write(card, {"model.json": b"{}"})
    registry.promote("v1", reason="a test", by="tests")
    app = create_app(settings, registry=registry, stream=stream, load=lambda version: CLASSIFIER)
    listener = listen("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, ws="none", access_log=False))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        until(lambda: server.started, 10)
        assert app.state.service.champions.wait_for_first_look(10)
        yield url_of(listener)
    finally:
        server.should_exit = True
        thread.join(10)


@pytest.fixture
def memory(settings):
    with ReplayMemory(settings) as memory, MemoryStream() as stream:
        for number, text in enumerate(["a refund please", "my refund and order"]):
            said = Interaction(time=number, id=f"i{number}", text=text, label="refund")
            stream.append([said, Feedback(time=number + 1, interaction=f"i{number}", label="refund")])
        ingest(stream, memory)
        samples = memory.samples()
        vectors = CLASSIFIER.embeddings([sample.text for sample in samples])
        memory.embed(CLASSIFIER.space, [sample.key for sample in samples], vectors)
        yield memory


@pytest.fixture(params=["blocking", "asyncio"])
def ask(request, url):
    """Calls a method of either client."""

    def blocking(method, *arguments, **named):
        with Client(url) as api:
            return getattr(api, method)(*arguments, **named)

    def through_asyncio(method, *arguments, **named):
        async def call():
            async with AsyncClient(url) as api:
                return await getattr(api, method)(*arguments, **named)

        return asyncio.run(call())

    return blocking if request.param == "blocking" else through_asyncio


def test_labels_and_abstention(ask):
    plain = ask("predict", "a refund")
    assert (plain.label, plain.abstained, plain.neighbours) == ("refund", None, None)
    one = ask("predict", "a refund", labels={"order"}, abstain=True, top=5)
    assert (one.label, one.confidence, one.abstained, len(one.top)) == ("order", 1.0, True, 1)
    two = ask("predict", ["refund", "password"], labels=["login", "order"], abstain=False)
    assert [(each.label, each.abstained) for each in two] == [("order", None), ("login", None)]


def test_labels_that_cannot_be_are_told(ask):
    with pytest.raises(ApiRequestInvalid, match="did you mean 'order'"):
        ask("predict", "a refund", labels=["ordr"])
    with pytest.raises(UsageError, match="the labels are one string, 'order'"):
        ask("predict", "a refund", labels="order")
    with pytest.raises(ApiRequestInvalid, match="labels"):
        ask("predict", "a refund", labels=[])


def test_neighbours(ask, memory):
    one = ask("predict", "refund", neighbours=1)
    assert [(near.text, near.label) for near in one.neighbours] == [("a refund please", "refund")]
    assert one.neighbours[0].similarity == pytest.approx(1.0, abs=1e-3)
    assert [len(each.neighbours) for each in ask("predict", ["refund", "order"], neighbours=True)] == [2, 2]
    assert ask("predict", "refund", neighbours=False).neighbours is None


def test_an_explanation_that_is_not_to_be_had_is_a_conflict(ask):
    with pytest.raises(ApiConflict, match="run the trainer on this machine"):
        ask("predict", "refund", neighbours=True)


def test_embeddings(ask):
    texts = ["refund my order", "nothing"]
    found = ask("embeddings", texts)
    assert (found.version, found.space) == ("v1", CLASSIFIER.space)
    assert found.vectors.dtype == np.float32
    assert found.vectors == pytest.approx(CLASSIFIER.embeddings(texts))
    with pytest.raises(UsageError, match="the texts are one string"):
        ask("embeddings", "refund")
    with pytest.raises(ApiRequestInvalid, match="texts"):
        ask("embeddings", [])


@pytest.mark.parametrize("rows", [(), ("AAAAAAAAAAA=",), ("AAAA", "AAAA"), ("?", "?")])
def test_embeddings_that_are_none_are_no_answer(rows):
    with pytest.raises(ValueError, match=r"embeddings|base64"):
        EncodedEmbeddings("v1", "s", 2, rows).decoded(2)
