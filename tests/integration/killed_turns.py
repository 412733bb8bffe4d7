"""Runs the turn of a desk once for every stage, each time killed as that stage begins and then run to the end.

    python killed_turns.py SETTINGS.json BASE OUT FROM

SETTINGS.json is for the folder `{folder}`; BASE is a desk with a turn to run. OUT/whole is a copy whose turn is not
killed; OUT/N is one whose turn is killed as its N-th stage (from 0) begins, for each N from the first stage called FROM
on. The last line that is printed is {"stages": [...], "first": N}: the stages of the whole turn, and the first N.

What takes seconds to import is imported once, and each turn runs in a fork, as many at once as there are cores. That is
safe as long as this process has no second thread, which is checked.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import faiss
import matplotlib.pyplot
import scipy.optimize

import perdure.memory
from perdure.config import Settings
from perdure.loop import Loop
from perdure.memory import open_memory
from perdure.registry import Registry
from perdure.stream import open_stream

WARM = (faiss, matplotlib.pyplot, scipy.optimize)

# Small pages, so that a turn is killed between two of them as well.
perdure.memory.PAGE = 60


def turn(settings: Settings, folder: Path, stage: Callable[[str], None]) -> None:
    with open_memory(settings) as memory, open_stream(settings.stream) as stream:
        registry = Registry(settings.registry.url)
        Loop(settings, stream=stream, memory=memory, registry=registry, cache=folder / "cache", stage=stage).turn()


def begun(work: Callable[[], None]) -> int:
    """The process id of a child that does `work`."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:  # noqa: BLE001 (a child of a fork must never return)
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return child


def ended(child: int) -> int:
    """Its wait status."""
    return os.waitpid(child, 0)[1]


def copied(template: str, base: Path, folder: Path) -> Settings:
    shutil.copytree(base, folder)
    return Settings.model_validate_json(template.replace("{folder}", str(folder)))


def whole(template: str, base: Path, folder: Path) -> list[str]:
    """The stages of a turn that is not killed."""
    settings, stages = copied(template, base, folder), folder.with_suffix(".stages")

    def noted(name: str) -> None:
        with stages.open("a", encoding="utf-8") as file:
            file.write(f"{name}\n")

    status = ended(begun(lambda: turn(settings, folder, noted)))
    if status != 0:
        sys.exit(f"the turn that was not killed ended with {status}")
    return stages.read_text(encoding="utf-8").split("\n")[:-1]


def killed_and_run_again(template: str, base: Path, folder: Path, number: int) -> None:
    """A turn that is killed as its stage `number` begins, and then run to the end."""
    settings, seen = copied(template, base, folder), itertools.count()

    def killing(_name: str) -> None:
        if next(seen) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    status = ended(begun(lambda: turn(settings, folder, killing)))
    if not (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL):
        raise RuntimeError(f"the turn that was to be killed at stage {number} ended with {status}")
    status = ended(begun(lambda: turn(settings, folder, lambda _name: None)))
    if status != 0:
        raise RuntimeError(f"killed at stage {number}, the turn that was run again ended with {status}")


def main() -> None:
    template, base, out = Path(sys.argv[1]).read_text(encoding="utf-8"), Path(sys.argv[2]), Path(sys.argv[3])
    tasks = Path("/proc/self/task")
    threads = len(list(tasks.iterdir())) if tasks.exists() else 1
    if threads != 1:
        sys.exit(f"this process has {threads} threads and must not fork: set OMP_NUM_THREADS=1")
    stages = whole(template, base, out / "whole")
    first = stages.index(sys.argv[4])
    running: list[int] = []
    for number in range(first, len(stages)):
        if len(running) == (os.cpu_count() or 1):
            check(running.pop(0))
        running.append(begun(lambda number=number: killed_and_run_again(template, base, out / str(number), number)))
    for child in running:
        check(child)
    sys.stdout.write(json.dumps({"stages": stages, "first": first}))


def check(child: int) -> None:
    if ended(child) != 0:
        sys.exit("a turn did not end as it should: see above")


if __name__ == "__main__":
    main()
