"""Whether a candidate may replace the champion."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from perdure.config import JudgeSettings
from perdure.judge import checks
from perdure.judge.artifact import Artifact
from perdure.judge.check import Check
from perdure.judge.comparison import Comparison, compare
from perdure.judge.evidence import Evidence
from perdure.judge.shift import Shift

__all__ = ["Check", "Kind", "Outcome", "Verdict", "judge"]

BROKEN = ("finite", "agreement")
"""Checks that stop an erasure too."""

Kind = Literal["first", "head", "lora"]
Outcome = Literal["promote", "keep", "inconclusive"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of a candidate, and why."""

    outcome: Outcome
    """`inconclusive` keeps the champion too: the evidence was too little to say."""
    sentence: str
    """What a person reads first."""
    checks: tuple[Check, ...]

    def to_json(self) -> dict[str, Any]:
        """JSON types only."""
        return {
            "outcome": self.outcome,
            "sentence": self.sentence,
            "checks": [check.to_json() for check in self.checks],
        }


def judge(
    evidence: Evidence,
    *,
    kind: Kind,
    settings: JudgeSettings,
    artifact: Artifact,
    shift: Shift | None = None,
    candidates: int = 1,
    rolled_back: bool = False,
    erasure: bool = False,
) -> Verdict:
    """The verdict on one candidate.

    One failed check keeps the champion. Where none fails, but one that is needed cannot be answered, the verdict is
    inconclusive. Needed are: for a first version two labels; for the others enough paired rows and non-inferiority on
    the champion's labels; for new labels their recall; for LoRA a gain.

    Args:
        evidence: rows that the candidate was not trained on when it was asked.
        kind: `first` has no champion. `head` is the analytic head brought up to date: it need not be better where it
            adds labels and keeps all others (and then has the wider `margin_new_labels`, and the rule of
            `checks.known_labels_beside_new`), and must not have a worse log score on fresh rows where it adds none.
            `lora` must show a gain; where its adapter was asked about rows halfway, it must not be worse when finished.
        settings: margins and limits.
        artifact: what was measured of the files that would be served.
        shift: of predictions on traffic; None where there was none.
        candidates: how many are compared with this champion on this evidence (Bonferroni's correction).
        rolled_back: this version was taken out of service before.
        erasure: the champion's head still knows what somebody asked to be forgotten, and the candidate's does not. Then
            a head that has not earned promotion is promoted all the same, unless it is broken or worse by more than
            `margin_new_labels` beyond doubt: a person's right is not weighed against evidence that is merely missing.

    Raises:
        ValueError: `kind` does not fit the evidence, or there are fewer than one candidates.
    """
    if candidates < 1:
        raise ValueError(f"candidates must be at least 1, got {candidates}")
    if (kind == "first") != (evidence.champion is None):
        raise ValueError(
            f"kind {kind!r} does not fit evidence {'without' if evidence.champion is None else 'with'} a champion: "
            "only a first version has none"
        )
    comparison = compare(evidence)
    made = [checks.finite(comparison, artifact), checks.agreement(comparison, artifact)]
    needed: set[str] = set()
    if not made[0].passed:
        # Nothing else can be computed from what is not a number.
        return _verdict(made, needed)
    if rolled_back:
        made.insert(0, checks.not_rolled_back(rolled_back))
    if kind == "first":
        made += [checks.at_least_two_labels(comparison), checks.beats_most_frequent(comparison, settings)]
        return _verdict(made, needed, first=True)
    made += _against_champion(comparison, kind, settings, (1 - settings.confidence) / candidates, needed)
    made.append(checks.prediction_shift(shift, settings))
    if settings.judge_latency:
        made.append(checks.latency(artifact, settings))
    verdict = _verdict(made, needed)
    if kind == "head" and erasure and not rolled_back and verdict.outcome != "promote":
        return _erasing(comparison, settings, made)
    return verdict


def _against_champion(
    comparison: Comparison, kind: Kind, settings: JudgeSettings, alpha: float, needed: set[str]
) -> list[Check]:
    champion = comparison.evidence.champion
    before = frozenset(() if champion is None else champion.labels)
    after = frozenset(comparison.evidence.candidate.labels)
    adds = kind == "head" and after > before
    margin = settings.margin_new_labels if adds else settings.margin
    needed |= {"enough_rows", "known_labels"}
    forgotten = checks.known_labels_beside_new if adds else checks.known_labels
    made = [checks.enough_rows(comparison, settings), forgotten(comparison, margin, alpha)]
    if after - before:
        needed.add("new_labels")
        made.insert(0, checks.new_labels(comparison, settings))
    if kind == "lora":
        needed.add("gain")
        made.insert(0, checks.gain(comparison, settings, alpha))
        if "halfway" in comparison.evidence.source:
            needed.add("finished")
            made.append(checks.finished(comparison, settings, alpha))
    elif not adds:
        needed.add("up_to_date")
        made.append(checks.up_to_date(comparison))
    flips = checks.negative_flips(comparison, settings, alpha)
    if flips.value is not None:
        needed.add(flips.name)
    return [
        *made,
        checks.label_groups(comparison, settings, alpha),
        flips,
        checks.calibration(comparison, settings),
    ]


def _verdict(made: list[Check], needed: set[str], *, first: bool = False) -> Verdict:
    failed = [check for check in made if check.passed is False]
    unknown = [check for check in made if check.passed is None and check.name in needed]
    if failed:
        return Verdict("keep", f"Keep: {_joined(failed)}.", tuple(made))
    if unknown:
        return Verdict("inconclusive", f"Inconclusive, so the champion stays: {_joined(unknown)}.", tuple(made))
    said = {check.name: check for check in made}
    if first:
        sentence = f"Promote: first version with {_joined([said['labels'], said['beats_most_frequent']])}."
    else:
        leading = [said[name] for name in ("gain", "new_labels", "known_labels", "up_to_date") if name in said]
        sentence = f"Promote: {_joined(leading)}."
    return Verdict("promote", sentence, tuple(made))


def _erasing(comparison: Comparison, settings: JudgeSettings, made: list[Check]) -> Verdict:
    check = checks.erasure(comparison, settings.margin_new_labels, 1 - settings.confidence)
    broken = [found for found in made if found.name in BROKEN and found.passed is False]
    if broken or not check.passed:
        said = _joined([*broken, check])
        return Verdict("keep", f"Keep, though an erasure waits for it: {said}.", (check, *made))
    return Verdict("promote", f"Promote: {check.sentence}.", (check, *made))


def _joined(made: list[Check]) -> str:
    return "; ".join(check.sentence for check in made)
