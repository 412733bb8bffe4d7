"""What a contestant that runs as a process of its own is given, and how it is run."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from contestants.base import Order
from contestants.contest import Unavailable
from contestants.recipe import Recipe

LONGEST_REASON = 300


@dataclass(frozen=True, slots=True)
class Task:
    """One run for a child process."""

    order: Order
    memory: int
    seed: int
    model: str
    threads: int
    recipe: Recipe
    folder: Path
    """Of this run alone; what lies in it from before belongs to the same run."""
    environments: Path
    """Where environments may be made for contestants that need packages of their own."""


def run_child(command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
    """Runs `command` to its end.

    Raises:
        Unavailable: it cannot be started or fails; with the last of what it said.
    """
    try:
        done = subprocess.run(
            list(command), capture_output=True, text=True, check=False, env={**os.environ, **(environment or {})}
        )
    except OSError as error:
        raise Unavailable(f"{command[0]} cannot be started: {error.strerror or error}") from error
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or "nothing was said")[-LONGEST_REASON:]
        raise Unavailable(f"its process ended with status {done.returncode}: {' '.join(said.split())}")
