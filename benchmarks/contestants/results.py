"""All runs in one JSON: means and deviations over seeds, and each run."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

from contestants.committed import told
from contestants.comparison import differences, goals
from contestants.contest import Run
from contestants.figures import Figures

FIGURES = tuple(one.name for one in fields(Figures))


def spread(values: Iterable[float | None]) -> dict[str, float | None]:
    """Mean and sample standard deviation of those that are there; None where there are none, or just one."""
    there = [value for value in values if value is not None]
    return {
        "mean": statistics.fmean(there) if there else None,
        "std": statistics.stdev(there) if len(there) > 1 else None,
    }


def table(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """One row for each contestant, order and memory: each figure's mean and deviation over seeds."""
    rows = []
    for key in dict.fromkeys(_key(run) for run in runs):
        figures = [run.figures for run in runs if _key(run) == key and run.figures]
        if not figures:
            continue
        contestant, order, memory = key
        seeds = [run.given.seed for run in runs if _key(run) == key and run.figures]
        row: dict[str, Any] = {"contestant": contestant, "order": order, "memory": memory, "seeds": seeds}
        rows.append(row | {name: spread(getattr(one, name) for one in figures) for name in FIGURES})
    return rows


def results(
    runs: Sequence[Run],
    *,
    setup: Mapping[str, Any],
    about: Mapping[str, str],
    memory: int,
    ceilings: Collection[str],
    taken: Callable[[Run], Mapping[str, Any]],
) -> dict[str, Any]:
    """What the committed JSON holds. Figures are fractions; `cpu_seconds` are seconds, `bytes_kept` bytes.

    Differences and goals are percentage points.

    Args:
        runs: all of one evaluation file.
        setup: what the last of them were taken with.
        about: a line on each contestant.
        memory: samples per class, the headline's.
        ceilings: contestants that keep everything, and are no rivals.
        taken: what a run was taken with.
    """
    return {
        "setup": dict(setup),
        "headline_memory": memory,
        "contestants": dict(about),
        "goals": [asdict(one) for one in goals(runs, memory=memory, ceilings=ceilings)],
        "perdure_minus": [asdict(one) for one in differences(runs)],
        "missing": [_named(run) | {"reason": run.missing} for run in runs if run.missing is not None],
        "table": table(runs),
        "runs": [told(run, taken(run)) for run in runs if run.figures],
    }


def curves(runs: Sequence[Run], order: str, memory: int) -> dict[str, list[tuple[float, float]]]:
    """For each contestant (sessions seen, mean accuracy on what has been seen), over the seeds of one order."""
    found: dict[str, list[tuple[float, float]]] = {}
    for run in runs:
        if run.figures is None or (run.given.order, run.given.memory) != (order, memory):
            continue
        name = run.given.contestant
        if name in found:
            continue
        same = [
            {len(one.accuracies): one.acc_seen for one in other.sessions}
            for other in runs
            if other.figures and (other.given.contestant, *_key(other)[1:]) == (name, order, memory)
        ]
        counts = sorted(set().union(*same))
        found[name] = [(float(count), statistics.fmean(one[count] for one in same if count in one)) for count in counts]
    return found


def lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The table as text, best accuracy first; points are percentage points."""
    names = ("acc", "aaa", "bwt", "forgetting", "lowest", "ece", "aurc", "negative_flips")
    head = f"{'contestant':18}{'order':8}{'memory':>6} " + "".join(f"{name[:9]:>10}" for name in names)
    ranked = sorted(rows, key=lambda row: (row["order"], -row["memory"], -(row["acc"]["mean"] or 0.0)))
    told = [head + f"{'cpu s':>10}{'bytes':>14}"]
    for row in ranked:
        cells = "".join(
            "         –" if row[name]["mean"] is None else f"{100 * row[name]['mean']:10.2f}" for name in names
        )
        end = f"{row['cpu_seconds']['mean']:10.1f}{row['bytes_kept']['mean']:14,.0f}"
        told.append(f"{row['contestant']:18}{row['order']:8}{row['memory']:6} {cells}{end}")
    return told


def _key(run: Run) -> tuple[str, str, int]:
    return run.given.contestant, run.given.order, run.given.memory


def _named(run: Run) -> dict[str, Any]:
    given = run.given
    return {
        "contestant": given.contestant,
        "order": given.order,
        "seed": given.seed,
        "memory": given.memory,
        "evaluation": given.evaluation,
    }
