from __future__ import annotations

import numpy as np
import pytest

from contestants.figures import (
    Answers,
    SessionFigures,
    accuracies,
    calibration_error,
    figures,
    negative_flips,
    risk_coverage_area,
)


def flags(text: str) -> np.ndarray:
    return np.asarray([one == "1" for one in text])


def session(number: int, shares: tuple[float, ...], seconds: float = 2.0) -> SessionFigures:
    return SessionFigures(number, float(np.mean(shares)), shares, seconds, seconds)


def test_the_figures_of_a_known_matrix_are_those_of_its_definition() -> None:
    # The full matrix has accuracies of sessions not seen yet; a run has its lower triangle.
    rows = [(0.9362,), (0.8284, 0.9507), (0.4377, 0.4826, 0.9439)]
    found = figures([session(i, row) for i, row in enumerate(rows)], (), bytes_kept=7, samples_kept=3)
    assert found.acc == pytest.approx(0.6214, abs=5e-5)
    assert found.bwt == pytest.approx(-0.4833, abs=5e-5)
    assert found.forgetting == pytest.approx(0.4833, abs=5e-5)
    assert found.lowest == 0.4377
    assert found.aaa == pytest.approx(np.mean([np.mean(row) for row in rows]))
    assert found.learning_acc == pytest.approx(np.mean([0.9362, 0.9507, 0.9439]))
    assert (found.cpu_seconds, found.cpu_seconds_per_session) == (6.0, 2.0)
    assert (found.bytes_kept, found.samples_kept) == (7, 3)
    assert found.ece is None
    assert found.aurc is None
    assert found.negative_flips is None


def test_a_run_that_is_asked_only_at_the_end_says_nothing_of_the_way() -> None:
    answers = (Answers(flags("1101"), np.full(4, 0.75, dtype=np.float32)),)
    found = figures([session(2, (1.0, 0.5))], answers, bytes_kept=0, samples_kept=0)
    assert found.acc == 0.75
    assert found.ece == 0
    assert (found.aaa, found.bwt, found.forgetting, found.lowest, found.negative_flips) == (None,) * 5


def test_accuracies_are_of_each_session_apart() -> None:
    assert accuracies(flags("110100"), [3, 2, 1]) == pytest.approx((2 / 3, 0.5, 0.0))


def test_calibration_error_by_hand() -> None:
    confidence = np.asarray([0.95, 0.99, 0.4, 0.45], dtype=np.float32)
    # Bin (14/15, 1]: mean .97, half right. Bin (5/15, 6/15]: .4, right. Bin (6/15, 7/15]: .45, wrong.
    expected = 0.5 * abs(0.5 - 0.97) + 0.25 * abs(1 - 0.4) + 0.25 * abs(0 - 0.45)
    assert calibration_error(confidence, flags("1010")) == pytest.approx(expected, abs=1e-6)


def test_calibration_error_counts_an_edge_to_the_bin_below_it() -> None:
    confidence = np.asarray([1 / 15, 1.0, 0.0], dtype=np.float32)
    assert calibration_error(confidence, flags("010")) == pytest.approx((1 / 15) / 3, abs=1e-6)


def test_risk_coverage_by_hand() -> None:
    confidence = np.asarray([0.2, 0.9, 0.6, 0.4], dtype=np.float32)
    # Most confident first: right, wrong, right, wrong.
    assert risk_coverage_area(confidence, flags("0101")[[0, 1, 2, 3]]) == pytest.approx(
        np.mean([0 / 1, 1 / 2, 1 / 3, 2 / 4])
    )


def test_rows_of_equal_confidence_count_whatever_their_order() -> None:
    confidence = np.asarray([0.9, 0.9, 0.5], dtype=np.float32)
    first, second = risk_coverage_area(confidence, flags("101")), risk_coverage_area(confidence, flags("011"))
    assert first == second == pytest.approx(np.mean([0.5, 0.5, 1 / 3]))


def test_negative_flips_by_hand() -> None:
    # After session 1: one of two rows goes wrong. After session 2: two of four; what comes right is no flip.
    right = [flags("11"), flags("0111"), flags("100101")]
    assert negative_flips(right) == pytest.approx((1 / 2 + 2 / 4) / 2)
    assert negative_flips(right[:1]) == 0
