from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from perdure.config import JudgeSettings
from perdure.judge.artifact import Artifact
from perdure.judge.evidence import Evidence
from perdure.judge.shift import Shift
from perdure.judge.verdict import Check, Verdict, judge
from perdure.model.base import Scores

Make = Callable[..., Evidence]
SETTINGS = JudgeSettings()
NEW = ("a", "b", "c")
SAME = [("a", "a", "a", 150), ("b", "b", "b", 150)]


def found(verdict: Verdict, name: str) -> Check:
    return next(check for check in verdict.checks if check.name == name)


class TestFirst:
    def test_better_than_always_the_most_frequent(self, evidence: Make, sound: Artifact) -> None:
        rows = evidence([("a", "", "a", 60), ("b", "", "b", 30), ("b", "", "a", 10)], old=None)
        verdict = judge(rows, kind="first", settings=SETTINGS, artifact=sound)
        assert verdict.outcome == "promote"
        assert verdict.sentence == (
            "Promote: first version with 2 labels; 90 % right on rows that it was not trained on (n=100), "
            "where always answering the most frequent label has 60 %."
        )

    def test_no_better_than_the_most_frequent(self, evidence: Make, sound: Artifact) -> None:
        rows = evidence([("a", "", "a", 60), ("b", "", "a", 40)], old=None)
        verdict = judge(rows, kind="first", settings=SETTINGS, artifact=sound)
        assert verdict.outcome == "keep"
        assert "60 % right" in verdict.sentence

    @pytest.mark.parametrize("count", [0, 1, 19])
    def test_few_rows_promote_and_say_so(self, evidence: Make, sound: Artifact, count: int) -> None:
        verdict = judge(evidence([("a", "", "b", count)], old=None), kind="first", settings=SETTINGS, artifact=sound)
        assert verdict.outcome == "promote"
        assert "nothing is known of its accuracy yet" in verdict.sentence

    def test_one_label_is_no_classifier(self, evidence: Make, sound: Artifact) -> None:
        rows = evidence([("a", "", "a", 50)], old=None, new=("a",))
        verdict = judge(rows, kind="first", settings=SETTINGS, artifact=sound)
        assert verdict.outcome == "keep"
        assert "1 label: a classifier needs at least two" in verdict.sentence

    def test_no_label_at_all(self, sound: Artifact) -> None:
        nothing = Evidence((), (), (), None, Scores((), np.zeros((0, 0), dtype=np.float32)))
        assert judge(nothing, kind="first", settings=SETTINGS, artifact=sound).outcome == "keep"

    def test_artifact_counts_here_too(self, evidence: Make, sound: Artifact) -> None:
        rows = evidence([("a", "", "a", 60), ("b", "", "b", 60)], old=None)
        for broken in (replace(sound, finite=False), replace(sound, agreement=0.98)):
            assert judge(rows, kind="first", settings=SETTINGS, artifact=broken).outcome == "keep"


class TestHead:
    def test_adds_labels(self, evidence: Make, sound: Artifact) -> None:
        rows = evidence([*SAME, ("a", "a", "b", 2), ("c", "a", "c", 80), ("c", "a", "b", 8)], new=NEW)
        verdict = judge(rows, kind="head", settings=SETTINGS, artifact=sound)
        assert verdict.outcome == "promote"
        assert verdict.sentence == (
            "Promote: 1 new label at 90.9 % recall (n=88); on the 2 known labels 100 % → 99.3 %, "
            "at worst -2.0 points (95 %, n=302)."
        )
        assert found(verdict, "known_labels").limit == -SETTINGS.margin_new_labels

    def test_new_labels_do_not_mask_forgetting(self, evidence: Make, sound: Artifact) -> None:
        rows = evidence([("a", "a", "a", 240), ("a", "a", "c", 60), ("c", "a", "c", 5000)], new=NEW)
        verdict = judge(rows, kind="head", settings=SETTINGS, artifact=sound)
        assert verdict.outcome == "keep"
        assert found(verdict, "known_labels").passed is False
        assert found(verdict, "known_labels").rows == 300

    def test_wider_margin_only_where_all_old_labels_stay(self, evidence: Make, sound: Artifact) -> None:
        rows = evidence([("a", "a", "a", 300), ("c", "a", "c", 40)], new=("a", "c"))
        verdict = judge(rows, kind="head", settings=SETTINGS, artifact=sound)
        assert found(verdict, "known_labels").limit == -SETTINGS.margin

    def test_poor_recall_on_new_labels(self, evidence: Make, sound: Artifact) -> None:
        verdict = judge(
            evidence([*SAME, ("c", "a", "a", 11), ("c", "a", "c", 9)], new=NEW),
            kind="head",
            settings=SETTINGS,
            artifact=sound,
        )
        assert verdict.outcome == "keep"
        assert "45 % recall (n=20), less than the 50 % needed" in verdict.sentence

    @pytest.mark.parametrize("count", [0, 4])
    def test_new_labels_without_rows_are_inconclusive(self, evidence: Make, sound: Artifact, count: int) -> None:
        rows = evidence([*SAME, ("c", "a", "c", count)], new=NEW)
        verdict = judge(rows, kind="head", settings=SETTINGS, artifact=sound)
        assert verdict.outcome == "inconclusive"
        assert f"only {count} rows to try them on" in verdict.sentence

    def test_same_labels_must_not_be_worse_on_fresh_rows(self, evidence: Make, sound: Artifact) -> None:
        better = judge(evidence(SAME, confidence=(0.8, 0.9)), kind="head", settings=SETTINGS, artifact=sound)
        worse = judge(evidence(SAME, confidence=(0.9, 0.8)), kind="head", settings=SETTINGS, artifact=sound)
        equal = judge(evidence(SAME), kind="head", settings=SETTINGS, artifact=sound)
        assert (better.outcome, worse.outcome, equal.outcome) == ("promote", "keep", "promote")
        assert found(worse, "up_to_date").passed is False

    def test_only_fresh_rows_decide_where_there_are_any(self, evidence: Make, sound: Artifact) -> None:
        old = evidence([("a", "a", "a", 200)], confidence=(0.95, 0.9), source="held_out")
        fresh = evidence([("b", "b", "b", 100)], confidence=(0.8, 0.85))
        both = Evidence(
            old.texts + fresh.texts,
            old.truth + fresh.truth,
            old.source + fresh.source,
            *(
                Scores(("a", "b"), np.concatenate([one.probabilities, other.probabilities]))
                for one, other in ((old.champion, fresh.champion), (old.candidate, fresh.candidate))
                if one is not None and other is not None
            ),
        )
        assert judge(both, kind="head", settings=SETTINGS, artifact=sound).outcome == "promote"
        assert judge(old, kind="head", settings=SETTINGS, artifact=sound).outcome == "keep"

    def test_in_between_is_inconclusive_and_says_how_many_rows(self, evidence: Make, sound: Artifact) -> None:
        rows = evidence([("a", "a", "a", 94), ("a", "a", "b", 3), ("a", "b", "a", 3)], confidence=(0.8, 0.8))
        verdict = judge(rows, kind="head", settings=SETTINGS, artifact=sound)
        assert verdict.outcome == "inconclusive"
        # 6.18 · 0.06 / 0.02²
        assert "cannot be ruled out, an equal candidate needs about 928 rows" in verdict.sentence

    def test_few_rows_are_inconclusive(self, evidence: Make, sound: Artifact) -> None:
        verdict = judge(evidence([("a", "a", "a", 19)]), kind="head", settings=SETTINGS, artifact=sound)
        assert verdict.outcome == "inconclusive"
        assert "only 19 paired rows of labels that the champion knows, fewer than the 20 needed" in verdict.sentence

    def test_no_known_row_at_all(self, evidence: Make, sound: Artifact) -> None:
        verdict = judge(evidence([("c", "a", "c", 50)], new=NEW), kind="head", settings=SETTINGS, artifact=sound)
        assert verdict.outcome == "inconclusive"

    def test_several_candidates_need_more_evidence(self, evidence: Make, sound: Artifact) -> None:
        rows = evidence([("a", "a", "a", 140)])
        assert judge(rows, kind="head", settings=SETTINGS, artifact=sound).outcome == "promote"
        two = judge(rows, kind="head", settings=SETTINGS, artifact=sound, candidates=2)
        assert two.outcome == "inconclusive"
        assert "(97.5 %, n=140)" in two.sentence


class TestLora:
    def test_gain_in_log_score(self, evidence: Make, sound: Artifact) -> None:
        verdict = judge(evidence(SAME, confidence=(0.8, 0.9)), kind="lora", settings=SETTINGS, artifact=sound)
        assert verdict.outcome == "promote"
        assert verdict.sentence.startswith("Promote: log score +0.118 a row (at least +0.118), accuracy +0.0 points")

    def test_gain_in_accuracy_alone(self, evidence: Make, sound: Artifact) -> None:
        rows = evidence([*SAME, ("a", "b", "a", 20)], confidence=(0.9, 0.6))
        verdict = judge(rows, kind="lora", settings=SETTINGS, artifact=sound)
        gain = found(verdict, "gain")
        assert gain.value is not None
        assert gain.value < 0
        assert gain.passed

    def test_worse_beyond_doubt_keeps(self, evidence: Make, sound: Artifact) -> None:
        verdict = judge(evidence(SAME, confidence=(0.9, 0.8)), kind="lora", settings=SETTINGS, artifact=sound)
        assert verdict.outcome == "keep"
        assert verdict.sentence.startswith("Keep: worse than the champion: log score -0.118 a row")

    def test_what_is_no_better_may_yet_become_so(self, evidence: Make, sound: Artifact) -> None:
        verdict = judge(evidence(SAME), kind="lora", settings=SETTINGS, artifact=sound)
        assert verdict.outcome == "inconclusive"
        assert verdict.sentence.startswith("Inconclusive, so the champion stays: no gain proved: ")

    @pytest.mark.parametrize(("sure", "outcome"), [(0.885, "inconclusive"), (0.875, "keep")])
    def test_what_is_a_little_less_sure_is_not_dropped(
        self, evidence: Make, sound: Artifact, sure: float, outcome: str
    ) -> None:
        # ln(0.98) is −0.0202; ln(0.885/0.9) is −0.0168, and ln(0.875/0.9) −0.0282, of every row.
        verdict = judge(evidence(SAME, confidence=(0.9, sure)), kind="lora", settings=SETTINGS, artifact=sound)
        assert SETTINGS.margin == 0.02
        assert verdict.outcome == outcome

    def test_a_gain_within_noise_is_none(self, evidence: Make, sound: Artifact) -> None:
        rows = evidence([*SAME, ("a", "b", "a", 4), ("a", "a", "b", 3)])
        assert judge(rows, kind="lora", settings=SETTINGS, artifact=sound).outcome == "inconclusive"

    def test_new_labels_do_not_widen_the_margin(self, evidence: Make, sound: Artifact) -> None:
        rows = evidence([*SAME, ("c", "a", "c", 40)], new=NEW, confidence=(0.8, 0.9))
        verdict = judge(rows, kind="lora", settings=SETTINGS, artifact=sound)
        assert found(verdict, "known_labels").limit == -SETTINGS.margin
        assert found(verdict, "new_labels").passed
        assert verdict.outcome == "promote"

    def test_new_labels_are_no_gain(self, evidence: Make, sound: Artifact) -> None:
        verdict = judge(
            evidence([*SAME, ("c", "a", "c", 400)], new=NEW, confidence=(0.9, 0.9)),
            kind="lora",
            settings=SETTINGS,
            artifact=sound,
        )
        assert verdict.outcome == "inconclusive"

    def test_what_new_rows_gain_does_not_hide_what_old_labels_lose(self, evidence: Make, sound: Artifact) -> None:
        """Of the label that has come most there are 40 rows, of the other 600."""
        rows = evidence([("a", "a", "a", 36), ("a", "a", "b", 4), ("b", "a", "b", 60), ("b", "b", "b", 540)])
        assert judge(rows, kind="lora", settings=SETTINGS, artifact=sound).outcome == "promote"
        weighted = replace(rows, counts={"a": 400, "b": 200})
        verdict = judge(weighted, kind="lora", settings=SETTINGS, artifact=sound)
        assert verdict.outcome != "promote"
        assert "n=640, worth 60" in found(verdict, "known_labels").sentence
        assert found(verdict, "negative_flips").value == pytest.approx(40 / 600)
        assert found(verdict, "gain").passed is not True

    @pytest.mark.parametrize(
        ("then", "outcome"),
        [
            ([("a", "a", "a", 90)], "promote"),
            ([("a", "a", "a", 90), ("a", "a", "b", 1)], "promote"),
            ([("a", "a", "a", 70), ("a", "a", "b", 10)], "keep"),
        ],
    )
    def test_what_was_good_halfway_must_not_be_worse_when_finished(
        self, evidence: Make, sound: Artifact, then: list[tuple[str, str, str, int]], outcome: str
    ) -> None:
        halfway = evidence([*SAME, ("a", "b", "a", 60)], confidence=(0.8, 0.9), source="halfway")
        rows = halfway + evidence(then, source="held_out")
        verdict = judge(rows, kind="lora", settings=SETTINGS, artifact=sound)
        assert verdict.outcome == outcome
        finished = found(verdict, "finished")
        assert finished.rows == sum(count for *_, count in then)
        assert "360 rows asked halfway, before it learned from them; as it is now 100 % → " in finished.sentence
        assert ("worse when finished" in verdict.sentence) == (outcome == "keep")

    def test_what_is_less_sure_when_finished_beyond_doubt_keeps(self, evidence: Make, sound: Artifact) -> None:
        halfway = evidence([*SAME, ("a", "b", "a", 60)], confidence=(0.6, 0.9), source="halfway")
        for sure, outcome in ((0.89, "promote"), (0.8, "keep")):
            rows = halfway + evidence([("a", "a", "a", 90)], confidence=(0.9, sure), source="held_out")
            assert judge(rows, kind="lora", settings=SETTINGS, artifact=sound).outcome == outcome

    def test_nobody_speaks_of_halves_where_there_are_none(self, evidence: Make, sound: Artifact) -> None:
        verdict = judge(evidence(SAME, source="held_out"), kind="lora", settings=SETTINGS, artifact=sound)
        assert "finished" not in {check.name for check in verdict.checks}

    @pytest.mark.parametrize(("rows", "outcome"), [(0, "inconclusive"), (19, "inconclusive"), (20, "promote")])
    def test_what_nobody_asked_as_it_is_now_is_not_promoted(
        self, evidence: Make, sound: Artifact, rows: int, outcome: str
    ) -> None:
        halfway = evidence([*SAME, ("a", "b", "a", 60)], confidence=(0.8, 0.9), source="halfway")
        now = evidence([("a", "a", "a", rows)], source="held_out")
        verdict = judge(halfway + now, kind="lora", settings=SETTINGS, artifact=sound)
        assert verdict.outcome == outcome
        assert ("to ask it about as it is now" in verdict.sentence) == (outcome == "inconclusive")

    def test_calibration_is_that_of_what_would_be_served(self, evidence: Make, sound: Artifact) -> None:
        halfway = evidence([("a", "a", "a", 60), ("a", "b", "b", 40)], confidence=(0.6, 0.95), source="halfway")
        now = evidence([("a", "a", "a", 90), ("a", "b", "b", 10)], confidence=(0.9, 0.9), source="held_out")
        check = found(judge(halfway + now, kind="lora", settings=SETTINGS, artifact=sound), "calibration")
        assert check.rows == 100
        assert check.value == pytest.approx(0)

    def test_few_rows_are_inconclusive(self, evidence: Make, sound: Artifact) -> None:
        rows = evidence([("a", "a", "a", 10)], confidence=(0.5, 0.9))
        assert judge(rows, kind="lora", settings=SETTINGS, artifact=sound).outcome == "inconclusive"


class TestEveryCandidate:
    def judged(self, rows: Evidence, artifact: Artifact, **changes: object) -> Verdict:
        shift = changes.pop("shift", None)
        assert shift is None or isinstance(shift, Shift)
        settings = JudgeSettings(**{"margin": 0.2, **changes})  # type: ignore[arg-type]
        return judge(rows, kind="head", settings=settings, artifact=artifact, shift=shift)

    def test_one_label_may_not_pay_for_the_others(self, evidence: Make, sound: Artifact) -> None:
        rows = evidence([("a", "a", "a", 500), ("b", "b", "a", 15), ("b", "b", "b", 10)], confidence=(0.6, 0.9))
        verdict = self.judged(rows, sound)
        assert verdict.outcome == "keep"
        assert verdict.sentence == "Keep: 1 label lost more than 15 % recall: 'b'."
        assert self.judged(rows, sound, group_rows=26).outcome == "promote"

    def test_a_label_may_lose_by_chance(self, evidence: Make, sound: Artifact) -> None:
        rows = evidence(
            [("a", "a", "a", 500), ("b", "b", "a", 9), ("b", "a", "b", 5), ("b", "b", "b", 6)], confidence=(0.6, 0.9)
        )
        check = found(self.judged(rows, sound), "label_groups")
        assert check.passed
        assert check.value == pytest.approx(0.2)
        assert "may be chance" in check.sentence

    def test_negative_flips(self, evidence: Make, sound: Artifact) -> None:
        flips = [("a", "a", "b", 12), ("a", "b", "a", 12), ("a", "a", "a", 76)]
        verdict = self.judged(evidence(flips), sound)
        assert verdict.sentence == "Keep: 12 % of rows were right and become wrong (at most 5 %)."
        assert self.judged(evidence(flips), sound, negative_flips=0.12).outcome == "promote"

    def test_negative_flips_that_may_be_chance_are_no_verdict(self, evidence: Make, sound: Artifact) -> None:
        """Of 100 rows 6; a thousand with the same share are."""
        some = [("a", "a", "b", 6), ("a", "b", "a", 12), ("a", "a", "a", 82)]
        verdict = self.judged(evidence(some), sound)
        assert verdict.outcome == "inconclusive"
        assert "6 % of rows were right and become wrong (at most 5 %), which may be chance" in verdict.sentence
        many = [(truth, one, other, 20 * count) for truth, one, other, count in some]
        assert self.judged(evidence(many), sound).outcome == "keep"

    def test_calibration(self, evidence: Make, sound: Artifact) -> None:
        rows = evidence([("a", "a", "a", 80), ("a", "b", "b", 20)], confidence=(0.8, 0.95))
        check = found(self.judged(rows, sound), "calibration")
        assert check.passed is False
        assert check.value == pytest.approx(0.15, abs=1e-6)
        assert "calibration error 0 % → 15 %" in check.sentence
        assert found(self.judged(rows, sound, calibration=0.16), "calibration").passed

    def test_a_champion_that_never_knows_and_never_is_sure_is_not_better_calibrated(
        self, evidence: Make, sound: Artifact
    ) -> None:
        rows = evidence(
            [("a", "a", "a", 60), ("c", "b", "c", 160), ("c", "b", "a", 60)],
            old=("a", "b", "d", "e", "f"),
            new=("a", "b", "c", "d", "e", "f"),
            confidence=(0.21, 0.99),
        )
        check = found(self.judged(rows, sound), "calibration")
        assert check.value == pytest.approx(0.2, abs=0.01)
        assert check.passed
        assert "Brier score goes 1.11 → 0.42" in check.sentence
        wrong = evidence(
            [("a", "a", "b", 60), ("c", "b", "a", 200), ("c", "b", "c", 20)],
            old=("a", "b", "d", "e", "f"),
            new=("a", "b", "c", "d", "e", "f"),
            confidence=(0.21, 0.99),
        )
        assert found(self.judged(wrong, sound), "calibration").passed is False

    def test_calibration_counts_rows_of_new_labels(self, evidence: Make, sound: Artifact) -> None:
        """A fifth of the labels is wrong: texts of the new label that carry an old one look like overconfidence."""
        noisy = [("a", "a", "a", 60), ("a", "b", "c", 60), ("c", "b", "c", 240), ("c", "b", "a", 20)]
        rows = evidence(noisy, new=("a", "b", "c"), confidence=(0.55, 0.8))
        check = found(self.judged(rows, sound), "calibration")
        assert check.rows == 380
        assert check.passed
        assert check.value < 0
        lost = evidence([("a", "a", "a", 80), ("a", "a", "b", 20), ("c", "b", "c", 10)], new=("a", "b", "c"))
        assert found(self.judged(lost, sound, calibration=0.05), "calibration").value > 0

    @pytest.mark.parametrize(("agreement", "outcome"), [(0.99, "promote"), (0.989, "keep"), (float("nan"), "keep")])
    def test_agreement(self, evidence: Make, sound: Artifact, agreement: float, outcome: str) -> None:
        verdict = self.judged(evidence(SAME), replace(sound, agreement=agreement))
        assert verdict.outcome == outcome
        json.dumps(verdict.to_json(), allow_nan=False)

    def test_weights_that_are_not_finite(self, evidence: Make, sound: Artifact) -> None:
        verdict = self.judged(evidence(SAME), replace(sound, finite=False))
        assert verdict.outcome == "keep"
        assert verdict.sentence == "Keep: some weights are not finite numbers."

    def test_answers_that_are_not_finite(self, evidence: Make, sound: Artifact) -> None:
        rows = evidence(SAME)
        rows.candidate.probabilities[5, 0] = np.nan
        verdict = self.judged(rows, sound)
        assert verdict.sentence == "Keep: some answers are not finite numbers."

    def test_latency(self, evidence: Make, sound: Artifact) -> None:
        slow = replace(sound, seconds_per_text=0.0061)
        assert self.judged(evidence(SAME), slow).outcome == "keep"
        assert "6.10 ms, 3.05 times the champion's" in self.judged(evidence(SAME), slow).sentence
        unjudged = self.judged(evidence(SAME), slow, judge_latency=False)
        assert unjudged.outcome == "promote"
        assert "latency" not in {check.name for check in unjudged.checks}
        for unmeasured in (replace(slow, seconds_per_text=None), replace(slow, champion_seconds_per_text=None)):
            verdict = self.judged(evidence(SAME), unmeasured)
            assert verdict.outcome == "promote"
            assert found(verdict, "latency").passed is None

    def test_prediction_shift(self, evidence: Make, sound: Artifact) -> None:
        assert self.judged(evidence(SAME), sound, shift=Shift(0.2, 100, 0)).outcome == "promote"
        verdict = self.judged(evidence(SAME), sound, shift=Shift(0.21, 100, 0))
        assert verdict.sentence == (
            "Keep: predictions on traffic moved by 21 % that no label explains (at most 20 %, n=100)."
        )
        assert self.judged(evidence(SAME), sound, shift=Shift(0.9, 5, 0)).outcome == "promote"

    def test_rolled_back_before(self, evidence: Make, sound: Artifact) -> None:
        verdict = judge(evidence(SAME), kind="head", settings=SETTINGS, artifact=sound, rolled_back=True)
        assert verdict.outcome == "keep"
        assert "rolled back before" in verdict.sentence

    def test_failure_beats_too_little_evidence(self, evidence: Make, sound: Artifact) -> None:
        verdict = self.judged(evidence([("a", "a", "a", 3)]), replace(sound, agreement=0.5))
        assert verdict.outcome == "keep"


def test_a_truly_worse_candidate_is_rarely_promoted(evidence: Make, sound: Artifact) -> None:
    random = np.random.default_rng(5)
    settings = JudgeSettings(negative_flips=1.0, group_margin=1.0, calibration=1.0)
    promoted = 0
    for _ in range(150):
        gains, losses, equal = (int(count) for count in random.multinomial(800, [0.01, 0.03, 0.96]))
        rows = evidence(
            [("a", "b", "a", gains), ("a", "a", "b", losses), ("a", "a", "a", equal)], confidence=(0.6, 0.9)
        )
        promoted += judge(rows, kind="lora", settings=settings, artifact=sound).outcome == "promote"
    assert promoted <= 150 * 0.05 + 3 * (150 * 0.05 * 0.95) ** 0.5


def test_json_holds_json_types(evidence: Make, sound: Artifact) -> None:
    verdict = judge(evidence(SAME), kind="lora", settings=SETTINGS, artifact=sound, shift=Shift(0.0, 50, 0))
    tree = json.loads(json.dumps(verdict.to_json(), allow_nan=False))
    assert tree["outcome"] == verdict.outcome
    assert tree["sentence"] == verdict.sentence
    assert [check["name"] for check in tree["checks"]] == [check.name for check in verdict.checks]
    assert set(tree["checks"][0]) == {"name", "passed", "value", "limit", "rows", "sentence"}


def test_kinds_that_do_not_fit_are_refused(evidence: Make, sound: Artifact) -> None:
    with pytest.raises(ValueError, match="'first' does not fit evidence with a champion"):
        judge(evidence(SAME), kind="first", settings=SETTINGS, artifact=sound)
    with pytest.raises(ValueError, match="'head' does not fit evidence without a champion"):
        judge(evidence(SAME, old=None), kind="head", settings=SETTINGS, artifact=sound)
    with pytest.raises(ValueError, match="candidates must be at least 1, got 0"):
        judge(evidence(SAME), kind="head", settings=SETTINGS, artifact=sound, candidates=0)


class TestErasure:
    """The champion still knows what somebody asked to be forgotten."""

    def test_a_head_that_is_no_better_is_promoted_and_says_why(self, evidence: Make, sound: Artifact) -> None:
        rows = evidence([*SAME, ("a", "a", "b", 3)], confidence=(0.9, 0.8))
        assert judge(rows, kind="head", settings=SETTINGS, artifact=sound).outcome == "keep"
        verdict = judge(rows, kind="head", settings=SETTINGS, artifact=sound, erasure=True)
        assert verdict.outcome == "promote"
        assert verdict.sentence == ("Promote: it no longer knows what was asked to be forgotten: 100 % → 99 % (n=303).")
        # What it was found wanting in stays on the page.
        assert found(verdict, "up_to_date").passed is False

    @pytest.mark.parametrize("rows", [[], [("a", "a", "a", 3)]])
    def test_too_little_evidence_is_no_reason_to_keep(
        self, evidence: Make, sound: Artifact, rows: list[tuple[str, str, str, int]]
    ) -> None:
        verdict = judge(evidence(rows), kind="head", settings=SETTINGS, artifact=sound, erasure=True)
        assert verdict.outcome == "promote"

    def test_a_loss_beyond_doubt_keeps_the_champion_and_tells_a_person(self, evidence: Make, sound: Artifact) -> None:
        rows = evidence([*SAME, ("a", "a", "b", 60)])
        verdict = judge(rows, kind="head", settings=SETTINGS, artifact=sound, erasure=True)
        assert verdict.outcome == "keep"
        assert verdict.sentence.startswith("Keep, though an erasure waits for it: ")
        assert "promote it by hand" in verdict.sentence

    def test_a_loss_that_may_be_within_the_margin_is_taken(self, evidence: Make, sound: Artifact) -> None:
        few = evidence([("a", "a", "a", 20), ("a", "a", "b", 2)])
        assert judge(few, kind="head", settings=SETTINGS, artifact=sound, erasure=True).outcome == "promote"

    def test_what_is_broken_is_never_promoted(self, evidence: Make, sound: Artifact) -> None:
        for broken in (replace(sound, finite=False), replace(sound, agreement=0.5)):
            verdict = judge(evidence(SAME), kind="head", settings=SETTINGS, artifact=broken, erasure=True)
            assert verdict.outcome == "keep"

    def test_what_a_person_took_out_of_service_stays_out(self, evidence: Make, sound: Artifact) -> None:
        verdict = judge(evidence(SAME), kind="head", settings=SETTINGS, artifact=sound, erasure=True, rolled_back=True)
        assert verdict.outcome == "keep"

    def test_an_adapter_gains_nothing_by_it(self, evidence: Make, sound: Artifact) -> None:
        verdict = judge(evidence(SAME), kind="lora", settings=SETTINGS, artifact=sound, erasure=True)
        assert verdict.outcome == "inconclusive"

    def test_a_head_that_is_better_says_so(self, evidence: Make, sound: Artifact) -> None:
        rows = evidence(SAME, confidence=(0.8, 0.9))
        verdict = judge(rows, kind="head", settings=SETTINGS, artifact=sound, erasure=True)
        assert verdict.outcome == "promote"
        assert "forgotten" not in verdict.sentence
