"""Perdure beside each other contestant on the same rows, and what the contest is to show."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from contestants.contest import Run
from perdure.judge.interval import paired_difference

OURS = "perdure"
CLOSED_FORM = "ridge_all"
"""The order-free closed form whose forgetting is what more labels cost."""
REGULARISED = "er_ewc"
ALPHA = 0.025
"""Error probability of each end of an interval: 95 % together."""
POINTS = 100


@dataclass(frozen=True, slots=True)
class Difference:
    """Accuracy of Perdure minus that of another contestant, after the last session, in percentage points."""

    contestant: str
    order: str
    memory: int
    seeds: tuple[int, ...]
    """Those that both have run."""
    points: float
    lower: float | None
    upper: float | None
    """None where the single answers of one of the two are not known. The 95 % interval of the evaluation rows: seeds
    are asked about the same ones and do not make it narrower, so it is that of one seed with the mean number of rows on
    which just one of the two is right."""


@dataclass(frozen=True, slots=True)
class Goal:
    """A figure that should be large; in percentage points."""

    name: str
    about: str
    value: float | None
    """None where what it is made of is not run."""
    must: float
    aim: float
    met: bool | None
    aim_met: bool | None


def differences(runs: Sequence[Run], *, ours: str = OURS) -> list[Difference]:
    """One for each other contestant, order and memory that both have run, best contestant first."""
    keys = dict.fromkeys(
        (run.given.contestant, run.given.order, run.given.memory) for run in runs if run.given.contestant != ours
    )
    found = [_difference(runs, ours, *key) for key in keys]
    return sorted((one for one in found if one), key=lambda one: (one.order, one.memory, one.points))


def _difference(runs: Sequence[Run], ours: str, other: str, order: str, memory: int) -> Difference | None:
    mine, theirs = (_finished(runs, name, order, memory) for name in (ours, other))
    seeds = sorted(mine.keys() & theirs.keys())
    if not seeds:
        return None
    points = POINTS * statistics.fmean(_accuracy(mine[seed]) - _accuracy(theirs[seed]) for seed in seeds)
    pairs = [(mine[seed].right, theirs[seed].right) for seed in seeds]
    told = [(one, two) for one, two in pairs if one and two]
    if len(told) < len(pairs):
        return Difference(other, order, memory, tuple(seeds), points, None, None)
    gains = statistics.fmean(_only(one, two) for one, two in told)
    losses = statistics.fmean(_only(two, one) for one, two in told)
    bound = paired_difference(round(gains), round(losses), len(told[0][0]), ALPHA)
    return Difference(other, order, memory, tuple(seeds), points, POINTS * bound.lower, POINTS * bound.upper)


def _finished(runs: Sequence[Run], contestant: str, order: str, memory: int) -> dict[int, Run]:
    return {
        run.given.seed: run
        for run in runs
        if (run.given.contestant, run.given.order, run.given.memory) == (contestant, order, memory) and run.figures
    }


def _accuracy(run: Run) -> float:
    assert run.figures is not None
    return run.figures.acc


def _only(right: str, other: str) -> int:
    """Rows on which `right` is right and `other` is not."""
    return sum(one == "1" and two == "0" for one, two in zip(right, other, strict=True))


def goals(runs: Sequence[Run], *, memory: int, ceilings: Collection[str]) -> list[Goal]:
    """What the contest is to show, of what has been run.

    Args:
        runs: all of one evaluation file.
        memory: samples per class, the headline's.
        ceilings: contestants that keep everything, and are no rivals.
    """
    beside = [one for one in differences(runs) if one.memory == memory]
    rivals = [one for one in beside if one.contestant not in ceilings]
    ten, fifteen = _mean(runs, OURS, "10x15s", memory), _mean(runs, OURS, "15x10s", memory)
    made = [_goal("accuracy", "10x15, after the last session", _mean(runs, OURS, "10x15", memory), 96.3, 97.2)]
    lost = None if ten is None or fifteen is None else fifteen - ten
    made.append(_goal("more_sessions", "15x10s minus 10x15s", lost, -0.5, -0.2))
    for order in dict.fromkeys(run.given.order for run in runs):
        excess = [_mean(runs, name, order, memory, figure="forgetting") for name in (CLOSED_FORM, OURS)]
        gap = None if None in excess else float(excess[0] or 0) - float(excess[1] or 0)
        made.append(
            _goal(f"forgetting {order}", "forgetting of the order-free closed form, minus Perdure's", gap, -0.3, 0.0)
        )
        here = [one for one in rivals if one.order == order]
        best = min(here, key=lambda one: one.points, default=None)
        named = f"over the best rival ({best.contestant})" if best else "over the best rival"
        # Not worse: the interval's lower end. Better: the estimate, and the interval is above 0.
        lower = best.lower if best else None
        met = None if lower is None else lower > -0.5
        aim = None if best is None or lower is None else best.points >= 0.5 and lower > 0
        made.append(Goal(f"best rival {order}", named, best.points if best else None, -0.5, 0.5, met, aim))
        regularised = next((one.points for one in here if one.contestant == REGULARISED), None)
        made.append(_goal(f"er_ewc {order}", "over replay with EWC, tuned", regularised, 2.0, 3.0))
    return made


def _mean(runs: Sequence[Run], contestant: str, order: str, memory: int, *, figure: str = "acc") -> float | None:
    values = [
        getattr(run.figures, figure)
        for run in runs
        if run.figures and (run.given.contestant, run.given.order, run.given.memory) == (contestant, order, memory)
    ]
    return POINTS * statistics.fmean(values) if values else None


def _goal(name: str, about: str, value: float | None, must: float, aim: float) -> Goal:
    rounded = None if value is None else round(value, 9)
    return Goal(
        name,
        about,
        value,
        must,
        aim,
        None if rounded is None else rounded >= must,
        None if rounded is None else rounded >= aim,
    )
