"""What a candidate must show; `verdict` says which of it counts for which kind."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import numpy as np

from perdure.config import JudgeSettings
from perdure.judge.artifact import Artifact
from perdure.judge.calibration import brier_score, expected_error
from perdure.judge.check import Check, counted, percent, points
from perdure.judge.comparison import LEAST_PROBABILITY, Comparison, compare, confidences
from perdure.judge.interval import clopper_pearson, rows_needed
from perdure.judge.shift import Shift
from perdure.model.base import Scores

AGREEMENT = 0.99
"""Least share of rows on which the artifact must answer like the candidate in memory."""

NEW_LABEL_ROWS = 5
"""Fewer rows of new labels than this say nothing about their recall."""


def finite(comparison: Comparison, artifact: Artifact) -> Check:
    """Weights and answers are numbers."""
    answers = bool(np.isfinite(comparison.evidence.candidate.probabilities).all())
    passed = artifact.finite and answers
    broken = "answers" if artifact.finite else "weights"
    return Check(
        name="finite",
        passed=passed,
        value=None,
        limit=None,
        rows=len(comparison.evidence),
        sentence="all weights and answers are finite" if passed else f"some {broken} are not finite numbers",
    )


def agreement(comparison: Comparison, artifact: Artifact) -> Check:
    """What would be served answers like what was trained."""
    return Check(
        name="agreement",
        passed=artifact.agreement >= AGREEMENT,
        value=artifact.agreement,
        limit=AGREEMENT,
        rows=len(comparison.evidence),
        sentence=f"the saved artifact agrees with the candidate on {percent(artifact.agreement)} of rows "
        f"(at least {percent(AGREEMENT)})",
    )


def latency(artifact: Artifact, settings: JudgeSettings) -> Check:
    """What would be served is not much slower."""
    ours, theirs = artifact.seconds_per_text, artifact.champion_seconds_per_text
    if ours is None or not theirs:
        return Check("latency", None, None, settings.latency_ratio, 0, "latency was not measured")
    return Check(
        name="latency",
        passed=ours <= settings.latency_ratio * theirs,
        value=ours / theirs,
        limit=settings.latency_ratio,
        rows=0,
        sentence=f"a text takes {1000 * ours:.2f} ms, {ours / theirs:.2f} times the champion's "
        f"(at most {settings.latency_ratio:g})",
    )


def enough_rows(comparison: Comparison, settings: JudgeSettings) -> Check:
    """There is something to compare on."""
    rows = int(comparison.known.sum())
    enough = rows >= settings.min_rows
    said = counted(rows, "paired row") + " of labels that the champion knows"
    return Check(
        name="enough_rows",
        passed=True if enough else None,
        value=float(rows),
        limit=float(settings.min_rows),
        rows=rows,
        sentence=said if enough else f"only {said}, fewer than the {settings.min_rows} needed",
    )


def known_labels(comparison: Comparison, margin: float, alpha: float) -> Check:
    """Nothing is forgotten: paired non-inferiority on the labels that the champion knows.

    Passes where the lower bound of candidate − champion is above −margin; fails where the candidate is worse beyond
    doubt; in between, the rows are too few to say. `value` is the lower bound.
    """
    paired = comparison.paired(comparison.known)
    if not paired.rows:
        return Check("known_labels", None, None, -margin, 0, "no row of a label that the champion knows")
    bound = paired.difference(alpha)
    champion = comparison.evidence.champion
    labels = 0 if champion is None else len(champion.labels)
    sentence = (
        f"on the {counted(labels, 'known label')} {percent(paired.champion)} → {percent(paired.candidate)}, "
        f"at worst {points(bound.lower)} ({percent(1 - alpha)}, {paired.count()})"
    )
    if bound.lower > -margin:
        passed: bool | None = True
    elif bound.upper < 0:
        passed = False
        sentence += f": worse, where {points(-margin)} is the limit"
    else:
        passed = None
        # Without a single disagreement the formula needs no rows at all; one is assumed.
        disagreement = max(paired.gains + paired.losses, 1) / paired.worth
        needed = rows_needed(disagreement, margin, alpha) * paired.rows / paired.worth
        needed = max(math.ceil(needed), paired.rows + 1)
        sentence += f": {points(-margin)} cannot be ruled out, an equal candidate needs about {needed:,} rows to do so"
    return Check("known_labels", passed, bound.lower, -margin, paired.rows, sentence)


def known_labels_beside_new(comparison: Comparison, margin: float, alpha: float) -> Check:
    """Old labels pay little for new ones, where a head only gains labels.

    Passes as `known_labels` does. Else it also passes if the loss that was seen stays within the margin and the
    candidate is right more often on all rows together, beyond doubt: a row that used to get the nearest old label now
    has a right one, which costs the old ones a little, and to wait for proof that it does not would leave every row of
    a new label wrong. Fails where the loss that was seen is above the margin.
    """
    strict = known_labels(comparison, margin, alpha)
    if strict.passed or not strict.rows:
        return strict
    known, everything = comparison.paired(comparison.known), comparison.paired(comparison.known | comparison.new)
    seen = (known.gains - known.losses) / known.worth
    overall = everything.difference(alpha)
    sentence = strict.sentence.partition(": ")[0]
    if seen < -margin:
        passed: bool | None = False
        sentence += f": lost {points(seen)}, where {points(-margin)} is the limit"
    else:
        passed = True if overall.lower > 0 else None
        sentence += (
            f"; on all labels together {points(overall.estimate)} (at least {points(overall.lower)}, "
            f"{everything.count()})"
        )
    return replace(strict, passed=passed, sentence=sentence)


def erasure(comparison: Comparison, margin: float, alpha: float) -> Check:
    """A head that somebody's data has left is not worse by more than the margin, beyond doubt.

    `value` is the upper bound of candidate − champion on the labels that the champion knows.
    """
    said = "it no longer knows what was asked to be forgotten"
    paired = comparison.paired(comparison.known)
    if not paired.rows:
        return Check("erasure", True, None, -margin, 0, f"{said}; there is no row to compare on")
    bound = paired.difference(alpha)
    passed = bound.upper >= -margin
    sentence = f"{said}: {percent(paired.champion)} → {percent(paired.candidate)} ({paired.count()})"
    if not passed:
        sentence += f", a loss of more than {percent(margin)} beyond doubt; promote it by hand if it is to go"
    return Check("erasure", passed, bound.upper, -margin, paired.rows, sentence)


def new_labels(comparison: Comparison, settings: JudgeSettings) -> Check:
    """Labels that the champion does not have are recognised; all of them pooled."""
    champion = comparison.evidence.champion
    added = set(comparison.evidence.candidate.labels) - set(() if champion is None else champion.labels)
    paired = comparison.paired(comparison.new)
    floor = settings.new_label_recall
    said = counted(len(added), "new label")
    if paired.rows < NEW_LABEL_ROWS:
        return Check(
            name="new_labels",
            passed=None,
            value=paired.candidate if paired.rows else None,
            limit=floor,
            rows=paired.rows,
            sentence=f"{said}, but only {counted(paired.rows, 'row')} to try them on",
        )
    passed = paired.candidate >= floor
    return Check(
        name="new_labels",
        passed=passed,
        value=paired.candidate,
        limit=floor,
        rows=paired.rows,
        sentence=f"{said} at {percent(paired.candidate)} recall (n={paired.rows:,})"
        + ("" if passed else f", less than the {percent(floor)} needed"),
    )


def gain(comparison: Comparison, settings: JudgeSettings, alpha: float) -> Check:
    """Better beyond doubt, by log score or by accuracy, on rows of labels that both know.

    Each of the two has half of the error probability, as either is enough. Fails where the log score is worse beyond
    doubt by what a loss of accuracy that is not allowed would take from it, ln(1 − margin): what is a little less sure
    may yet learn to be better. In between no gain is proved. `value` is the lower bound of the log score's gain, in
    nats a row.
    """
    paired = comparison.paired(comparison.both)
    if paired.worth < settings.min_rows:
        return Check("gain", None, None, 0.0, paired.rows, f"only {counted(paired.rows, 'row')} to show a gain on")
    score = comparison.mean_log_score_gain(comparison.both, alpha / 2)
    accuracy = paired.difference(alpha / 2)
    passed: bool | None = None
    if score.lower > 0 or accuracy.lower > 0:
        passed = True
    elif score.upper < math.log(max(1 - settings.margin, LEAST_PROBABILITY)):
        passed = False
    sentence = (
        f"log score {score.estimate:+.3f} a row (at least {score.lower:+.3f}), "
        f"accuracy {points(accuracy.estimate)} (at least {points(accuracy.lower)}; {paired.count()})"
    )
    return Check(
        name="gain",
        passed=passed,
        value=score.lower,
        limit=0.0,
        rows=paired.rows,
        sentence={True: "", False: "worse than the champion: ", None: "no gain proved: "}[passed] + sentence,
    )


def finished(comparison: Comparison, settings: JudgeSettings, alpha: float) -> Check:
    """What would be served shows no loss, where its adapter was asked about other rows halfway.

    Fails where it is worse than the champion beyond doubt, by accuracy, or by log score as in `gain`; each of the two
    has half of the error probability. `value` is the upper bound of candidate − champion.
    """
    served = compare(comparison.evidence.finished())
    halfway = int(comparison.known.sum() - served.known.sum())
    paired = served.paired(served.both)
    said = f"{counted(halfway, 'row')} asked halfway, before it learned from them"
    if paired.worth < settings.min_rows:
        few = counted(paired.rows, "row")
        return Check("finished", None, None, 0.0, paired.rows, f"{said}; only {few} to ask it about as it is now")
    accuracy, score = paired.difference(alpha / 2), served.mean_log_score_gain(served.both, alpha / 2)
    passed = accuracy.upper >= 0 and score.upper >= math.log(max(1 - settings.margin, LEAST_PROBABILITY))
    sentence = (
        f"{said}; as it is now {percent(paired.champion)} → {percent(paired.candidate)}, log score "
        f"{score.estimate:+.3f} a row ({paired.count()})"
    )
    sentence = sentence if passed else f"worse when finished: {sentence}"
    return Check("finished", passed, accuracy.upper, 0.0, paired.rows, sentence)


def up_to_date(comparison: Comparison) -> Check:
    """Not worse by log score on fresh rows; on all rows where none is fresh. `value` is in nats a row."""
    fresh = np.array([source == "fresh" for source in comparison.evidence.source], dtype=np.bool_)
    rows = comparison.both & fresh
    said = "fresh rows"
    if not rows.any():
        rows, said = comparison.both, "all rows, none being fresh"
    gains = comparison.log_score_gain(rows)
    if not gains.size:
        return Check("up_to_date", None, None, 0.0, 0, "no row of a label that both know")
    value = float(gains.mean())
    return Check(
        name="up_to_date",
        passed=value >= 0,
        value=value,
        limit=0.0,
        rows=int(gains.size),
        sentence=f"log score {value:+.3f} a row on {said} (n={gains.size:,}, at least 0)",
    )


def label_groups(comparison: Comparison, settings: JudgeSettings, alpha: float) -> Check:
    """No label that has rows enough loses more recall than allowed, and beyond what chance would take.

    The bound is corrected for the number of labels looked at. `value` is the largest loss.
    """
    groups = [
        found for found in comparison.labels() if found.known and found.paired.rows >= max(settings.group_rows, 1)
    ]
    limit = settings.group_margin
    if not groups:
        return Check(
            "label_groups",
            None,
            None,
            limit,
            0,
            f"no label has the {settings.group_rows} rows needed to look at it alone",
        )
    losses = {group.label: group.paired.champion - group.paired.candidate for group in groups}
    worst = max(losses, key=lambda label: losses[label])
    failed = [
        group.label
        for group in groups
        if losses[group.label] > limit and group.paired.difference(alpha / len(groups)).upper < 0
    ]
    rows = sum(group.paired.rows for group in groups)
    if failed:
        named = ", ".join(f"'{label}'" for label in failed[:3]) + (" and others" if len(failed) > 3 else "")
        sentence = f"{counted(len(failed), 'label')} lost more than {percent(limit)} recall: {named}"
    elif losses[worst] > limit:
        sentence = f"'{worst}' lost {percent(losses[worst])} recall, which may be chance"
    elif losses[worst] > 0:
        sentence = (
            f"the most that any of {counted(len(groups), 'label')} lost is {percent(losses[worst])} recall ('{worst}')"
        )
    else:
        sentence = f"none of {counted(len(groups), 'label')} lost recall"
    return Check("label_groups", not failed, losses[worst], limit, rows, sentence)


def negative_flips(comparison: Comparison, settings: JudgeSettings, alpha: float) -> Check:
    """Few rows that were right become wrong.

    More of them than allowed are held against a candidate where chance would not bring so many; else nothing is proved
    yet (`passed` is None, though `value` is known), and more rows have to tell.
    """
    paired = comparison.paired(comparison.known)
    limit = settings.negative_flips
    if paired.worth < settings.min_rows:
        return Check("negative_flips", None, None, limit, paired.rows, f"only {counted(paired.rows, 'row')} to flip")
    share = paired.losses / paired.worth
    sentence = f"{percent(share)} of rows were right and become wrong (at most {percent(limit)})"
    passed: bool | None = share <= limit
    if not passed and clopper_pearson(math.floor(paired.losses), math.ceil(paired.worth), alpha).lower <= limit:
        passed, sentence = None, f"{sentence}, which may be chance"
    return Check("negative_flips", passed, share, limit, paired.rows, sentence)


def calibration(comparison: Comparison, settings: JudgeSettings) -> Check:
    """Confidence means no less than before. `value` is the calibration error that the candidate adds.

    Rows of new labels count too, and are errors of the champion. Where there are such rows it also passes if all
    probabilities together have come closer to the truth (Brier score): a champion that is always wrong on new labels,
    and never sure, would be called better calibrated than a candidate that is nearly always right; with wrong labels
    among the rows the more so.
    """
    if "halfway" in comparison.evidence.source:
        comparison = compare(comparison.evidence.finished())
    evidence = comparison.evidence
    rows = comparison.known | comparison.new
    count = int(rows.sum())
    if evidence.champion is None or count < settings.min_rows:
        return Check("calibration", None, None, settings.calibration, count, f"only {counted(count, 'row')}")
    before = expected_error(confidences(evidence.champion)[rows], comparison.champion_right[rows])
    after = expected_error(confidences(evidence.candidate)[rows], comparison.candidate_right[rows])
    passed = after - before <= settings.calibration
    sentence = f"calibration error {percent(before)} → {percent(after)} (may rise by {points(settings.calibration)})"
    if not passed and comparison.new.any():
        truth = [label for label, counts in zip(evidence.truth, rows, strict=True) if counts]
        scores = [
            brier_score(Scores(one.labels, one.probabilities[rows]), truth)
            for one in (evidence.champion, evidence.candidate)
        ]
        passed = scores[1] < scores[0]
        sentence += f"; with the new labels the Brier score goes {scores[0]:.2f} → {scores[1]:.2f} (0 is best)"
    return Check("calibration", passed, after - before, settings.calibration, count, sentence)


def prediction_shift(shift: Shift | None, settings: JudgeSettings) -> Check:
    """Answers on traffic do not move in a way that no label explains."""
    limit = settings.prediction_shift
    if shift is None or shift.rows < settings.min_rows:
        rows = 0 if shift is None else shift.rows
        return Check("prediction_shift", None, None, limit, rows, f"only {counted(rows, 'row')} of traffic to compare")
    return Check(
        name="prediction_shift",
        passed=shift.distance <= limit,
        value=shift.distance,
        limit=limit,
        rows=shift.rows,
        sentence=f"predictions on traffic moved by {percent(shift.distance)} that no label explains "
        f"(at most {percent(limit)}, n={shift.rows:,})",
    )


def at_least_two_labels(comparison: Comparison) -> Check:
    """There is something to tell apart."""
    count = len(comparison.evidence.candidate.labels)
    said = counted(count, "label")
    return Check(
        name="labels",
        passed=count >= 2,
        value=float(count),
        limit=2.0,
        rows=0,
        sentence=said if count >= 2 else f"{said}: a classifier needs at least two",
    )


def beats_most_frequent(comparison: Comparison, settings: JudgeSettings) -> Check:
    """A first version is better than always answering the most frequent label."""
    paired = comparison.paired(comparison.new)
    if paired.rows < settings.min_rows:
        return Check(
            name="beats_most_frequent",
            passed=None,
            value=paired.candidate if paired.rows else None,
            limit=None,
            rows=paired.rows,
            sentence=f"only {counted(paired.rows, 'row')} to try it on, so nothing is known of its accuracy yet",
        )
    answerable = [label for label, new in zip(comparison.evidence.truth, comparison.new, strict=True) if new]
    trivial = Counter(answerable).most_common(1)[0][1] / paired.rows
    return Check(
        name="beats_most_frequent",
        passed=paired.candidate > trivial,
        value=paired.candidate,
        limit=trivial,
        rows=paired.rows,
        sentence=f"{percent(paired.candidate)} right on rows that it was not trained on (n={paired.rows:,}), "
        f"where always answering the most frequent label has {percent(trivial)}",
    )


def not_rolled_back(rolled_back: bool) -> Check:
    """People have not taken this version out of service."""
    return Check(
        name="not_rolled_back",
        passed=not rolled_back,
        value=None,
        limit=None,
        rows=0,
        sentence="it was rolled back before: only a person promotes it again"
        if rolled_back
        else "it was never rolled back",
    )
