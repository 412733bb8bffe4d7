from __future__ import annotations

import pytest

from perdure.scores import SessionScores, session_scores

ROWS = ((0.9362, 0.6093, 0.3326), (0.8284, 0.9507, 0.3383), (0.4377, 0.4826, 0.9439))


def test_figures_of_a_published_matrix() -> None:
    found = session_scores(ROWS)
    assert sum(ROWS[-1]) / 3 == pytest.approx(0.6214, abs=5e-5)
    assert found.bwt == pytest.approx(-0.4833, abs=5e-5)
    assert found.forgetting == pytest.approx(0.4833, abs=5e-5)
    assert found.learning_acc == pytest.approx((0.9362 + 0.9507 + 0.9439) / 3)


def test_accuracies_of_sessions_that_have_not_come_do_not_matter() -> None:
    assert session_scores([row[: index + 1] for index, row in enumerate(ROWS)]) == session_scores(ROWS)


def test_forgetting_counts_from_the_best_and_backward_transfer_from_the_first() -> None:
    found = session_scores([[0.5], [0.9, 0.6], [0.7, 0.8, 1.0]])
    assert found.bwt == pytest.approx(((0.7 - 0.5) + (0.8 - 0.6)) / 2)
    assert found.forgetting == pytest.approx(((0.9 - 0.7) + (0.6 - 0.8)) / 2)


def test_one_session_has_nothing_to_forget() -> None:
    assert session_scores([[0.75]]) == SessionScores(learning_acc=0.75, bwt=0.0, forgetting=0.0)


def test_a_session_that_was_not_evaluated_on_its_own_counts_from_where_it_came() -> None:
    """After the second and the fourth session nothing new is evaluated on."""
    found = session_scores([[0.5], [0.9], [0.7, 0.6], [0.8, 0.4]], came=[0, 2])
    assert found.learning_acc == pytest.approx((0.5 + 0.6) / 2)
    assert found.bwt == pytest.approx(((0.8 - 0.5) + (0.4 - 0.6)) / 2)
    assert found.forgetting == pytest.approx(((0.9 - 0.8) + (0.6 - 0.4)) / 2)
