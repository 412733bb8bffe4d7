from __future__ import annotations

from collections.abc import Callable

import pytest

from perdure.judge.shift import Shift, prediction_shift
from perdure.model.base import Scores

Make = Callable[..., Scores]
OLD, NEW = ("a", "b"), ("a", "b", "c")


def test_equal_answers_do_not_shift(scores: Make) -> None:
    answers = [("a", 0.9)] * 7 + [("b", 0.8)] * 3
    assert prediction_shift(scores(OLD, answers), scores(NEW, answers)) == Shift(0.0, 10, 0)


def test_distance_is_total_variation(scores: Make) -> None:
    before = scores(OLD, [("a", 0.9)] * 8 + [("b", 0.9)] * 2)
    after = scores(OLD, [("a", 0.9)] * 5 + [("b", 0.9)] * 5)
    found = prediction_shift(before, after)
    assert found.distance == pytest.approx(0.3)
    assert (found.rows, found.left_out) == (10, 0)


def test_answers_that_swap_places_leave_the_distribution(scores: Make) -> None:
    before, after = scores(OLD, [("a", 0.9), ("b", 0.9)]), scores(OLD, [("b", 0.9), ("a", 0.9)])
    assert prediction_shift(before, after).distance == 0


def test_new_labels_are_left_out(scores: Make) -> None:
    before = scores(OLD, [("a", 0.9)] * 8 + [("b", 0.9)] * 2)
    after = scores(NEW, [("c", 0.9)] * 4 + [("a", 0.9)] * 2 + [("b", 0.9)] * 4)
    found = prediction_shift(before, after)
    assert found.distance == pytest.approx(2 / 6)
    assert (found.rows, found.left_out) == (6, 4)


def test_known_truth_explains_a_change(scores: Make) -> None:
    before, after = scores(OLD, [("a", 0.9)] * 10), scores(OLD, [("b", 0.9)] * 10)
    assert prediction_shift(before, after, ["b"] * 6 + [None] * 4).distance == pytest.approx(0.4)
    assert prediction_shift(before, after, ["a"] * 6 + [None] * 4).distance == pytest.approx(1.0)


def test_nothing_to_compare(scores: Make) -> None:
    assert prediction_shift(scores(OLD, [("a", 0.9)]), scores(NEW, [("c", 0.9)])) == Shift(0.0, 0, 1)


def test_different_rows_are_refused(scores: Make) -> None:
    with pytest.raises(ValueError, match="1, 2 and 2 rows"):
        prediction_shift(scores(OLD, [("a", 0.9)]), scores(OLD, [("a", 0.9)] * 2))
