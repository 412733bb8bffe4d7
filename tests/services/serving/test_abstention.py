from __future__ import annotations

import asyncio
import threading
import time

import numpy as np
import pytest

from perdure.errors import RegistryError
from perdure.judge.threshold import BELOW
from perdure.model.base import Scores
from perdure.registry import Card
from perdure.registry.card import EncoderCard
from perdure_services.serving.choice import choices
from perdure_services.serving.deadline import wanted_by
from perdure_services.serving.refusal import Refusal
from perdure_services.serving.thresholds import KEPT, Thresholds

SCORES = Scores(("a", "b", "c"), np.asarray([[0.5, 0.3, 0.2], [0.8, 0.15, 0.05]], dtype=np.float32))


def abstained(threshold, allowed=None):
    return [
        one.abstained
        for one in choices("v1", SCORES, SCORES.predictions(), top=1, allowed=allowed, threshold=threshold)
    ]


def test_below_the_threshold_it_abstains_and_at_it_does_not():
    assert abstained(0.5) == [False, False]
    assert abstained(0.51) == [True, False]
    assert abstained(0.9) == [True, True]
    assert abstained(None) == [None, None]


def test_a_restriction_makes_nothing_surer():
    # "b" alone would be certain; but that it is right, given all labels, is not.
    assert abstained(0.4, ["b"]) == [True, True]
    assert abstained(0.1, ["b", "c"]) == [True, True]
    assert abstained(0.51, ["a", "b"]) == [True, False]


def test_the_best_guess_is_given_all_the_same():
    one, _ = choices("v1", SCORES, SCORES.predictions(), top=2, allowed=None, threshold=0.9)
    assert (one.prediction.label, one.abstained) == ("a", True)
    assert [label for label, _ in one.prediction.top] == ["a", "b"]


@pytest.fixture
def promote(registry):
    """Writes and promotes a version with these metrics."""

    def write(name, **metrics):
        encoder = EncoderCard(name="double", fingerprint="0")
        card = Card(name=name, kind="first", created=1.0, encoder=encoder, labels=("order",), metrics=metrics)
        registry.write(card, {"model.json": b"{}"})
        registry.promote(name, reason="a test", by="tests")

    return write


def predict(client, **fields):
    return client.post("/v1/predict", json={"text": "my order", **fields}).json()


def test_it_is_said_where_it_is_asked_for(promote, serving, stream, records):
    promote("v1", **{BELOW: 0.95})
    with serving() as client:
        assert "abstained" not in predict(client)
        assert "abstained" not in predict(client, abstain=False)
        unsure = predict(client, abstain=True)
        assert (unsure["label"], unsure["abstained"]) == ("order@v1", True)
        assert records(stream)[-1].label == "order@v1"
        assert records(stream)[-1].confidence == pytest.approx(unsure["confidence"])
        several = client.post("/v1/predict", json={"texts": ["order", "refund"], "abstain": True}).json()
        assert [one["abstained"] for one in several["predictions"]] == [True, True]


def test_or_everywhere_where_the_operator_says_so(promote, serving):
    promote("v1", **{BELOW: 0.5})
    with serving(abstain=True) as client:
        assert predict(client)["abstained"] is False
        assert "abstained" not in predict(client, abstain=False)


def test_a_version_without_a_threshold_does_not_say(promote, serving):
    promote("v1", accuracy=0.9)
    with serving() as client:
        assert "abstained" not in predict(client, abstain=True)
        infer = {"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["order"]}]}
        answer = client.post("/v2/models/perdure/infer", json={**infer, "parameters": {"abstain": True}})
        assert "abstained" not in [output["name"] for output in answer.json()["outputs"]]
        wanted = client.post("/v2/models/perdure/infer", json={**infer, "outputs": [{"name": "abstained"}]})
        assert wanted.status_code == 409
        assert "version v1 cannot abstain" in wanted.json()["detail"]


def test_over_the_inference_protocol(promote, serving):
    promote("v1", **{BELOW: 0.95})
    infer = {"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["order"]}]}
    with serving() as client:
        answer = client.post("/v2/models/perdure/infer", json={**infer, "parameters": {"abstain": True}}).json()
        said = {output["name"]: output for output in answer["outputs"]}["abstained"]
        assert said == {"name": "abstained", "shape": [1], "datatype": "BOOL", "data": [True]}
        asked = client.post("/v2/models/perdure/infer", json={**infer, "outputs": [{"name": "abstained"}]}).json()
        assert asked["outputs"] == [said]
        outputs = [{"name": "abstained", "parameters": {"binary_data": True}}]
        assert client.post("/v2/models/perdure/infer", json={**infer, "outputs": outputs}).content[-1:] == b"\1"


def test_each_version_goes_by_its_own_threshold(promote, serving, until):
    promote("v1", **{BELOW: 0.95})
    with serving() as client:
        assert predict(client, abstain=True)["abstained"] is True
        promote("v2", **{BELOW: 0.5})
        until(lambda: predict(client)["version"] == "v2")
        assert predict(client, abstain=True)["abstained"] is False


@pytest.mark.parametrize("error", [RegistryError("the registry is away"), TimeoutError("the registry is away")])
def test_a_card_is_read_once_and_one_that_cannot_be_read_is_told(promote, serving, registry, monkeypatch, error):
    promote("v1", **{BELOW: 0.95})
    read = registry.card
    asked = []

    def fail(name):
        raise error

    with serving(raise_server_exceptions=False) as client:
        monkeypatch.setattr(registry, "card", fail)
        refused = client.post("/v1/predict", json={"text": "order", "abstain": True})
        assert refused.status_code == 503
        assert "the registry is away" in refused.json()["detail"]
        assert refused.headers["Retry-After"] == "1"
        assert predict(client)["label"] == "order@v1"
        monkeypatch.setattr(registry, "card", lambda name: asked.append(name) or read(name))
        assert predict(client, abstain=True)["abstained"] is True
        assert predict(client, abstain=True)["abstained"] is True
        assert asked == ["v1"]


def test_the_thresholds_that_are_remembered_are_those_asked_for_last(promote, registry, monkeypatch):
    read, asked = registry.card, []
    for number in range(KEPT + 1):
        promote(f"v{number}", **{BELOW: number / 10})
    monkeypatch.setattr(registry, "card", lambda name: asked.append(name) or read(name))
    thresholds = Thresholds(registry)

    async def run():
        for number in (*range(KEPT), 0, KEPT, 0, 1):
            assert await thresholds.of(f"v{number}") == number / 10

    asyncio.run(run())
    assert asked == [*(f"v{number}" for number in range(KEPT)), f"v{KEPT}", "v1"]


def test_all_wait_for_one_reading_and_none_for_longer_than_it_wants(promote, registry, monkeypatch):
    promote("v1", **{BELOW: 0.5})
    read, gate, asked = registry.card, threading.Event(), []

    def slow(name):
        asked.append(name)
        assert gate.wait(10)
        return read(name)

    monkeypatch.setattr(registry, "card", slow)
    thresholds = Thresholds(registry)

    async def hurried():
        with wanted_by(time.monotonic() + 0.05), pytest.raises(Refusal) as refusal:
            await thresholds.of("v1")
        return refusal.value.status_code

    async def run():
        patient = [asyncio.create_task(thresholds.of("v1")) for _ in range(3)]
        assert await hurried() == 504
        patient[0].cancel()
        gate.set()
        return await asyncio.gather(*patient[1:])

    assert asyncio.run(run()) == [0.5, 0.5]
    assert asked == ["v1"]


def test_a_failure_that_nobody_waited_for_is_not_kept(promote, registry, monkeypatch):
    promote("v1", **{BELOW: 0.5})
    thresholds = Thresholds(registry)
    gate, read = threading.Event(), registry.card

    def fail(name):
        assert gate.wait(10)
        raise RegistryError("the registry is away")

    async def run():
        monkeypatch.setattr(registry, "card", fail)
        with wanted_by(time.monotonic() + 0.02), pytest.raises(Refusal):
            await thresholds.of("v1")
        (reading,) = thresholds._read.values()
        gate.set()
        await asyncio.wait([reading])
        await asyncio.sleep(0)
        monkeypatch.setattr(registry, "card", read)
        return await thresholds.of("v1")

    assert asyncio.run(run()) == 0.5
