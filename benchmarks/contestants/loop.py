"""Perdure itself, as `perdure backtest` runs it."""

from __future__ import annotations

import json
import sys

from contestants.child import Task, run_child
from contestants.contest import Outcome
from contestants.figures import SessionFigures
from contestants.orders import write_order

NOTE = (
    "metrics.json has no single predictions: no calibration error, risk-coverage area or negative flips; "
    "CPU-seconds include the evaluation of each session and the predictions made on arrival"
)


def perdure(task: Task) -> Outcome:
    """The backtest's own figures; its settings are the defaults.

    Raises:
        Unavailable: the backtest fails.
    """
    stream, evaluation = write_order(task.order, task.folder)
    out = task.folder / "backtest"
    command = [sys.executable, "-c", "from perdure.cli import main; main()", "backtest"]
    command += ["--stream", str(stream), "--eval", str(evaluation), "--out", str(out)]
    command += ["--memory-per-class", str(task.memory), "--seed", str(task.seed)]
    command += ["--set", f"model.name={task.model}", "--set", f"model.threads={task.threads}"]
    run_child(command)
    metrics = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    sessions = tuple(
        SessionFigures(
            session=int(one["session"]),
            acc_seen=float(one["acc_seen"]),
            accuracies=tuple(float(share) for share in one["accuracies"]),
            cpu_seconds=float(one["cpu_seconds"]),
            wall_seconds=float(one["wall_seconds"]),
        )
        for one in metrics["sessions"]
    )
    return Outcome(sessions, (), int(metrics["memory_bytes"]), int(metrics["memory_samples"]), NOTE)
