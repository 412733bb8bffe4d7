"""What is printed at the end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from scenario.goals import Goal
from scenario.run import ScenarioRun

FIGURES = ("acc", "aaa", "forgetting", "ece", "negative_flips")
ABLATION = ("acc", "aaa", "forgetting", "lora_minus_head")
SIGNS = {"points": "points", "percent": "%", "times": "×"}


def lines(
    runs: Mapping[str, ScenarioRun], goals: Sequence[Goal], ablation: Sequence[Mapping[str, Any]]
) -> Iterator[str]:
    """Scenarios, the ablation and the goals, in percent but for seconds."""
    yield f"{'scenario':24}" + "".join(f"{name[:9]:>10}" for name in FIGURES) + f"{'turns s':>10}{'all s':>10}"
    for name, run in runs.items():
        seconds = f"{run.figures['learn_cpu_seconds']:10.1f}{run.figures['cpu_seconds']:10.1f}"
        yield f"{name:24}" + "".join(_cell(run.figures[one]) for one in FIGURES) + seconds
    if ablation:
        yield ""
        yield f"{'ablation':24}" + "".join(f"{name[:9]:>10}" for name in ABLATION) + f"{'promoted':>10}{'turns s':>10}"
        for row in ablation:
            promoted = f"{row['lora_promoted']} of {row['lora_candidates']}"
            end = f"{promoted:>10}{row['cpu_seconds']:10.1f}"
            yield f"{row['name']:24}" + "".join(_cell(row[one]) for one in ABLATION) + end
    yield ""
    for goal in goals:
        yield f"{goal.name:10}{_verdict(goal):38}{goal.about}"


def _cell(value: float | None) -> str:
    return "         –" if value is None else f"{100 * value:10.2f}"


def _verdict(goal: Goal) -> str:
    sign = SIGNS[goal.unit]
    if goal.value is None:
        return f"not known yet; at most {goal.must:g} {sign}"
    return f"{goal.value:.2f} {sign}, at most {goal.must:g}: {'met' if goal.met else 'MISSED'}"
