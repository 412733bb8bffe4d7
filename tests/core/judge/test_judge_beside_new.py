from __future__ import annotations

from collections.abc import Callable

import pytest

from perdure.judge.check import Check
from perdure.judge.checks import known_labels, known_labels_beside_new
from perdure.judge.comparison import compare
from perdure.judge.evidence import Evidence

MakeEvidence = Callable[..., Evidence]
NEW = ("a", "b", "new")


def checked(evidence: Evidence, margin: float = 0.05) -> Check:
    return known_labels_beside_new(compare(evidence), margin, 0.05)


def test_what_passes_alone_passes_beside_new_labels(evidence: MakeEvidence) -> None:
    rows = evidence([("a", "a", "a", 500)], new=NEW)
    assert checked(rows) == known_labels(compare(rows), 0.05, 0.05)
    assert checked(rows).passed is True


def test_a_loss_above_the_margin_fails_whatever_new_labels_bring(evidence: MakeEvidence) -> None:
    rows = evidence([("a", "a", "a", 150), ("a", "a", "b", 50), ("new", "a", "new", 5000)], new=NEW)
    assert known_labels(compare(rows), 0.05, 0.05).passed is False
    assert checked(rows).passed is False
    assert "lost -25.0 points" in checked(rows).sentence


def test_a_certain_loss_within_the_margin_is_the_price_of_new_labels(evidence: MakeEvidence) -> None:
    rows = evidence([("a", "a", "a", 307), ("a", "a", "b", 9), ("new", "a", "new", 100)], new=NEW)
    assert known_labels(compare(rows), 0.04, 0.05).passed is False
    assert known_labels_beside_new(compare(rows), 0.04, 0.05).passed is True
    nothing_gained = evidence([("a", "a", "a", 307), ("a", "a", "b", 9), ("new", "a", "a", 100)], new=NEW)
    assert known_labels_beside_new(compare(nothing_gained), 0.04, 0.05).passed is None


def test_too_few_rows_pass_where_all_labels_together_gain_beyond_doubt(evidence: MakeEvidence) -> None:
    rows = evidence([("a", "a", "a", 39), ("a", "a", "b", 1), ("new", "a", "new", 20)], new=NEW)
    assert known_labels(compare(rows), 0.05, 0.05).passed is None
    found = checked(rows)
    assert found.passed is True
    assert found.rows == 40
    assert found.value == known_labels(compare(rows), 0.05, 0.05).value
    assert "on all labels together +31.7 points" in found.sentence
    assert "n=60" in found.sentence


def test_too_few_rows_stay_inconclusive_where_new_labels_bring_too_little(evidence: MakeEvidence) -> None:
    found = checked(evidence([("a", "a", "a", 39), ("a", "a", "b", 1), ("new", "a", "new", 2)], new=NEW))
    assert found.passed is None
    assert "on all labels together" in found.sentence


def test_new_labels_that_are_answered_wrongly_bring_nothing(evidence: MakeEvidence) -> None:
    assert checked(evidence([("a", "a", "a", 39), ("a", "a", "b", 1), ("new", "a", "b", 20)], new=NEW)).passed is None


def test_a_loss_that_was_seen_above_the_margin_fails(evidence: MakeEvidence) -> None:
    rows = evidence([("a", "a", "a", 27), ("a", "a", "b", 3), ("a", "b", "a", 1), ("new", "a", "new", 500)], new=NEW)
    assert known_labels(compare(rows), 0.05, 0.05).passed is None
    found = checked(rows)
    assert found.passed is False
    assert "lost -6.5 points, where -5.0 points is the limit" in found.sentence


def test_gains_make_up_for_losses_on_the_same_labels(evidence: MakeEvidence) -> None:
    rows = [("a", "a", "a", 27), ("a", "a", "b", 3), ("a", "b", "a", 2), ("new", "a", "new", 20)]
    assert checked(evidence(rows, new=NEW)).passed is True


def test_without_a_known_row_there_is_nothing_to_say(evidence: MakeEvidence) -> None:
    found = checked(evidence([("new", "a", "new", 50)], new=NEW))
    assert (found.passed, found.rows) == (None, 0)


@pytest.mark.parametrize(("margin", "passed"), [(0.02, False), (0.05, True)])
def test_the_margin_decides_on_the_loss_that_was_seen(evidence: MakeEvidence, margin: float, passed: bool) -> None:
    rows = evidence([("a", "a", "a", 39), ("a", "a", "b", 1), ("new", "a", "new", 20)], new=NEW)
    assert checked(rows, margin).passed is passed
