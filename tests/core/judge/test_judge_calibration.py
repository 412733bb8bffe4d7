from __future__ import annotations

import numpy as np
import pytest

from perdure.judge.calibration import bins, brier_score, expected_error
from perdure.model.base import Scores


def test_bins_have_equal_mass() -> None:
    confidence = np.concatenate([np.full(90, 0.99), np.linspace(0, 0.9, 10)]).astype(np.float32)
    found = bins(confidence, np.ones(100, dtype=np.bool_))
    assert [part.rows for part in found] == [10] * 10
    assert [part.confidence for part in found] == sorted(part.confidence for part in found)


def test_error_of_known_bins() -> None:
    # 10 rows say 0.6 and 5 are right, 10 say 0.9 and 10 are right: (0.1 + 0.1) / 2.
    confidence = np.array([0.6, 0.9] * 10, dtype=np.float32)
    right = np.array([number % 4 != 2 for number in range(20)], dtype=np.bool_)
    assert expected_error(confidence, right) == pytest.approx(0.1, abs=1e-6)


def test_overconfidence_is_seen_where_a_calibrated_model_is_not() -> None:
    random = np.random.default_rng(0)
    confidence = random.uniform(0.5, 1, 5000).astype(np.float32)
    right = random.random(5000) < confidence
    assert expected_error(confidence, right) < 0.03
    assert expected_error(np.ones(5000, dtype=np.float32), right) == pytest.approx(1 - right.mean())


def test_few_rows_make_few_bins() -> None:
    assert len(bins(np.full(7, 0.5, dtype=np.float32), np.ones(7, dtype=np.bool_))) == 1
    assert bins(np.zeros(0, dtype=np.float32), np.zeros(0, dtype=np.bool_)) == ()
    with pytest.raises(ValueError, match="no rows"):
        expected_error(np.zeros(0, dtype=np.float32), np.zeros(0, dtype=np.bool_))


def test_equal_confidences_do_not_depend_on_order() -> None:
    right = np.array([True] * 80 + [False] * 20)
    assert expected_error(np.full(100, 0.8, dtype=np.float32), right) == pytest.approx(0, abs=1e-6)


def test_the_brier_score_of_known_answers() -> None:
    scores = Scores(("a", "b"), np.array([[1, 0], [0.5, 0.5], [0.5, 0.5], [0, 1]], dtype=np.float32))
    # Right and sure 0, undecided 0.5, undecided about a label that it does not know 1.5, wrong and sure 2.
    assert brier_score(scores, ["a", "b", "c", "a"]) == pytest.approx((0 + 0.5 + 1.5 + 2) / 4)
    with pytest.raises(ValueError, match="no rows"):
        brier_score(Scores(("a",), np.zeros((0, 1), dtype=np.float32)), [])
