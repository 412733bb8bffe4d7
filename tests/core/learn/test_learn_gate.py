from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from perdure.config import GateSettings
from perdure.learn.gate import Decision, Gated, gate
from perdure.memory import Neighbours, Row
from perdure.model.base import Scores
from perdure.records import Sample, sample_key

CLASSES = {"card": 1, "login": 1, "parcel": 5}
KNOWN = ("card", "login")


def row(label: str | None, text: str = "some text", name: str = "row-0") -> Row:
    return Row(name, text, label, None, 0.0, None, 0.0)


def scores(*answers: tuple[str, float]) -> Scores:
    rows = [[p if label == answer else 1 - p for label in KNOWN] for answer, p in answers]
    return Scores(KNOWN, np.array(rows, dtype=np.float32))


def neighbours(*votes: Sequence[str], text: str = "other") -> Neighbours:
    samples = tuple(
        tuple(
            Sample(sample_key(label, f"{text} {place}"), f"{text} {place}", label, 1.0, False, 0.0)
            for place, label in enumerate(one)
        )
        for one in votes
    )
    return Neighbours(samples, tuple(tuple(0.9 for _ in one) for one in samples))


def decide(
    one: Row,
    answer: tuple[str, float],
    votes: Sequence[str] = (),
    *,
    turn: int = 6,
    drifting: bool = False,
    classes: Mapping[str, int] = CLASSES,
    **changed: Any,
) -> Decision:
    gated = gate(
        [one],
        scores(answer),
        neighbours(votes),
        classes=classes,
        turn=turn,
        drifting=drifting,
        settings=GateSettings.model_validate(changed),
    )
    return gated.decisions[0]


# ── before there is a champion ──
@pytest.mark.parametrize(
    ("label", "action", "learned", "reason"),
    [
        ("card", "learn", "card", "first version"),
        ("rare", "ignore", None, "'rare' has too few examples to be a class"),
        (None, "ignore", None, "nobody has labelled it and there is no champion to ask"),
    ],
)
def test_a_first_version_learns_every_label_that_is_a_class(
    label: str | None, action: str, learned: str | None, reason: str
) -> None:
    gated = gate([row(label)], None, None, classes=CLASSES, turn=1, drifting=False, settings=GateSettings())
    (found,) = gated.decisions
    assert (found.action, found.label, found.reason) == (action, learned, reason)


# ── labelled rows ──
@pytest.mark.parametrize(
    ("label", "answer", "action", "reason"),
    [
        ("card", ("card", 0.96), "skip", "known already (0.96)"),
        ("card", ("card", 0.94), "learn", "right but unsure (0.94)"),
        ("card", ("login", 0.6), "learn", "surprising: the champion says 'login' (0.60)"),
        ("parcel", ("login", 0.99), "learn", "'parcel' is new to the champion"),
        ("rare", ("login", 0.99), "ignore", "'rare' has too few examples to be a class"),
    ],
)
def test_a_label_is_learned_skipped_or_waits(label: str, answer: tuple[str, float], action: str, reason: str) -> None:
    found = decide(row(label), answer)
    assert (found.action, found.reason) == (action, reason)
    assert found.label == (label if action == "learn" else None)


def test_a_label_that_model_and_neighbours_contradict_goes_into_quarantine() -> None:
    found = decide(row("card"), ("login", 0.95), ["login"] * 4 + ["parcel"])
    assert (found.action, found.label) == ("quarantine", None)
    assert found.reason == "labelled 'card', but the champion says 'login' (0.95) and so do 4 of 5 neighbours"


@pytest.mark.parametrize(
    ("answer", "votes"),
    [
        (("login", 0.89), ["login"] * 5),
        (("login", 0.95), ["login"] * 3 + ["parcel"] * 2),
        (("login", 0.95), ["login"] * 4),
        (("login", 0.95), ["login"] * 4 + ["card"]),
        (("login", 0.95), []),
    ],
    ids=["unsure model", "neighbours disagree", "too few neighbours", "a neighbour has the label", "no neighbours"],
)
def test_a_label_needs_both_against_it(answer: tuple[str, float], votes: list[str]) -> None:
    found = decide(row("card"), answer, votes)
    assert (found.action, found.label) == ("learn", "card")
    assert found.reason.startswith("surprising")


def test_novelty_is_not_noise() -> None:
    found = decide(row("parcel"), ("login", 1.0), ["login"] * 5)
    assert (found.action, found.label, found.reason) == ("learn", "parcel", "'parcel' is new to the champion")


def test_only_the_nearest_are_asked() -> None:
    found = decide(row("card"), ("login", 0.95), ["login"] * 5 + ["card"] * 2)
    assert found.action == "quarantine"


def test_a_rows_own_text_has_no_vote() -> None:
    """Its own sample, in memory already under its own label, would always save it."""
    near = neighbours(["card", "login", "login", "login", "login", "login"])
    own = Sample(sample_key("card", "some text"), "Some  TEXT", "card", 1.0, False, 0.0)
    near = Neighbours(((own, *near.samples[0][1:]),), near.similarities)
    gated = gate(
        [row("card")], scores(("login", 0.95)), near, classes=CLASSES, turn=6, drifting=False, settings=GateSettings()
    )
    assert gated.decisions[0].action == "quarantine"
    alone = Neighbours(((own,) * 6,), near.similarities)
    gated = gate(
        [row("login")], scores(("card", 0.95)), alone, classes=CLASSES, turn=6, drifting=False, settings=GateSettings()
    )
    assert gated.decisions[0].action == "learn"


def test_without_neighbours_nothing_is_quarantined() -> None:
    gated = gate(
        [row("card")], scores(("login", 1.0)), None, classes=CLASSES, turn=6, drifting=False, settings=GateSettings()
    )
    assert gated.decisions[0].action == "learn"


# ── rows that nobody has labelled ──
def test_a_pseudo_label_needs_confidence_and_neighbours() -> None:
    found = decide(row(None), ("login", 0.97), ["login"] * 4 + ["card"], pseudo_share=1.0)
    assert (found.action, found.label) == ("pseudo", "login")
    assert found.reason == "the champion (0.97) and 4 neighbours agree"


@pytest.mark.parametrize(
    ("answer", "votes", "changed", "reason"),
    [
        (("login", 0.97), ["login"] * 5, {"pseudo_labels": False}, "nobody has labelled it"),
        (("login", 0.97), ["login"] * 5, {"drifting": True}, "no pseudo-labels while the drift alarm is on"),
        (("login", 0.97), ["login"] * 5, {"turn": 2}, "'login' is too young for pseudo-labels"),
        (("login", 0.97), ["login"] * 5, {"classes": {"card": 1}}, "'login' is too young for pseudo-labels"),
        (("login", 0.94), ["login"] * 5, {}, "not sure enough for a pseudo-label (0.94)"),
        (("login", 0.97), ["login"] * 4, {}, "not sure enough for a pseudo-label (0.97)"),
        (("login", 0.97), ["login"] * 3 + ["card"] * 2, {}, "only 3 of 5 neighbours agree with 'login'"),
    ],
)
def test_a_pseudo_label_is_refused_with_its_reason(
    answer: tuple[str, float], votes: list[str], changed: dict[str, Any], reason: str
) -> None:
    found = decide(row(None), answer, votes, pseudo_share=1.0, **changed)
    assert (found.action, found.label, found.reason) == ("ignore", None, reason)


def test_a_class_is_old_enough_after_pseudo_age_turns() -> None:
    ages = {turn: decide(row(None), ("login", 0.97), ["login"] * 5, turn=turn, pseudo_share=1.0) for turn in (2, 3, 4)}
    assert [ages[turn].action for turn in (2, 3, 4)] == ["ignore", "pseudo", "pseudo"]


@pytest.mark.parametrize(
    ("share", "learned", "kept"), [(0.2, 8, 2), (0.2, 3, 0), (0.5, 3, 3), (0.6, 2, 3), (0.0, 8, 0), (1.0, 0, 10)]
)
def test_pseudo_labels_are_a_share_of_what_is_learned_from(share: float, learned: int, kept: int) -> None:
    rows = [row(None, name=f"a-{index:02d}") for index in range(10)]
    rows += [row("card", name=f"b-{index:02d}") for index in range(learned)]
    answers = [("login", 0.97)] * 10 + [("card", 0.6)] * learned
    gated = gate(
        rows,
        scores(*answers),
        neighbours(*[["login"] * 5] * len(rows)),
        classes=CLASSES,
        turn=6,
        drifting=False,
        settings=GateSettings(pseudo_share=share),
    )
    assert [decision.row.id for decision in gated.of("pseudo")] == [f"a-{index:02d}" for index in range(kept)]
    late = [decision for decision in gated.decisions[:10] if decision.action != "pseudo"]
    assert {(decision.action, decision.label) for decision in late} <= {("ignore", None)}
    assert {decision.reason for decision in late} <= {"enough pseudo-labels in this turn"}
    assert gated.counts() == {"learn": learned, "skip": 0, "quarantine": 0, "pseudo": kept, "ignore": 10 - kept}


# ── without it ──
@pytest.mark.parametrize(
    ("label", "answer", "votes", "gated"),
    [
        ("card", ("card", 0.96), [], "skip"),
        ("card", ("login", 0.95), ["login"] * 5, "quarantine"),
        ("parcel", ("login", 0.99), [], "learn"),
        ("rare", ("login", 0.99), [], "ignore"),
        (None, ("login", 0.97), ["login"] * 5, "pseudo"),
    ],
)
def test_without_the_gate_every_label_of_a_class_is_learned_and_nothing_else(
    label: str | None, answer: tuple[str, float], votes: list[str], gated: str
) -> None:
    assert decide(row(label), answer, votes, pseudo_share=1.0).action == gated
    found = decide(row(label), answer, votes, pseudo_share=1.0, enabled=False)
    learned = label if label in CLASSES else None
    assert (found.action, found.label) == ("learn" if learned else "ignore", learned)
    if label is None:
        assert found.reason == "nobody has labelled it, and the gate is off"


def test_a_first_version_needs_no_gate() -> None:
    rows = [row("card"), row("rare"), row(None)]
    settings = GateSettings(enabled=False)
    found = gate(rows, None, None, classes=CLASSES, turn=1, drifting=False, settings=settings)
    assert [one.action for one in found.decisions] == ["learn", "ignore", "ignore"]


# ── all of them ──
def test_decisions_come_in_the_order_of_the_rows() -> None:
    rows = [row("card", name="b"), row("parcel", name="a"), row(None, name="c")]
    gated = gate(
        rows,
        scores(("card", 0.99), ("card", 0.5), ("card", 0.5)),
        None,
        classes=CLASSES,
        turn=6,
        drifting=False,
        settings=GateSettings(),
    )
    assert [(one.row.id, one.action) for one in gated.decisions] == [("b", "skip"), ("a", "learn"), ("c", "ignore")]
    assert [one.row.id for one in gated.of("ignore", "skip")] == ["b", "c"]


def test_no_rows_need_no_decision() -> None:
    empty = Scores(KNOWN, np.zeros((0, 2), dtype=np.float32))
    assert gate([], empty, None, classes=CLASSES, turn=1, drifting=False, settings=GateSettings()) == Gated(())
