from __future__ import annotations

import numpy as np
import pytest

from perdure.config import JudgeSettings
from perdure.judge.evidence import Evidence
from perdure.judge.threshold import BELOW, SHARES, threshold, threshold_of
from perdure.model.base import Scores


def test_of_answers_that_are_all_right_all_are_relied_on():
    confidence = np.linspace(0.2, 1.0, 400)
    found = threshold(confidence, np.ones(400, dtype=bool), precision=0.95, confident=0.95)
    assert (found.confidence, found.coverage) == (0.2, 1.0)
    assert found.risk == pytest.approx(1 - (0.05 / SHARES) ** (1 / 400))


def test_the_smallest_confidence_that_is_safe_is_taken():
    # Right above 0.5, wrong below: at 60 % of the rows a sixth of the answers is wrong.
    confidence = np.linspace(0.0, 1.0, 2001)[1:]
    found = threshold(confidence, confidence > 0.5, precision=0.95, confident=0.95)
    assert found.coverage == pytest.approx(0.5)
    assert found.confidence == pytest.approx(0.5, abs=0.001)
    looser = threshold(confidence, confidence > 0.5, precision=0.8, confident=0.95)
    assert looser.coverage == pytest.approx(0.6)


@pytest.mark.parametrize(
    ("confidence", "right"),
    [
        (np.ones(0), np.ones(0, dtype=bool)),
        (np.full(50, 0.9), np.ones(50, dtype=bool)),
        (np.full(1000, 0.9), np.arange(1000) % 10 > 0),
    ],
    ids=["none", "too few", "too often wrong"],
)
def test_rows_that_prove_nothing_give_no_threshold(confidence, right):
    assert threshold(confidence, right, precision=0.95, confident=0.95) is None


def test_ties_stand_on_one_side():
    confidence = np.concatenate([np.full(300, 0.9), np.full(300, 0.4)])
    right = np.concatenate([np.ones(300, dtype=bool), np.zeros(300, dtype=bool)])
    found = threshold(confidence, right, precision=0.95, confident=0.95)
    assert (found.confidence, found.coverage) == (0.9, 0.5)


def test_the_promise_is_kept_in_nearly_all_worlds():
    """Confidence x, of density 8·x⁷, is right with probability x: the risk above θ is known."""
    rng = np.random.default_rng(0)
    worlds, broken, said = 120, 0, 0
    for _ in range(worlds):
        confidence = rng.uniform(size=800) ** (1 / 8)
        found = threshold(confidence, rng.uniform(size=800) < confidence, precision=0.92, confident=0.9)
        if found is not None:
            least = found.confidence
            said += 1
            broken += 1 - 8 / 9 * (1 - least**9) / (1 - least**8) > 0.08
    assert broken <= 0.1 * worlds
    # And not by never saying anything.
    assert said > 0.8 * worlds


def evidence(rows, wrong=0):
    labels = ("a", "b")
    probabilities = np.tile(np.asarray([[0.75, 0.25]], dtype=np.float32), (rows, 1))
    truth = tuple("b" if row < wrong else "a" for row in range(rows))
    texts = tuple(f"text {row}" for row in range(rows))
    return Evidence(texts, truth, ("held_out",) * rows, None, Scores(labels, probabilities))


def test_evidence_gives_the_candidates_threshold_for_its_card():
    settings = JudgeSettings()
    found = threshold_of(evidence(400), settings)
    assert found.metrics() == {BELOW: 0.75, "abstain_coverage": 1.0, "abstain_risk": found.risk}
    assert found.risk < 1 - settings.abstain_precision
    assert threshold_of(evidence(400, wrong=40), settings) is None
    assert threshold_of(evidence(400, wrong=40), settings.model_copy(update={"abstain_precision": 0.8})) is not None
    assert threshold_of(evidence(400), settings.model_copy(update={"confidence": 1 - 1e-12})) is None
    assert threshold_of(evidence(0), settings) is None


def test_a_label_that_the_candidate_does_not_know_is_an_error():
    rows = evidence(400)
    unknown = Evidence(rows.texts, ("c",) * 40 + rows.truth[40:], rows.source, None, rows.candidate)
    assert threshold_of(unknown, JudgeSettings()) is None


def test_what_was_asked_halfway_promises_nothing_of_what_would_be_served():
    halfway = evidence(400, wrong=400)
    halfway = Evidence(halfway.texts, halfway.truth, ("halfway",) * 400, None, halfway.candidate)
    assert threshold_of(halfway + evidence(400), JudgeSettings()) == threshold_of(evidence(400), JudgeSettings())
    assert threshold_of(halfway, JudgeSettings()) is None
