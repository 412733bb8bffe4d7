from __future__ import annotations

import json

import numpy as np
import pytest

from perdure.model.base import Scores
from perdure_services.serving.choice import among, check_labels
from perdure_services.serving.refusal import Refusal

SCORES = Scores(("a", "b", "c"), np.asarray([[0.5, 0.3, 0.2], [0.0, 0.0, 1.0]], dtype=np.float32))


@pytest.fixture
def client(registry, publish, serving):
    publish(registry, "v1")
    with serving() as client:
        yield client


def test_what_is_left_sums_to_one_and_keeps_its_ratios():
    kept = among("v1", SCORES, ["c", "b"])
    assert kept.labels == ("b", "c")
    assert kept.probabilities.dtype == np.float32
    assert kept.probabilities[0] == pytest.approx([0.6, 0.4])
    assert kept.probabilities[1] == pytest.approx([0.0, 1.0])


def test_labels_that_are_all_impossible_share_alike():
    assert among("v1", SCORES, ["a", "b"]).probabilities[1] == pytest.approx([0.5, 0.5])


def test_a_label_that_is_named_twice_counts_once():
    assert among("v1", SCORES, ["a", "a", "b"]).probabilities[0] == pytest.approx([0.625, 0.375])


def test_one_label_alone_is_certain():
    assert among("v1", SCORES, ["b"]).probabilities[:, 0] == pytest.approx([1.0, 1.0])


def test_the_nearest_of_many_labels_is_named_in_no_time():
    known = [f"{'x' * 150}{number}" for number in range(2000)] + ["refund request"]
    with pytest.raises(Refusal, match="did you mean 'refund request'"):
        check_labels("v1", known, ["refund_requests"])


def test_only_allowed_labels_are_answered_and_recorded(client, stream, records):
    body = {"texts": ["refund please", "my password"], "labels": ["login@v1", "order@v1"], "top_k": 3}
    refund, login = client.post("/v1/predict", json=body).json()["predictions"]
    assert refund["label"] in body["labels"]
    assert [ranked["label"] for ranked in login["top"]] == ["login@v1", "order@v1"]
    assert login["confidence"] == pytest.approx(0.9 / 0.95, abs=1e-6)
    assert sum(ranked["confidence"] for ranked in login["top"]) == pytest.approx(1.0)
    recorded = records(stream)[1]
    assert (recorded.label, recorded.confidence) == ("login@v1", pytest.approx(login["confidence"]))
    assert [label for label, _ in recorded.top] == ["login@v1", "order@v1"]


def test_blanks_around_an_allowed_label_are_no_part_of_it(client):
    body = {"text": "my password", "labels": [" login@v1\n", "order@v1"]}
    assert client.post("/v1/predict", json=body).json()["label"] == "login@v1"


@pytest.mark.parametrize(
    ("labels", "part"),
    [
        (["login@v1", "ordre@v1"], "labels.1: version v1 knows no label 'ordre@v1': did you mean 'order@v1'?"),
        ([], "labels"),
        ("order@v1", "labels"),
        ([""], "labels.0"),
        (["\udc00"], "labels.0"),
        (["a" * 201], "labels.0"),
        ([1], "labels.0"),
    ],
)
def test_labels_that_cannot_be_answered_are_refused(client, stream, records, shelf, labels, part):
    before = len(shelf.made["v1"][0].calls)
    body = json.dumps({"text": "refund", "labels": labels})
    answer = client.post("/v1/predict", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422
    assert part in answer.json()["error"]["what"]
    assert records(stream) == []
    assert len(shelf.made["v1"][0].calls) == before
