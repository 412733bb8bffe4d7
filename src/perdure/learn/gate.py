"""The confidence gate: what a LoRA update should learn from, and what it should not.

It stands before the adapter only. The analytic head takes every label.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from perdure.config import GateSettings
from perdure.memory import Neighbours, Row
from perdure.model.base import Scores
from perdure.records import normalise

Action = Literal["learn", "skip", "quarantine", "pseudo", "ignore"]


@dataclass(frozen=True, slots=True)
class Decision:
    """What becomes of one row."""

    row: Row
    action: Action
    label: str | None
    """What it is learned as; a pseudo-label where `action` is "pseudo"."""
    reason: str


@dataclass(frozen=True, slots=True)
class Gated:
    """The decisions on all rows of a turn, in the order of the rows."""

    decisions: tuple[Decision, ...]

    def of(self, *actions: Action) -> tuple[Decision, ...]:
        """The decisions with one of `actions`."""
        return tuple(decision for decision in self.decisions if decision.action in actions)

    def counts(self) -> dict[str, int]:
        """How many rows met each fate."""
        found = Counter(decision.action for decision in self.decisions)
        actions: tuple[Action, ...] = ("learn", "skip", "quarantine", "pseudo", "ignore")
        return {action: found.get(action, 0) for action in actions}


def gate(
    rows: Sequence[Row],
    scores: Scores | None,
    neighbours: Neighbours | None,
    *,
    classes: Mapping[str, int],
    turn: int,
    drifting: bool,
    settings: GateSettings,
) -> Gated:
    """Decides for n rows.

    Args:
        rows: labelled and unlabelled rows of this turn.
        scores: the champion's probabilities for them; None before there is a champion.
        neighbours: for each row its nearest samples among what earlier turns have embedded.
        classes: labels that are classes, with the turn in which they became one.
        turn: the number of this turn.
        drifting: a drift alarm is on: no pseudo-labels.
        settings: thresholds, and whether there is a choice at all.
    """
    answers = scores.predictions() if scores is not None and len(rows) else ()
    known = frozenset(scores.labels) if scores is not None else frozenset()
    decisions: list[Decision] = []
    for index, row in enumerate(rows):
        if not settings.enabled:
            decisions.append(_ungated(row, classes))
            continue
        if scores is None:
            decisions.append(_before_the_first(row, classes))
            continue
        answer = answers[index]
        near = _votes(row, neighbours, index, settings.neighbours)
        if row.label is None:
            decisions.append(
                _unlabelled(
                    row, answer.label, answer.confidence, near, classes, turn, drifting=drifting, settings=settings
                )
            )
        else:
            decisions.append(_labelled(row, row.label, answer.label, answer.confidence, near, known, classes, settings))
    return Gated(_cap_pseudo(decisions, settings.pseudo_share))


def _ungated(row: Row, classes: Mapping[str, int]) -> Decision:
    if row.label is None:
        return Decision(row, "ignore", None, "nobody has labelled it, and the gate is off")
    if row.label not in classes:
        return Decision(row, "ignore", None, f"{row.label!r} has too few examples to be a class")
    return Decision(row, "learn", row.label, "the gate is off")


def _before_the_first(row: Row, classes: Mapping[str, int]) -> Decision:
    if row.label is None:
        return Decision(row, "ignore", None, "nobody has labelled it and there is no champion to ask")
    if row.label not in classes:
        return Decision(row, "ignore", None, f"{row.label!r} has too few examples to be a class")
    return Decision(row, "learn", row.label, "first version")


def _labelled(
    row: Row,
    label: str,
    answer: str,
    confidence: float,
    near: Sequence[str],
    known: frozenset[str],
    classes: Mapping[str, int],
    settings: GateSettings,
) -> Decision:
    if label not in classes:
        return Decision(row, "ignore", None, f"{label!r} has too few examples to be a class")
    if label not in known:
        return Decision(row, "learn", label, f"{label!r} is new to the champion")
    if answer == label:
        if confidence >= settings.known:
            return Decision(row, "skip", None, f"known already ({confidence:.2f})")
        return Decision(row, "learn", label, f"right but unsure ({confidence:.2f})")
    agreeing = sum(vote == answer for vote in near)
    contradicted = len(near) >= settings.neighbours and agreeing >= settings.agreement * len(near)
    if confidence >= settings.confident and contradicted and label not in near:
        return Decision(
            row,
            "quarantine",
            None,
            f"labelled {label!r}, but the champion says {answer!r} ({confidence:.2f}) and so do {agreeing} of "
            f"{len(near)} neighbours",
        )
    return Decision(row, "learn", label, f"surprising: the champion says {answer!r} ({confidence:.2f})")


def _unlabelled(
    row: Row,
    answer: str,
    confidence: float,
    near: Sequence[str],
    classes: Mapping[str, int],
    turn: int,
    *,
    drifting: bool,
    settings: GateSettings,
) -> Decision:
    if not settings.pseudo_labels:
        return Decision(row, "ignore", None, "nobody has labelled it")
    if drifting:
        return Decision(row, "ignore", None, "no pseudo-labels while the drift alarm is on")
    if turn - classes.get(answer, turn) < settings.pseudo_age:
        return Decision(row, "ignore", None, f"{answer!r} is too young for pseudo-labels")
    agreeing = sum(vote == answer for vote in near)
    if confidence < settings.pseudo_confidence or len(near) < settings.neighbours:
        return Decision(row, "ignore", None, f"not sure enough for a pseudo-label ({confidence:.2f})")
    if agreeing < settings.agreement * len(near):
        return Decision(row, "ignore", None, f"only {agreeing} of {len(near)} neighbours agree with {answer!r}")
    return Decision(row, "pseudo", answer, f"the champion ({confidence:.2f}) and {agreeing} neighbours agree")


def _votes(row: Row, neighbours: Neighbours | None, index: int, count: int) -> tuple[str, ...]:
    """Labels of the nearest samples, without the row's own text: it may be in memory already, under its own label."""
    if neighbours is None:
        return ()
    mine = normalise(row.text)
    others = [sample.label for sample in neighbours.samples[index] if normalise(sample.text) != mine]
    return tuple(others[:count])


def _cap_pseudo(decisions: Sequence[Decision], share: float) -> tuple[Decision, ...]:
    """Keeps pseudo-labels to `share` of all that is learned from; the latest, by id, leave first."""
    learned = sum(decision.action == "learn" for decision in decisions)
    # p ≤ share·(p + learned); a share such as 0.6 has no exact binary fraction, and must not lose a whole row to that.
    room = math.floor(share / (1 - share) * learned + 1e-9) if share < 1 else len(decisions)
    result = []
    for decision in decisions:
        if decision.action == "pseudo":
            if room <= 0:
                result.append(Decision(decision.row, "ignore", None, "enough pseudo-labels in this turn"))
                continue
            room -= 1
        result.append(decision)
    return tuple(result)
