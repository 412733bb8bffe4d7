"""What the scenarios are to show, and whether they do."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from scenario.plan import (
    ABLATIONS,
    BASE,
    DELAYED,
    NOISY,
    SHUFFLED,
    SHUFFLED_15,
    TIMES,
    WITHOUT_HEAD,
    history_name,
)
from scenario.run import ScenarioRun
from scenario.scratch import ScratchCost

Unit = Literal["points", "percent", "times"]
Runs = Mapping[str, ScenarioRun]


@dataclass(frozen=True, slots=True)
class Goal:
    """A figure that should be small."""

    name: str
    about: str
    unit: Unit
    """Points are percentage points of accuracy."""
    value: float | None
    """None where what it is made of is not finished."""
    must: float
    """Most that it may be."""
    aim: float
    met: bool | None
    aim_met: bool | None


def goal(name: str, about: str, unit: Unit, value: float | None, *, must: float, aim: float) -> Goal:
    """The goal with its verdict; what stands on the edge but for rounding errors is met."""
    rounded = None if value is None else round(value, 9)
    met, aim_met = (None, None) if rounded is None else (rounded <= must, rounded <= aim)
    return Goal(name, about, unit, value, must, aim, met, aim_met)


def goals(runs: Runs, history: Mapping[str, Any] | None, scratch: ScratchCost | None) -> tuple[Goal, ...]:
    """All goals.

    Args:
        runs: finished scenarios by name.
        history: what `history_costs` found.
        scratch: what retraining at each session costs.
    """
    base = runs.get(BASE)
    spent = base.figures["learn_cpu_seconds"] if base else None
    share = 100 * spent / sum(scratch.cpu_seconds) if spent is not None and scratch else None
    ratio = max(history["cpu_ratio"], history["wall_ratio"]) if history else None
    # The harder of both comparisons: the file's order may be easier or harder than a shuffled one.
    tens = [_acc(runs, BASE), _acc(runs, SHUFFLED)]
    ten = max(acc for acc in tens if acc is not None) if None not in tens else None
    return (
        goal(
            "15x10",
            "accuracy lost by fifteen sessions of ten labels against ten of fifteen (the better of its two orders)",
            "points",
            _lost(ten, _acc(runs, SHUFFLED_15)),
            must=0.5,
            aim=0.2,
        ),
        goal(
            "noise",
            "accuracy lost to wrong labels in the stream",
            "points",
            _lost(_acc(runs, BASE), _acc(runs, NOISY)),
            must=1.5,
            aim=0.7,
        ),
        goal(
            "delay",
            "accuracy lost where few rows are labelled, and late",
            "points",
            _lost(_acc(runs, BASE), _acc(runs, DELAYED)),
            must=3.0,
            aim=1.5,
        ),
        goal(
            "cost",
            "CPU-seconds of all turns, as a share of retraining from scratch at each session",
            "percent",
            share,
            must=25.0,
            aim=10.0,
        ),
        goal(
            "history",
            f"cost of one update with {TIMES} times the history, against the short one; the worse of CPU and wall time",
            "times",
            ratio,
            must=1.1,
            aim=1.0,
        ),
    )


def history_costs(runs: Runs, repeats: int) -> dict[str, Any] | None:
    """Seconds of the last session's turn after a short and a long history: each repeat, medians and their ratios.

    None while a repeat is missing.
    """
    found: dict[int, list[dict[str, float]]] = {1: [], TIMES: []}
    for repeat in range(repeats):
        for times, costs in found.items():
            one = runs.get(history_name(times, repeat))
            if one is None:
                return None
            last = one.sessions[-1]
            costs.append(
                {
                    "cpu_seconds": last["learn_cpu_seconds"],
                    "wall_seconds": last["learn_wall_seconds"],
                    "learned": last["learned"],
                    "memory_samples": one.figures["memory_samples"],
                }
            )

    def median(times: int, name: str) -> float:
        return statistics.median(one[name] for one in found[times])

    return {
        "short": found[1],
        "long": found[TIMES],
        "cpu_ratio": median(TIMES, "cpu_seconds") / median(1, "cpu_seconds"),
        "wall_ratio": median(TIMES, "wall_seconds") / median(1, "wall_seconds"),
    }


def ablation(runs: Runs) -> list[dict[str, Any]]:
    """A row for Perdure whole and one for each part left out, of what is finished; accuracies are fractions.

    `lora_minus_head` is the mean over sessions of the LoRA candidate's accuracy minus that of the head alone,
    whatever the judge said of it. Without the analytic head the candidates themselves are the learner, served or not,
    and nothing is known of what they forget.
    """
    return [_row(name, runs[name]) for name in (BASE, *ABLATIONS) if name in runs]


def _row(name: str, run: ScenarioRun) -> dict[str, Any]:
    lora = [one["acc_lora"] for one in run.sessions if one["acc_lora"] is not None]
    gains = [one["acc_lora"] - one["acc_head"] for one in run.sessions if one["acc_lora"] is not None]
    outcomes = [one["outcomes"].get("lora") for one in run.sessions]
    row = {
        "name": "full" if name == BASE else name,
        **{figure: run.figures[figure] for figure in ("acc", "aaa", "forgetting")},
        "lora_minus_head": statistics.fmean(gains) if gains else None,
        "lora_candidates": len(lora),
        "lora_promoted": outcomes.count("promote"),
        "cpu_seconds": run.figures["learn_cpu_seconds"],
    }
    if name == WITHOUT_HEAD:
        row |= {
            "acc": run.sessions[-1]["acc_lora"],
            "aaa": statistics.fmean(lora) if len(lora) == len(run.sessions) else None,
            "forgetting": None,
        }
    return row


def _acc(runs: Runs, name: str) -> float | None:
    return float(runs[name].figures["acc"]) if name in runs else None


def _lost(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else 100 * (before - after)


def failing(found: Sequence[Goal]) -> list[str]:
    """Names of the goals that are missed."""
    return [one.name for one in found if one.met is False]
