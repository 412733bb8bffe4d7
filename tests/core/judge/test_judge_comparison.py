from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from perdure.judge.comparison import compare
from perdure.judge.evidence import Evidence
from perdure.model.base import Scores

Make = Callable[..., Evidence]


def test_rows_are_sorted_by_who_knows_their_label(evidence: Make) -> None:
    found = compare(
        evidence([("a", "a", "a", 2), ("c", "a", "c", 3), ("d", "a", "c", 4), ("b", "b", "a", 5)], new=("a", "c"))
    )
    assert [int(rows.sum()) for rows in (found.known, found.new, found.both)] == [7, 3, 2]


def test_counts_of_pairs(evidence: Make) -> None:
    found = compare(evidence([("a", "a", "a", 10), ("a", "b", "a", 3), ("a", "a", "b", 2), ("b", "a", "a", 5)]))
    paired = found.paired(found.known)
    assert (paired.rows, paired.gains, paired.losses) == (20, 3, 2)
    assert (paired.champion, paired.candidate) == (12 / 20, 13 / 20)


def test_a_label_that_the_candidate_dropped_counts_as_lost(evidence: Make) -> None:
    found = compare(evidence([("a", "a", "a", 5), ("b", "b", "a", 5)], new=("a", "c")))
    assert found.paired(found.known).losses == 5
    assert len(found.log_score_gain(found.known)) == 5


def test_recall_of_each_label(evidence: Make) -> None:
    found = compare(evidence([("b", "b", "a", 4), ("a", "a", "a", 6), ("c", "a", "c", 3)], new=("a", "b", "c")))
    assert [(one.label, one.known, one.paired.rows, one.paired.candidate) for one in found.labels()] == [
        ("a", True, 6, 1.0),
        ("b", True, 4, 0.0),
        ("c", False, 3, 1.0),
    ]


def test_log_score_is_of_the_truth_and_clipped(evidence: Make) -> None:
    gain = compare(evidence([("a", "a", "a", 1)], confidence=(0.5, 0.8)))
    assert gain.log_score_gain(gain.known) == pytest.approx([math.log(0.8 / 0.5)], abs=1e-6)
    ruin = compare(evidence([("a", "a", "b", 1)], confidence=(1.0, 1.0)))
    assert ruin.log_score_gain(ruin.known) == pytest.approx([math.log(1e-6)], abs=1e-6)


def test_a_champion_gone_to_nan_knows_nothing(evidence: Make) -> None:
    sound = evidence([("a", "a", "a", 4)])
    broken = Scores(("a", "b"), np.full((4, 2), np.nan, dtype=np.float32))
    found = compare(Evidence(sound.texts, sound.truth, sound.source, broken, sound.candidate))
    assert found.paired(found.known).champion == 0
    assert np.isfinite(found.log_score_gain(found.known)).all()


def test_a_first_version_has_nothing_to_gain_over(evidence: Make) -> None:
    found = compare(evidence([("a", "a", "a", 4)], old=None))
    assert not found.known.any()
    assert found.new.all()
    with pytest.raises(ValueError, match="no champion"):
        found.log_score_gain(found.new)


@pytest.mark.parametrize("part", ["truth", "source", "champion", "candidate"])
def test_parts_of_different_length_are_refused(evidence: Make, part: str) -> None:
    whole = evidence([("a", "a", "a", 3)])
    parts = {name: getattr(whole, name) for name in ("texts", "truth", "source", "champion", "candidate")}
    value = parts[part]
    parts[part] = value[:2] if isinstance(value, tuple) else Scores(value.labels, value.probabilities[:2])
    with pytest.raises(ValueError, match=f"3 texts but 2 rows of {part}"):
        Evidence(**parts)


def test_evidence_goes_on_with_more_rows(evidence: Make) -> None:
    both = evidence([("a", "a", "b", 2)]) + evidence([("b", "a", "b", 3)], source="held_out")
    assert len(both) == 5
    assert both.source == ("fresh",) * 2 + ("held_out",) * 3
    assert both.truth == ("a", "a", "b", "b", "b")
    assert both.champion is not None
    assert both.champion.names() == ("a",) * 5
    assert both.candidate.names() == ("b",) * 5
    first = evidence([("a", "", "a", 2)], old=None) + evidence([("b", "", "b", 1)], old=None)
    assert first.champion is None
    with pytest.raises(ValueError, match="scores over 2 labels cannot go on"):
        evidence([("a", "a", "a", 1)]) + evidence([("a", "a", "a", 1)], new=("a", "b", "c"))


def test_rows_of_labels_that_come_more_often_count_more(evidence: Make) -> None:
    """Ten rows of one label, and one of another that has come as often: a tenth each, and 1."""
    plain = evidence([("a", "b", "a", 10), ("b", "b", "a", 1)])
    found = compare(replace(plain, counts={"a": 60, "b": 60}))
    paired = found.paired(found.known)
    assert paired.rows == 11
    assert paired.worth == pytest.approx(2)
    assert (paired.champion, paired.candidate) == (pytest.approx(0.5), pytest.approx(0.5))
    assert (paired.gains, paired.losses) == (pytest.approx(1), pytest.approx(1))
    assert paired.count() == "n=11, worth 2"
    unweighted = compare(plain).paired(found.known)
    assert (unweighted.worth, unweighted.gains, unweighted.losses, unweighted.count()) == (11, 10, 1, "n=11")
    assert unweighted.difference(0.05).lower > 0 > paired.difference(0.05).lower
    # Among themselves the rows of one label count alike, however many of them are asked for.
    some = np.arange(11) < 4
    assert found.paired(some).worth == pytest.approx(4)
    assert found.weights(some | (np.arange(11) == 10)) == pytest.approx([15, 15, 15, 15, 60])


def test_counts_that_the_rows_have_already_change_nothing(evidence: Make) -> None:
    plain = compare(evidence([("a", "b", "a", 7), ("b", "b", "a", 2), ("b", "b", "b", 40)], confidence=(0.7, 0.8)))
    equal = compare(replace(plain.evidence, counts={"a": 70, "b": 420}))
    for one, other in (
        (plain.paired(plain.known).difference(0.05), equal.paired(equal.known).difference(0.05)),
        (plain.mean_log_score_gain(plain.both, 0.05), equal.mean_log_score_gain(equal.both, 0.05)),
    ):
        assert (one.lower, one.estimate, one.upper) == pytest.approx((other.lower, other.estimate, other.upper))
    assert equal.paired(equal.known).count() == "n=49"
    assert equal.paired(~equal.known).worth == 0


def test_what_was_asked_of_the_finished_candidate(evidence: Make) -> None:
    both = evidence([("a", "a", "b", 2)], source="halfway") + evidence([("b", "a", "b", 3)], source="held_out")
    finished = replace(both, counts={"a": 5, "b": 1}).finished()
    assert finished.truth == ("b", "b", "b")
    assert finished.source == ("held_out",) * 3
    assert finished.champion is not None
    assert finished.champion.names() == ("a",) * 3
    assert len(finished.candidate.probabilities) == 3
    assert finished.counts == {"a": 5, "b": 1}
