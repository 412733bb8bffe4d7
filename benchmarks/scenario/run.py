"""One scenario: a `perdure backtest` of its own process, in a folder of its own, run once."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from contestants.figures import calibration_error, negative_flips, risk_coverage_area
from contestants.loop import read_answers
from perdure.dataset import file_digest
from perdure.errors import PerdureError
from scenario.streams import Recorded

RESULT = "result.json"
LAST_LINES = 5
"""What is kept of what a backtest says, for the reason why it failed."""
SESSION_FIELDS = ("session", "acc_seen", "acc_head", "acc_lora", "verdict", "learned", "skipped", "quarantined")
SECONDS = ("cpu_seconds", "learn_cpu_seconds", "wall_seconds")
REPORTED = ("acc", "aaa", "bwt", "forgetting", "learning_acc", "memory_samples", "memory_bytes", "cpu_seconds")


class ScenarioFailed(PerdureError):
    """A backtest ended with an error; the message is the last of what it said."""


@dataclass(frozen=True, slots=True)
class Given:
    """What the figures of a scenario depend on."""

    settings: tuple[str, ...]
    """`section.name=value`, over Perdure's defaults."""
    memory: int
    seed: int
    stream: str
    evaluation: str
    """Digests of both files."""
    code: str
    """Digest of Perdure's own code."""

    def same_task(self, other: Mapping[str, Any]) -> bool:
        """`other`, read from JSON, asks for the same; the code may be another."""
        mine = json.loads(json.dumps(asdict(self)))
        return all(other.get(name) == value for name, value in mine.items() if name != "code")


@dataclass(frozen=True, slots=True)
class ScenarioRun:
    """A finished scenario."""

    given: Mapping[str, Any]
    figures: Mapping[str, Any]
    """Fractions, seconds, bytes and counts, as in `metrics.json`; a few more from the single answers."""
    sessions: tuple[Mapping[str, Any], ...]


def run(
    stream: Recorded, folder: Path, settings: Sequence[str], *, memory: int, seed: int, code: str, fresh: bool
) -> ScenarioRun:
    """The scenario, or what is kept of it.

    A finished one is not run again, whatever the code is by now: `given.code` says which it was. One that was
    interrupted goes on if all is as it was, the code included.

    Args:
        stream: rows that arrive, and rows to be evaluated on.
        folder: of this scenario alone. Its state is deleted at the end, which would be hundreds of megabytes.
        settings: `section.name=value`.
        memory: samples per class.
        seed: of the backtest.
        code: digest of Perdure's own code.
        fresh: run it again.

    Raises:
        ScenarioFailed: the backtest fails.
    """
    files = stream.write(folder)
    given = Given(tuple(settings), memory, seed, file_digest(files[0]), file_digest(files[1]), code)
    kept = folder / RESULT
    if kept.exists() and not fresh:
        found = _read(kept)
        if given.same_task(found.given):
            return found
    kept.unlink(missing_ok=True)
    out, begun = folder / "backtest", folder / "given.json"
    mine = json.dumps(asdict(given), indent=1)
    if fresh or not begun.exists() or begun.read_text(encoding="utf-8") != mine:
        shutil.rmtree(out, ignore_errors=True)
        begun.write_text(mine, encoding="utf-8")
    backtest(files, out, settings, memory=memory, seed=seed)
    finished = _told(given, out, [row.label for row in stream.evaluation])
    part = kept.with_suffix(".part")
    part.write_text(json.dumps(asdict(finished), indent=1) + "\n", encoding="utf-8")
    part.replace(kept)
    shutil.rmtree(out / "state")
    return _read(kept)


def kept_run(folder: Path) -> ScenarioRun | None:
    """What is kept of a scenario; None where it is not finished."""
    path = folder / RESULT
    return _read(path) if path.exists() else None


def backtest(files: tuple[Path, Path], out: Path, settings: Sequence[str], *, memory: int, seed: int) -> None:
    """Runs `perdure backtest`; what it says of each session is seen as it comes.

    Raises:
        ScenarioFailed: it fails.
    """
    command = [sys.executable, "-c", "from perdure.cli import main; main()", "backtest"]
    command += ["--stream", str(files[0]), "--eval", str(files[1]), "--out", str(out)]
    command += ["--memory-per-class", str(memory), "--seed", str(seed)]
    for setting in settings:
        command += ["--set", setting]
    said: deque[str] = deque(maxlen=LAST_LINES)
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            print(f"  {line}", end="", file=sys.stderr, flush=True)
            said.append(line.strip())
    if process.returncode:
        reason = " ".join(said) or "nothing was said"
        raise ScenarioFailed(f"its backtest ended with status {process.returncode}: {reason}")


def _told(given: Given, out: Path, truth: Sequence[str]) -> ScenarioRun:
    metrics = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    answers = read_answers(out, truth)
    sessions = metrics["sessions"]
    figures = {name: metrics[name] for name in REPORTED} | {
        "lowest": min(min(one["accuracies"]) for one in sessions),
        "ece": calibration_error(answers[-1].confidence, answers[-1].right),
        "aurc": risk_coverage_area(answers[-1].confidence, answers[-1].right),
        "negative_flips": negative_flips([one.right for one in answers]),
        "learn_cpu_seconds": sum(one["learn_cpu_seconds"] for one in sessions),
        "wall_seconds": metrics["wall_seconds"],
        "quarantined": sum(one["quarantined"] for one in sessions),
    }
    told = tuple(
        {name: one[name] for name in (*SESSION_FIELDS, *SECONDS)}
        | {
            "learn_wall_seconds": one["turn"]["wall_seconds"],
            "outcomes": {fate["kind"]: fate["outcome"] for fate in one["turn"]["candidates"]},
        }
        for one in sessions
    )
    return ScenarioRun(asdict(given), figures, told)


def _read(path: Path) -> ScenarioRun:
    fields = json.loads(path.read_text(encoding="utf-8"))
    return ScenarioRun(fields["given"], fields["figures"], tuple(fields["sessions"]))
