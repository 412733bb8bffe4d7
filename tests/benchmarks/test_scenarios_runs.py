from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import scenarios
from contestants.base import Order, Rows, Session
from perdure.backtest import run_backtest
from perdure.config import load_settings
from perdure.dataset import DataRow
from scenario import run as run_module
from scenario.goals import ablation, failing, goals, history_costs
from scenario.plan import ABLATIONS, BASE, FULL, QUICK, history_name
from scenario.run import ScenarioFailed, ScenarioRun, kept_run, run
from scenario.scratch import ScratchCost, read_scratch, scratch_from_file, write_scratch
from scenario.streams import Recorded
from scenario.table import lines

ROWS = tuple(DataRow(text=f"text {row}", label="ab"[row % 2], session=row // 2) for row in range(4))
STREAM = Recorded(ROWS, ROWS)


def session(number: int, **more: Any) -> dict[str, Any]:
    """As `metrics.json` has it."""
    return {
        "session": number,
        "acc_seen": 0.5,
        "accuracies": [0.5] * (number + 1),
        "acc_head": 0.5,
        "acc_lora": None,
        "verdict": "first: promote",
        "learned": 2,
        "skipped": 0,
        "quarantined": 1,
        "cpu_seconds": 9.0,
        "learn_cpu_seconds": 2.0,
        "wall_seconds": 8.0,
        "turn": {"wall_seconds": 1.5, "candidates": [{"kind": "first", "outcome": "promote"}]},
        **more,
    }


def metrics(**more: Any) -> dict[str, Any]:
    names = ("acc", "aaa", "bwt", "forgetting", "learning_acc")
    sizes = {"memory_samples": 20, "memory_bytes": 11, "cpu_seconds": 18.0, "wall_seconds": 16.0}
    return {**dict.fromkeys(names, 0.5), **sizes, "sessions": [session(0), session(1)], **more}


@pytest.fixture
def backtests(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Backtests that take no time; the folders that they were run in."""
    taken: list[Path] = []

    def backtest(_files: object, out: Path, _settings: object, **_: object) -> None:
        taken.append(out)
        (out / "state").mkdir(parents=True)
        (out / "metrics.json").write_text(json.dumps(metrics()), encoding="utf-8")
        said = [
            (0, 0, "a", 0.9),
            (0, 1, "a", 0.6),
            (1, 0, "b", 0.9),
            (1, 1, "b", 0.8),
            (1, 2, "a", 0.7),
            (1, 3, "a", 0.9),
        ]
        rows = [dict(zip(("session", "row", "answer", "confidence"), one, strict=True)) for one in said]
        (out / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    monkeypatch.setattr(run_module, "backtest", backtest)
    return taken


def take(folder: Path, stream: Recorded = STREAM, settings: tuple[str, ...] = (), **more: Any) -> ScenarioRun:
    return run(stream, folder, settings, **{"memory": 10, "seed": 0, "code": "x", "fresh": False, **more})


# ── one scenario ──
def test_a_finished_scenario_is_not_run_again_whatever_the_code(tmp_path: Path, backtests: list[Path]) -> None:
    first = take(tmp_path)
    assert take(tmp_path, code="y") == first == kept_run(tmp_path)
    assert first.given["code"] == "x"
    assert len(backtests) == 1
    assert not (tmp_path / "backtest" / "state").exists(), "hundreds of megabytes"
    assert take(tmp_path, code="y", fresh=True).given["code"] == "y"
    take(tmp_path, settings=("lora.ewc=0",))
    take(tmp_path, settings=("lora.ewc=0",), seed=1)
    take(tmp_path, Recorded(ROWS[:3], ROWS), settings=("lora.ewc=0",), seed=1)
    assert len(backtests) == 5


def test_an_interrupted_scenario_goes_on_unless_something_is_different(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []

    def interrupted(_files: object, out: Path, _settings: object, **_: object) -> None:
        seen.append((out / "half").exists())
        out.mkdir(exist_ok=True)
        (out / "half").touch()
        raise ScenarioFailed("stopped")

    monkeypatch.setattr(run_module, "backtest", interrupted)
    for more in ({}, {}, {"code": "y"}, {"code": "y"}, {"code": "y", "fresh": True}):
        with pytest.raises(ScenarioFailed):
            take(tmp_path, **more)
    assert seen == [False, True, False, True, False]
    assert kept_run(tmp_path) is None


def test_the_figures_are_those_of_the_backtest_and_of_its_answers(tmp_path: Path, backtests: list[Path]) -> None:
    found = take(tmp_path)
    figures = found.figures
    assert (figures["acc"], figures["lowest"], figures["memory_bytes"], figures["wall_seconds"]) == (0.5, 0.5, 11, 16.0)
    assert (figures["learn_cpu_seconds"], figures["cpu_seconds"], figures["quarantined"]) == (4.0, 18.0, 2)
    # Of four rows after the last session the first and the last are wrong, and one of the first two was right before.
    assert figures["negative_flips"] == pytest.approx(1 / 2)
    assert figures["ece"] == pytest.approx((2 * 0.9 + (1 - 0.8) + (1 - 0.7)) / 4)
    assert figures["aurc"] == pytest.approx((1 + 1 + 2 / 3 + 2 / 4) / 4)
    last = found.sessions[-1]
    assert (last["learn_cpu_seconds"], last["learn_wall_seconds"], last["outcomes"]) == (2.0, 1.5, {"first": "promote"})


def test_a_backtest_is_a_process_whose_last_words_tell_why_it_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    program = tmp_path / "python"
    program.write_text(
        f'#!/bin/sh\necho "$@" > {tmp_path}/given\necho one >&2\necho two >&2\nexit 3\n', encoding="utf-8"
    )
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    with pytest.raises(ScenarioFailed, match="status 3: one two"):
        take(tmp_path / "it", settings=("lora.ewc=0", "seed=9"))
    assert "one" in capfd.readouterr().err, "progress is seen"
    given = (tmp_path / "given").read_text(encoding="utf-8")
    folder = tmp_path / "it"
    assert f"--stream {folder}/stream.jsonl --eval {folder}/eval.jsonl --out {folder}/backtest" in given
    assert "--memory-per-class 10 --seed 0 --set lora.ewc=0 --set seed=9" in given


# ── goals ──
def finished(acc: float = 0.96, sessions: tuple[dict[str, Any], ...] = (), **figures: Any) -> ScenarioRun:
    given = {"settings": [], "code": "x"}
    usual = {"aaa": 0.97, "forgetting": 0.01, "learn_cpu_seconds": 50.0, "cpu_seconds": 90.0, "memory_samples": 300}
    rates = {"ece": 0.02, "negative_flips": 0.001}
    return ScenarioRun(given, {"acc": acc, **usual, **rates, **figures}, sessions)


def last(cpu: float, wall: float, learned: int = 9) -> tuple[dict[str, Any], ...]:
    end = {"learn_cpu_seconds": cpu, "learn_wall_seconds": wall, "learned": learned}
    return {"learn_cpu_seconds": 99.0, "learn_wall_seconds": 99.0, "learned": 0}, end


def test_goals_are_judged_by_their_figures() -> None:
    runs = {
        BASE: finished(0.960),
        "shuffled_10x15": finished(0.964),
        "shuffled_15x10": finished(0.959),
        "noise_20": finished(0.946),
        "delayed_30": finished(0.945),
    }
    scratch = ScratchCost((100.0, 300.0), True, "a file", {})
    found = {one.name: one for one in goals(runs, {"cpu_ratio": 0.9, "wall_ratio": 1.2}, scratch)}
    # Against the better of the two orders of fifteen labels a session.
    assert found["15x10"].value == pytest.approx(0.5)
    assert found["noise"].value == pytest.approx(1.4)
    assert found["delay"].value == pytest.approx(1.5)
    assert found["cost"].value == pytest.approx(12.5)
    assert found["history"].value == 1.2
    assert {name: (one.met, one.aim_met) for name, one in found.items()} == {
        "15x10": (True, False),
        "noise": (True, False),
        "delay": (True, True),
        "cost": (True, False),
        "history": (False, False),
    }
    assert failing(list(found.values())) == ["history"]
    table = "\n".join(lines(runs, list(found.values()), ablation(runs)))
    assert "1.20 ×, at most 1.1: MISSED" in table
    assert "12.50 %, at most 25: met" in table
    assert "noise_20" in table


def test_what_is_not_finished_is_neither_met_nor_missed() -> None:
    found = goals({"noise_20": finished()}, None, None)
    assert {(one.value, one.met, one.aim_met) for one in found} == {(None, None, None)}
    assert failing(found) == []
    assert "not known yet" in "\n".join(lines({}, found, []))


def test_a_history_costs_what_its_last_turn_costs_in_the_middle_of_its_repeats() -> None:
    seconds = {1: [(10.0, 8.0), (12.0, 6.0), (50.0, 7.0)], 10: [(30.0, 9.0), (15.0, 7.0), (14.0, 14.0)]}
    runs = {
        history_name(times, repeat): finished(sessions=last(*pair))
        for times, pairs in seconds.items()
        for repeat, pair in enumerate(pairs)
    }
    found = history_costs(runs, 3)
    assert found is not None
    assert (found["cpu_ratio"], found["wall_ratio"]) == (15 / 12, 9 / 7)
    assert [one["cpu_seconds"] for one in found["long"]] == [30.0, 15.0, 14.0]
    assert found["short"][0]["learned"] == 9
    del runs[history_name(10, 2)]
    assert history_costs(runs, 3) is None


def test_the_ablation_tells_what_each_part_adds() -> None:
    def told(lora: float | None, outcome: str) -> dict[str, Any]:
        return {"acc_lora": lora, "acc_head": 0.9, "outcomes": {"head": "promote", "lora": outcome}}

    several = (told(None, "keep"), told(0.94, "promote"), told(0.92, "keep"))
    runs = {
        "without_lora": finished(sessions=(told(None, "keep"),)),
        "without_analytic_head": finished(sessions=several[1:]),
        BASE: finished(sessions=several),
    }
    full, no_head, no_lora = ablation(runs)
    assert [row["name"] for row in (full, no_head, no_lora)] == ["full", "without_analytic_head", "without_lora"]
    assert full["lora_minus_head"] == pytest.approx(0.03)
    assert (full["lora_candidates"], full["lora_promoted"], full["cpu_seconds"], full["acc"]) == (2, 1, 50.0, 0.96)
    # Without the head the candidates are the learner.
    assert (no_head["acc"], no_head["aaa"], no_head["forgetting"]) == (0.92, pytest.approx(0.93), None)
    assert (no_lora["lora_minus_head"], no_lora["lora_candidates"]) == (None, 0)


# ── retraining from scratch ──
ORDER = Order(
    "10x15",
    0,
    tuple(Session(number, Rows(("t",) * rows, ("a",) * rows)) for number, rows in enumerate((10, 30))),
    (Rows((), ()),) * 2,
)


def continual(path: Path, *costs: float, **changes: Any) -> Path:
    one = {"contestant": "joint_lora", "order": "10x15", "seed": 2, "settings": {}, **changes}
    one["sessions"] = [{"cpu_seconds": cost} for cost in costs]
    path.write_text(json.dumps({"setup": {"threads": 2}, "runs": [one]}), encoding="utf-8")
    return path


def test_costs_of_retraining_are_taken_from_a_result(tmp_path: Path) -> None:
    file = tmp_path / "continual.json"
    assert scratch_from_file(file, ORDER) is None
    found = scratch_from_file(continual(file, 7.0, 20.0), ORDER)
    assert found == ScratchCost((7.0, 20.0), True, "continual.json, seed 2", {"threads": 2})
    found = scratch_from_file(continual(file, 20.0), ORDER)
    assert found == ScratchCost((5.0, 20.0), False, "continual.json, seed 2", {"threads": 2})
    assert scratch_from_file(continual(file, 20.0, order="10x15s"), ORDER) is None
    assert scratch_from_file(continual(file, 20.0, contestant="er"), ORDER) is None
    assert scratch_from_file(continual(file, 20.0, settings={"reduced": {}}), ORDER) is None
    assert scratch_from_file(continual(file, 1.0, 2.0, 3.0), ORDER) is None
    assert found is not None
    write_scratch(found, tmp_path / "new" / "result.json")
    assert read_scratch(tmp_path / "new" / "result.json") == found


# ── the command ──
@pytest.fixture
def command(data: Path, tiny_encoder: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    def call(*more: str) -> dict[str, Any]:
        arguments = ["--data", str(data), "--model", str(tiny_encoder), "--out", str(tmp_path / "out")]
        arguments += [
            "--threads",
            "1",
            "--eval",
            "val",
            "--continual",
            str(tmp_path / "none"),
            "--results",
            str(tmp_path),
        ]
        scenarios.main([*arguments, *more])
        found: dict[str, Any] = json.loads((tmp_path / "scenarios.json").read_text(encoding="utf-8"))
        return found

    return call


@pytest.mark.parametrize(
    ("only", "wanted"),
    [
        (None, {BASE, "noise_20", "without_ewc", "history_x1_0"}),
        (["noise_20"], {"noise_20"}),
        (["ablation"], {BASE, "without_ewc"}),
        (["history_x10", "noise_20"], {"history_x1_0", "noise_20"}),
        (["from_scratch"], {BASE}),
    ],
)
def test_only_what_is_asked_for_is_run(only: list[str] | None, wanted: set[str]) -> None:
    names = (BASE, "noise_20", "without_ewc", "history_x1_0")
    assert {name for name in names if scenarios.wanted(name, only)} == wanted


def test_each_setting_of_the_ablation_is_one() -> None:
    for settings in (*ABLATIONS.values(), QUICK.settings):
        assert load_settings(None, settings, {}) != load_settings(None, (), {})
    assert FULL.settings == ()


def test_the_command_tells_of_late_labels_what_a_backtest_finds(
    command: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def here(files: tuple[Path, Path], out: Path, settings: list[str], *, memory: int, seed: int) -> None:
        run_backtest(*files, out, load_settings(None, [*settings, f"memory.per_class={memory}", f"seed={seed}"], {}))

    monkeypatch.setattr(run_module, "backtest", here)
    small = ["model.features=256", "model.ridge=[0.1]", "lora.enabled=false", "memory.pending_labels_below=1"]
    found = command("--only", "delayed_30", *(part for one in small for part in ("--set", one)))
    late = found["scenarios"]["delayed_30"]
    assert [one["session"] for one in late["sessions"]] == [0, 1, 2]
    assert [one["acc_seen"] > 0 for one in late["sessions"]] == [False, True, True]
    assert [one["learned"] > 0 for one in late["sessions"]] == [False, True, True]
    assert late["sessions"][2]["acc_seen"] == late["figures"]["acc"]
    assert 0 < late["figures"]["learn_cpu_seconds"] < late["figures"]["cpu_seconds"]
    assert "model.features=256" in late["settings"]
    assert found["missing"][BASE] == found["missing"]["from_scratch"] == "not run yet"
    assert found["setup"]["set"] == small
    assert "delayed_30" in capsys.readouterr().out


def test_a_scenario_that_fails_is_missing_with_the_reason(
    command: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise ScenarioFailed("out of memory")

    monkeypatch.setattr(run_module, "backtest", refuse)
    found = command("--only", BASE, "noise_20")
    assert found["missing"][BASE] == found["missing"]["noise_20"] == "out of memory"
    assert found["scenarios"] == {}
    assert found["goals"][0]["met"] is None


def test_joint_lora_is_trained_once_where_no_result_has_it(
    command: Callable[..., dict[str, Any]], backtests: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[int] = []

    def train(order: Order, *_: Any, **__: Any) -> ScratchCost:
        trained.append(len(order.sessions))
        return ScratchCost((1.0, 3.0), False, "trained here", {})

    monkeypatch.setattr(scenarios, "measured_scratch", train)
    found = command("--only", "from_scratch")
    assert found["from_scratch"]["cpu_seconds"] == [1.0, 3.0]
    cost = next(one for one in found["goals"] if one["name"] == "cost")
    assert (cost["value"], cost["met"]) == (100 * 4.0 / 4.0, False)
    command("--only", "noise_20")
    command("--only", "from_scratch")
    assert trained == [2]
    assert len(backtests) == 2
    command("--only", "from_scratch", "--fresh")
    assert trained == [2, 2]


def test_figures_in_part_or_with_other_settings_stay_out_of_the_results(
    data: Path, tmp_path: Path, backtests: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scenarios, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(scenarios, "scratch", lambda *_: ScratchCost((1.0,), True, "a file", {}))
    monkeypatch.setattr(scenarios, "scenarios", lambda *_: (scenarios.Scenario(BASE, "as it is", lambda: STREAM),))
    common = ["--data", str(data), "--out", str(tmp_path / "out")]
    for more in (["--eval", "val"], ["--quick"], ["--set", "lora.epochs=1"], ["--only", "noise_20"]):
        scenarios.main([*common, *more])
    assert not (tmp_path / "results").exists()
    assert len(backtests) == 3
    scenarios.main(common)
    assert json.loads((tmp_path / "results" / "scenarios.json").read_text(encoding="utf-8"))["missing"] == {}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--memory-per-class", "1"], "must be at least 2, got 1"),
        (["--only", "nosie"], "invalid choice: 'nosie'"),
        (["--data", "nowhere"], "no stream_10x15.jsonl in nowhere"),
    ],
)
def test_what_cannot_be_used_is_refused(
    command: Callable[..., dict[str, Any]], capsys: Any, arguments: list[str], said: str
) -> None:
    with pytest.raises(SystemExit):
        command(*arguments)
    assert said in capsys.readouterr().err
