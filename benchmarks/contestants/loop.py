"""Perdure itself, as `perdure backtest` runs it."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from contestants.child import Task, run_child
from contestants.contest import Outcome
from contestants.figures import Answers, SessionFigures
from contestants.orders import write_order
from perdure.dataset import read_rows
from perdure.learn.challenger import EWC_FILE
from perdure.learn.leverage import LEVERAGE_FILE
from perdure.model.classifier import ADAPTER_FILE
from perdure.registry import Registry

CARRIED = (EWC_FILE, ADAPTER_FILE, LEVERAGE_FILE)

NOTE = "seconds are of each session's turn: ingesting, gate, both learners, drift report, judge"


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
            cpu_seconds=float(one["learn_cpu_seconds"]),
            wall_seconds=float(one["turn"]["wall_seconds"]),
        )
        for one in metrics["sessions"]
    )
    answers = read_answers(out, [row.label for row in read_rows(evaluation)])
    kept = int(metrics["memory_bytes"]) + carried_bytes(Registry(str(out / "state" / "registry")))
    return Outcome(sessions, answers, kept, int(metrics["memory_samples"]), NOTE)


def carried_bytes(registry: Registry) -> int:
    """What the next update needs beside memory: anchor and Fisher information, the challenger's adapter, leverages."""
    cards = [registry.card(version) for version in registry.versions()]
    newest = {name: card.files[name].size for card in cards for name in CARRIED if name in card.files}
    return sum(newest.values())


def read_answers(out: Path, truth: Sequence[str]) -> tuple[Answers, ...]:
    """The answers after each session of the backtest in `out`.

    Args:
        out: with the backtest's `predictions.jsonl`.
        truth: labels of all evaluation rows, in the order of their file.
    """
    right: dict[int, list[bool]] = {}
    confidence: dict[int, list[float]] = {}
    with (out / "predictions.jsonl").open(encoding="utf-8") as file:
        for line in file:
            one = json.loads(line)
            right.setdefault(one["session"], []).append(one["answer"] == truth[one["row"]])
            confidence.setdefault(one["session"], []).append(one["confidence"])
    return tuple(
        Answers(np.asarray(right[session], dtype=bool), np.asarray(confidence[session], dtype=np.float32))
        for session in right
    )
