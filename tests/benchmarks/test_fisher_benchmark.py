from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import fisher
from fisher import METHODS, Problem, by_func, by_hooks, by_loop, error, problem_of

SMALL = 6


@pytest.fixture(scope="module")
def problem() -> Problem:
    return problem_of(fisher.narrow(), SMALL, seed=1)


def test_the_methods_agree(problem: Problem) -> None:
    wanted = by_loop(problem)
    assert set(wanted) == {*problem.merged.names, "head"}
    assert len(wanted) == 3 * 6 + 1
    assert all(float(value.max()) > 0 for value in wanted.values())
    for found in (by_func(problem, 2), by_func(problem, SMALL), by_hooks(problem)):
        assert error(found, wanted) < 1e-5


def test_both_forms_of_the_layers_say_the_same_and_the_adapter_matters() -> None:
    problem = problem_of(fisher.narrow(), SMALL, seed=2)
    with torch.no_grad():
        merged = problem.merged(problem.hidden)
        beside = fisher.answers(problem.adapted, problem.merged.head, problem.hidden)
        for module in problem.adapted.modules():
            if hasattr(module, "lora_B"):
                module.lora_B["default"].weight.zero_()
        without = fisher.answers(problem.adapted, problem.merged.head, problem.hidden)
    torch.testing.assert_close(merged, beside, rtol=1e-5, atol=1e-4)
    assert float((without - merged).abs().max()) > 1e-2


def test_an_error_is_that_of_the_worst_map() -> None:
    wanted = {"a": torch.tensor([3.0, 4.0]), "b": torch.tensor([1.0])}
    assert error({"a": torch.tensor([3.0, 4.5]), "b": torch.tensor([1.0])}, wanted) == pytest.approx(0.1)
    with pytest.raises(AssertionError):
        error({"a": wanted["a"]}, wanted)


def test_times_are_medians_and_ratios_within_a_round(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    # After one round to warm up: the second round is ten times slower for everybody, the third for the loop alone.
    plan = {name: iter([0.0, 1.0, 10.0, 1.0]) for name in METHODS}
    plan["loop"] = iter([0.0, 3.0, 30.0, 30.0])

    def method(name: str) -> Any:
        def run(_problem: Problem) -> None:
            now[0] += next(plan[name])

        return run

    monkeypatch.setattr(fisher, "METHODS", {name: method(name) for name in METHODS})
    monkeypatch.setattr(fisher.time, "perf_counter", lambda: now[0])
    threads = torch.get_num_threads()
    found = fisher.timed(problem, repeats=3, threads=threads + 1)
    assert torch.get_num_threads() == threads
    assert found["seconds"]["loop"] == 30
    assert found["seconds"]["hooks"] == 1
    assert found["times_as_fast_as_the_loop"]["hooks"] == 3
    assert found["hooks_reach_the_goal"] is False


def test_a_quick_run_writes_its_figures_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    before = fisher.RESULT.read_bytes() if fisher.RESULT.exists() else None
    fisher.main(["--quick", "--cases", "narrow", "--threads", "1"])
    assert (fisher.RESULT.read_bytes() if fisher.RESULT.exists() else None) == before
    result = json.loads((tmp_path / "var/bench/fisher.json").read_text(encoding="utf-8"))
    assert result["setup"]["command"] == "python benchmarks/fisher.py --quick"
    assert result["narrow"]["goal_error_met"] is True
    assert result["narrow"]["samples"] == 8
    (timing,) = result["narrow"]["timings"]
    assert set(timing["seconds"]) == set(timing["runs"]) == set(METHODS)
    assert all(len(runs) == 2 for runs in timing["runs"].values())
    assert "times as fast as the loop" in capsys.readouterr().out


def test_the_committed_figures_are_of_this_benchmark() -> None:
    result = json.loads(fisher.RESULT.read_text(encoding="utf-8"))
    assert result["setup"]["command"] == "python benchmarks/fisher.py"
    for name in fisher.CASES:
        one = result[name]
        assert (one["samples"], one["tokens_per_sample"], one["labels"]) == (64, 16, 150)
        assert max(one["relative_error_to_the_loop"].values()) <= 1e-5
        assert [timing["threads"] for timing in one["timings"]] == [1, 2]
        for timing in one["timings"]:
            assert timing["hooks_reach_the_goal"] == (timing["times_as_fast_as_the_loop"]["hooks"] >= 10)


@pytest.mark.parametrize("argument", [["--repeats", "0"], ["--threads", "0"]])
def test_nothing_to_measure_is_refused(argument: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        fisher.main(argument)
    assert "must be at least 1" in capsys.readouterr().err
