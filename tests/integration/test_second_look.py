"""A challenger on which the judge could not decide is asked again about what has come since."""

from __future__ import annotations

import numpy as np
import pytest

from perdure.learn.candidate import Candidate
from perdure.learn.waiting import Waiting
from perdure.model.classifier import AnalyticClassifier
from perdure.turn import TurnResult

BLURRED = {
    "model__features": 64,
    "model__bandwidth": 20.0,
    "model__export": "none",
    "memory__holdout_share": 0.2,
    "lora__shares": [0.9],
    "lora__epochs": 6,
    "lora__learning_rate": 1e-2,
    "gate__known": 1.0,
    "judge__confidence": 0.8,
    "judge__margin": 0.2,
    "judge__negative_flips": 1.0,
    "judge__calibration": 1.0,
    "judge__prediction_shift": 1.0,
    "judge__drift_min_rows": 10_000,
    # More than are held out, fewer than come.
    "judge__min_rows": 30,
    # More than half of what comes: all is trained on at once, and nothing asked about halfway.
    "lora__min_rows": 50,
}
"""So that the head is bad, the adapter is better, and only what comes afterwards can prove it."""


def fates(result: TurnResult) -> dict[str, tuple[str, str]]:
    return {one.kind: (one.version, one.outcome) for one in result.candidates}


@pytest.fixture
def undecided(desk):
    """A desk whose challenger waits."""
    desk.teach("refund", "parcel", "login", count=30)
    assert fates(desk.turn(**BLURRED))["lora"] == ("v000001-lora", "inconclusive")
    return desk


def test_none_has_to_wait_where_half_of_its_rows_can_tell(undecided):
    undecided.teach("refund", "parcel", "login", name="more", at=100.0, count=30, seed=1)
    found = fates(undecided.turn(**{**BLURRED, "lora__min_rows": 16}))
    assert found["challenger"] == ("v000002-challenger", "promote")
    card = undecided.registry().card("v000002-lora")
    (finished,) = (check for check in card.verdict["checks"] if check["name"] == "finished")
    assert finished["rows"] > 0
    assert card.metrics["evidence_rows"] > 1.5 * finished["rows"]
    page = undecided.registry().fetch("v000002-lora", undecided.folder / "elsewhere") / "report.html"
    assert "asked halfway, before it learned from them" in page.read_text(encoding="utf-8")


def test_it_is_promoted_by_rows_that_came_since_all_of_them(undecided):
    undecided.teach("refund", "parcel", "login", name="more", at=100.0, count=30, seed=1)
    result = undecided.turn(**BLURRED)
    found = fates(result)
    assert found["challenger"] == ("v000002-challenger", "promote")
    first, second = undecided.registry().promotions()[:2]
    assert (first.version, second.version) == ("v000001-head", "v000002-challenger")
    assert second.reason == result.candidates[0].sentence
    assert "n=" in second.reason
    # What comes next is made of it, and compared with it.
    registry = undecided.registry()
    card = registry.card("v000002-challenger")
    assert (card.kind, card.parent, card.metrics["looks"]) == ("lora", "v000001-head", 2.0)
    assert "ewc.safetensors" in card.files
    assert card.files["adapter.safetensors"].sha256 == registry.card("v000001-lora").files["adapter.safetensors"].sha256
    assert registry.card("v000002-head").parent == "v000002-challenger"
    assert "adapter.safetensors" in registry.card("v000002-head").files
    assert registry.card("v000002-lora").notes == ()
    assert registry.card("v000002-lora").metrics["looks"] == 1.0
    page = registry.fetch("v000002-challenger", undecided.folder / "elsewhere") / "report.html"
    assert "asked about what has come since" in page.read_text(encoding="utf-8")
    page = registry.fetch("v000002-head", undecided.folder / "elsewhere") / "report.html"
    assert "on champion v000002-challenger" in page.read_text(encoding="utf-8")


def test_one_that_still_is_undecided_learns_and_is_asked_again(undecided):
    strict = {**BLURRED, "judge__confidence": 1 - 1e-12, "judge__margin": 0.02}
    undecided.teach("refund", "parcel", "login", name="more", at=100.0, count=30, seed=1)
    found = fates(undecided.turn(**strict))
    assert found["challenger"] == ("v000002-challenger", "inconclusive")
    card = undecided.registry().card("v000002-lora")
    assert card.notes == ("It was to go on from v000001-lora, whose verdict was inconclusive.",)
    assert card.metrics["looks"] == 2.0
    undecided.teach("refund", "parcel", "login", name="third", at=200.0, count=30, seed=2)
    assert fates(undecided.turn(**BLURRED))["challenger"] == ("v000003-challenger", "promote")
    assert "the adapter of v000002-lora" in undecided.registry().card("v000003-challenger").notes[0]


@pytest.mark.parametrize("came", [("card",), ()])
def test_without_new_rows_of_labels_that_it_knows_it_is_not_asked(undecided, came):
    undecided.teach(*came, "refund", name="more", at=100.0, count=4, seed=1)
    assert "challenger" not in fates(undecided.turn(**BLURRED))


def test_rows_that_came_before_are_no_evidence(undecided, monkeypatch):
    asked: list[Candidate] = []
    make = Waiting.candidate

    def kept(self, *given):
        asked.append(make(self, *given))
        return asked[-1]

    monkeypatch.setattr(Waiting, "candidate", kept)
    undecided.teach("refund", "parcel", "login", name="again", at=100.0, count=30)
    undecided.teach("refund", "parcel", name="more", at=200.0, count=20, seed=1)
    undecided.turn(**BLURRED)
    (found,) = asked
    assert 30 <= found.evidence.source.count("fresh") <= 40
    assert "held_out" in found.evidence.source
    assert np.isfinite(found.evidence.candidate.probabilities).all()


def turned(sentences):
    """Rows of a world in which every label means another."""
    names = {"refund": "parcel", "parcel": "login", "login": "refund"}
    return [(text, names[label]) for label in names for text in sentences(label, 30, seed=1)]


def test_the_champion_may_doubt_itself_as_much(undecided, sentences, monkeypatch):
    asked: list[tuple[AnalyticClassifier, Candidate]] = []
    make = Waiting.candidate

    def kept(self, champion, *given):
        asked.append((champion, make(self, champion, *given)))
        return asked[-1][1]

    monkeypatch.setattr(Waiting, "candidate", kept)
    undecided.send(turned(sentences), name="turned", at=100.0)
    undecided.turn(**{**BLURRED, "gate__enabled": False})
    ((champion, found),) = asked
    evidence = found.evidence
    fresh = [row for row, source in enumerate(evidence.source) if source == "fresh"]
    truth = [evidence.champion.labels.index(evidence.truth[row]) for row in fresh]
    said = evidence.champion.probabilities[fresh, truth]
    served = champion.scores([evidence.texts[row] for row in fresh]).probabilities[range(len(fresh)), truth]
    assert np.log(said).mean() > np.log(served).mean() + 0.01


def test_one_that_fails_a_check_is_dropped(undecided, sentences):
    undecided.send(turned(sentences), name="turned", at=100.0)
    result = undecided.turn(**{**BLURRED, "gate__enabled": False, "judge__negative_flips": 0.0})
    assert fates(result)["challenger"][1] == "keep"
    assert undecided.registry().card("v000002-lora").notes == ()


def test_what_comes_in_small_turns_is_asked_about_together(undecided):
    """None of the turns brings enough to learn from, or to ask about."""
    few = {**BLURRED, "lora__min_rows": 60}
    for turn in range(2):
        at = 100.0 + 10 * turn
        undecided.teach("refund", "parcel", "login", name=f"few {turn}", at=at, count=5, seed=1 + turn)
        found = fates(undecided.turn(**few))
        assert ("challenger" in found) == (turn == 1)
        assert "lora" not in found
    assert found["challenger"][0] == "v000003-challenger"
    card = undecided.registry().card("v000003-challenger")
    assert card.metrics["since"] == 30.0


def test_it_is_asked_again_when_as_many_have_come_once_more(undecided):
    strict = {**BLURRED, "judge__confidence": 1 - 1e-12, "judge__margin": 0.02, "lora__min_rows": 1000}
    asked = []
    for turn in range(4):
        at = 100.0 + 10 * turn
        undecided.teach("refund", "parcel", "login", name=f"some {turn}", at=at, count=10, seed=1 + turn)
        asked.append("challenger" in fates(undecided.turn(**strict)))
    assert asked == [True, True, False, True]
    assert undecided.registry().card("v000005-challenger").metrics["since"] == 120.0


def test_it_is_kept_while_it_waits(undecided):
    few = {**BLURRED, "registry__retain": 1, "lora__min_rows": 1000}
    for turn in range(3):
        undecided.teach("refund", "parcel", "login", name=f"few {turn}", at=100.0 + 10 * turn, count=3, seed=1 + turn)
        undecided.turn(**few)
    assert "v000001-lora" in undecided.registry().versions()


def test_all_looks_at_one_challenger_spend_together_what_one_may(undecided):
    """A fifth for three candidates a turn; of that 1 / (1·2) for the first look, and 1 / (2·3) for the next."""
    undecided.teach("refund", "parcel", "login", name="more", at=100.0, count=30, seed=1)
    undecided.turn(**{**BLURRED, "judge__margin": 1e-6})
    for version, confidence in (
        ("v000001-lora", "96.7 %"),
        ("v000002-challenger", "98.9 %"),
        ("v000002-head", "93.3 %"),
    ):
        checks = undecided.registry().card(version).verdict["checks"]
        (known,) = [check["sentence"] for check in checks if check["name"] == "known_labels"]
        assert f"({confidence}, n=" in known
