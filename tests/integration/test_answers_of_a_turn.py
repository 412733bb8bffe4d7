"""What a turn leaves for serving: a threshold on the card, and a memory to explain by."""

from __future__ import annotations

import pytest
from starlette.testclient import TestClient

from perdure.engine.load import load_version
from perdure.judge.threshold import BELOW
from perdure.stream import MemoryStream
from perdure_services.serving import create_app

HEAD_ONLY = {"lora__enabled": False}


def test_a_card_has_the_threshold_that_its_evidence_bears_and_serving_goes_by_it(desk):
    desk.teach("refund", "parcel")
    # So little is promised here that a handful of rows will do.
    result = desk.turn(**HEAD_ONLY, judge__abstain_precision=0.5, judge__confidence=0.51)
    metrics = desk.registry().card("v000001-head").metrics
    assert 0 < metrics[BELOW] <= 1
    assert 0 < metrics["abstain_coverage"] <= 1
    assert metrics["abstain_risk"] <= 0.5
    assert result.champion == "v000001-head"
    with serving(desk) as api:
        answer = api.post("/v1/predict", json={"text": "my money back please", "abstain": True}).json()
        assert answer["abstained"] is (answer["confidence"] < metrics[BELOW])


def test_too_little_evidence_gives_none(desk):
    desk.teach("refund", "parcel")
    desk.turn(**HEAD_ONLY)
    assert not [name for name in desk.registry().card("v000001-head").metrics if name.startswith("abstain")]
    with serving(desk) as api:
        assert "abstained" not in api.post("/v1/predict", json={"text": "money back", "abstain": True}).json()


def test_what_the_turns_before_have_learned_explains_what_is_served(desk):
    desk.teach("refund", "parcel")
    desk.turn(**HEAD_ONLY)
    with desk.memory() as memory:
        held = {sample.text: sample.label for sample in memory.samples()}
    text = next(text for text, label in held.items() if label == "refund")
    with serving(desk) as api:
        early = api.post("/v1/predict?explain=neighbours", json={"text": text})
        assert early.status_code == 409
        assert "memory holds no embedded samples" in early.json()["detail"]
    desk.teach("login", name="more", at=100.0)
    assert desk.turn(**HEAD_ONLY).champion == "v000002-head"
    with serving(desk) as api:
        answer = api.post("/v1/predict?explain=neighbours", json={"text": text, "neighbours": 3}).json()
        first = answer["neighbours"][0]
        assert (first["text"], first["label"], len(answer["neighbours"])) == (text, "refund", 3)
        assert first["similarity"] == pytest.approx(1.0, abs=0.01)
        vectors = api.post("/v1/embeddings", json={"texts": [text]}).json()
        assert vectors["version"] == "v000002-head"


def serving(desk):
    registry = desk.registry()

    def load(version):
        return load_version(registry.fetch(version, desk.folder / "cache"), version, batch=16)

    client = TestClient(create_app(desk.settings, registry=registry, stream=MemoryStream(), load=load))
    return _Ready(client)


class _Ready:
    """The client, once its first version is loaded."""

    def __init__(self, client):
        self._client = client

    def __enter__(self):
        api = self._client.__enter__()
        assert api.app.state.service.champions.wait_for_first_look(30)
        return api

    def __exit__(self, *error):
        self._client.__exit__(*error)
