"""Runs the turn of a desk once for every stage, each time killed as that stage begins and then run to the end.

    python killed_turns.py SETTINGS.json BASE OUT

SETTINGS.json is for the folder `{folder}`; BASE is a desk with a turn to run; OUT/0, OUT/1, ... are what became of its
copies. In OUT/N.events stand the stages that ran before the kill; the last copy was not killed.

What takes seconds to import is imported once, and each turn runs in a fork. That is safe as long as this process has
no second thread, which is checked.
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


def forked(work: Callable[[], None]) -> int:
    """Wait status of a child that did `work`."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:  # noqa: BLE001 (a child of a fork must never return)
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1]


def main() -> None:
    template, base, out = Path(sys.argv[1]).read_text(encoding="utf-8"), Path(sys.argv[2]), Path(sys.argv[3])
    tasks = Path("/proc/self/task")
    threads = len(list(tasks.iterdir())) if tasks.exists() else 1
    if threads != 1:
        sys.exit(f"this process has {threads} threads and must not fork: set OMP_NUM_THREADS=1")
    for number in itertools.count():
        folder = out / str(number)
        shutil.copytree(base, folder)
        settings = Settings.model_validate_json(template.replace("{folder}", str(folder)))
        events = out / f"{number}.events"
        seen = itertools.count()

        def killed(name: str, number: int = number, events: Path = events, seen: itertools.count[int] = seen) -> None:
            if next(seen) == number:
                os.kill(os.getpid(), signal.SIGKILL)
            with events.open("a", encoding="utf-8") as file:
                file.write(f"{name}\n")

        status = forked(lambda settings=settings, folder=folder, killed=killed: turn(settings, folder, killed))
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
            status = forked(lambda settings=settings, folder=folder: turn(settings, folder, lambda _name: None))
            if status != 0:
                sys.exit(f"killed at stage event {number}, the turn that was run again ended with {status}")
        elif status == 0:
            sys.stdout.write(json.dumps({"copies": number + 1}))
            return
        else:
            sys.exit(f"the turn that was to be killed at stage event {number} ended with {status}")


if __name__ == "__main__":
    main()
