"""Avalanche's own plugins, run in an environment of their own: it wants other packages than Perdure has.

Lomonaco et al., "Avalanche: an End-to-End Library for Continual Learning", CVPR Workshops 2021.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import numpy as np

import perdure
from contestants.backbone import located
from contestants.child import Task, run_child
from contestants.contest import Outcome, Unavailable
from contestants.figures import Answers, SessionFigures
from contestants.orders import write_order

PACKAGE = "avalanche-lib==0.6.0"
SAME = ("torch", "transformers", "peft", "safetensors", "numpy", "scipy", "pydantic", "uuid-utils", "pyyaml")
"""Packages that the adapter needs there, in the versions that are here."""
MARK = "complete"
NOTE = "driven by Avalanche's own training loop: batches are not sorted by length, all else is the recipe"


def avalanche_replay(task: Task) -> Outcome:
    """`ReplayPlugin` over `ClassBalancedBuffer`.

    Raises:
        Unavailable: Avalanche cannot be installed, or fails.
    """
    return _run("replay", task)


def avalanche_ewc(task: Task) -> Outcome:
    """`EWCPlugin`, online.

    Raises:
        Unavailable: Avalanche cannot be installed, or fails.
    """
    return _run("ewc", task)


def _run(plugin: str, task: Task) -> Outcome:
    python = environment(task.environments / "avalanche")
    stream, evaluation = write_order(task.order, task.folder)
    given = {
        "plugin": plugin,
        "stream": str(stream),
        "evaluation": str(evaluation),
        "model": located(task.model),
        "memory": task.memory,
        "seed": task.seed,
        "threads": task.threads,
        "recipe": asdict(task.recipe),
    }
    said, outcome = task.folder / "task.json", task.folder / "outcome.json"
    said.write_text(json.dumps(given), encoding="utf-8")
    places = [Path(__file__).parents[1], Path(perdure.__file__).parents[1]]
    run_child(
        [str(python), "-m", "contestants.avalanche_run", str(said), str(outcome)],
        {"PYTHONPATH": os.pathsep.join(str(place.resolve()) for place in places)},
    )
    return read_outcome(outcome)


def read_outcome(path: Path) -> Outcome:
    """What the child process wrote."""
    fields = json.loads(path.read_text(encoding="utf-8"))
    return Outcome(
        tuple(SessionFigures(**{**one, "accuracies": tuple(one["accuracies"])}) for one in fields["sessions"]),
        tuple(
            Answers(np.asarray(one["right"], dtype=bool), np.asarray(one["confidence"], dtype=np.float32))
            for one in fields["answers"]
        ),
        int(fields["bytes_kept"]),
        int(fields["samples_kept"]),
        NOTE,
    )


def environment(folder: Path) -> Path:
    """The Python of an environment with Avalanche in it, made in `folder` where there is none.

    Raises:
        Unavailable: it cannot be made.
    """
    python = folder / "bin" / "python"
    if (folder / MARK).exists():
        return python
    uv = Path(sys.executable).parent / "uv"
    if not uv.exists():
        raise Unavailable(f"Avalanche is not installed, and there is no {uv.name} beside {sys.executable} to bring it")
    run_child([sys.executable, "-m", "venv", "--without-pip", str(folder)])
    install = [str(uv), "pip", "install", "--quiet", "--python", str(python)]
    run_child([*install, PACKAGE, *(f"{name}=={version(name)}" for name in SAME)])
    # Perdure finds its version in what is installed, though its code comes from the path.
    run_child([*install, "--no-deps", str(Path(perdure.__file__).parents[2])])
    (folder / MARK).touch()
    return python
