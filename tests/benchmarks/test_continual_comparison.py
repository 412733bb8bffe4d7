"""Differences between contestants on the same rows, goals, and the runs that a result keeps."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from contestants.committed import Committed, packed, told, unpacked
from contestants.comparison import differences, goals
from contestants.contest import Given, Outcome, Run, finished
from contestants.figures import Answers, SessionFigures


def run(contestant: str, right: str, *, order: str = "10x15", seed: int = 0, forgetting: float = 0.0) -> Run:
    flags = np.asarray([one == "1" for one in right])
    share = float(flags.mean())
    sessions = (
        SessionFigures(0, share + forgetting, (share + forgetting,), 1.0, 1.0),
        SessionFigures(1, share, (share, share), 1.0, 1.0),
    )
    answers = (Answers(flags, np.full(len(flags), 0.5, dtype=np.float32)),) * 2
    return finished(Given(contestant, order, seed, 10, "test", {"code": "c"}), Outcome(sessions, answers, 3, 2))


def bits(*, right: int, rows: int = 1000) -> str:
    return "1" * right + "0" * (rows - right)


def test_a_difference_is_paired_and_has_an_interval() -> None:
    ours, theirs = run("perdure", bits(right=970)), run("er", bits(right=960))
    (found,) = differences([ours, theirs])
    assert (found.contestant, found.order, found.memory, found.seeds) == ("er", "10x15", 10, (0,))
    assert found.points == pytest.approx(1.0)
    assert 0 < found.lower < 1.0 < found.upper < 2.5


def test_the_same_accuracy_on_other_rows_is_less_sure() -> None:
    ours = run("perdure", bits(right=970))
    (same,) = differences([ours, run("er", bits(right=970))])
    (other,) = differences([ours, run("er", bits(right=970)[::-1])])
    assert same.points == other.points == 0.0
    assert other.upper - other.lower > same.upper - same.lower


def test_seeds_are_averaged_and_do_not_narrow_the_interval() -> None:
    one = [run("perdure", bits(right=970)), run("er", bits(right=950))]
    more = [*one, run("perdure", bits(right=970), seed=1), run("er", bits(right=950), seed=1)]
    (single,), (pooled,) = differences(one), differences(more)
    assert pooled.seeds == (0, 1)
    assert (pooled.points, pooled.lower, pooled.upper) == (single.points, single.lower, single.upper)
    (mixed,) = differences([*one, run("perdure", bits(right=970), seed=1), run("er", bits(right=970), seed=1)])
    assert mixed.points == pytest.approx(1.0)


def test_only_seeds_that_both_have_are_compared() -> None:
    assert differences([run("perdure", bits(right=9, rows=10)), run("er", bits(right=9, rows=10), seed=1)]) == []


def test_without_single_answers_there_is_no_interval_and_no_proof() -> None:
    silent = replace(run("er", bits(right=90, rows=100)), right=None)
    runs = [run("perdure", bits(right=95, rows=100)), silent]
    (found,) = differences(runs)
    assert (found.lower, found.upper) == (None, None)
    assert found.points == pytest.approx(5.0)
    rival = {one.name: one for one in goals(runs, memory=10, ceilings=())}["best rival 10x15"]
    assert rival.value == pytest.approx(5.0)
    assert rival.met is rival.aim_met is None


def test_goals_are_met_where_figures_reach_them_and_open_where_there_are_none() -> None:
    runs = [
        run("perdure", bits(right=964), forgetting=0.01),
        run("ridge_all", bits(right=962), forgetting=0.012),
        run("er_ewc", bits(right=940)),
        run("joint_lora", bits(right=980)),
    ]
    found = {one.name: one for one in goals(runs, memory=10, ceilings=["joint_lora"])}
    assert (found["accuracy"].met, found["accuracy"].aim_met) == (True, False)
    assert found["accuracy"].value == pytest.approx(96.4)
    assert found["more_sessions"].value is found["more_sessions"].met is None
    assert found["forgetting 10x15"].value == pytest.approx(0.2)
    assert found["forgetting 10x15"].aim_met is True
    rival = found["best rival 10x15"]
    assert "ridge_all" in rival.about
    assert rival.value == pytest.approx(0.2)
    assert (rival.met, rival.aim_met) == (True, False)
    assert found["er_ewc 10x15"].value == pytest.approx(2.4)
    assert (found["er_ewc 10x15"].met, found["er_ewc 10x15"].aim_met) == (True, False)


def test_not_worse_wants_the_lower_end_of_the_interval() -> None:
    ours = bits(right=500)
    theirs = "0" * 40 + "1" * 500 + "0" * 460
    found = {one.name: one for one in goals([run("perdure", ours), run("er", theirs)], memory=10, ceilings=())}
    assert found["best rival 10x15"].value == 0.0
    assert found["best rival 10x15"].met is False


def test_runs_come_back_from_a_result_as_they_were(tmp_path: Path) -> None:
    one, silent = run("er", "0110"), replace(run("ncm", "0110"), right=None)
    path = tmp_path / "continual.json"
    assert Committed(path).runs == ()
    path.write_text(json.dumps({"runs": [told(each, {"commit": "abc"}) for each in (one, silent)]}), encoding="utf-8")
    committed = Committed(path)
    assert committed.runs == (one, silent)
    assert committed.taken(one) == {"commit": "abc"}
    assert committed.taken(run("er", "0111")) is None


@pytest.mark.parametrize("right", ["0", "1", "0001", "1000", "0" * 9 + "1", None])
def test_answers_are_packed_without_loss(right: str | None) -> None:
    assert unpacked(packed(right)) == right
