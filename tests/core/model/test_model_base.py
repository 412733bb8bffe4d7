from __future__ import annotations

import numpy as np
import pytest

from perdure.model.base import Scores
from perdure.model.double import KeywordClassifier

SCORES = Scores(("a", "b", "c"), np.array([[0.2, 0.5, 0.3], [0.4, 0.4, 0.2]], dtype=np.float32))


def test_predictions_are_the_most_probable_labels_best_first() -> None:
    first, second = SCORES.predictions(top=2)
    assert (first.label, first.confidence) == ("b", 0.5)
    assert [label for label, _ in first.top] == ["b", "c"]
    assert [label for label, _ in second.top] == ["a", "b"]
    assert SCORES.names() == ("b", "a")
    assert SCORES.best().tolist() == [1, 0]


@pytest.mark.parametrize(("top", "found"), [(0, 1), (1, 1), (3, 3), (99, 3)])
def test_at_least_one_label_and_at_most_all_are_given(top: int, found: int) -> None:
    assert [len(answer.top) for answer in SCORES.predictions(top)] == [found, found]


def test_the_double_answers_by_keyword_and_otherwise_its_first_label() -> None:
    double = KeywordClassifier("v1", {"refund": "money", "parcel": "late"}, confidence=0.8)
    scores = double.scores(["Where is my MONEY", "it is late", "hello"])
    assert scores.names() == ("refund", "parcel", "refund")
    np.testing.assert_allclose(scores.probabilities.sum(axis=1), 1)
    assert scores.predictions()[0].confidence == pytest.approx(0.8)


def test_a_double_needs_a_keyword() -> None:
    with pytest.raises(ValueError, match="keywords are empty"):
        KeywordClassifier("v1", {})
