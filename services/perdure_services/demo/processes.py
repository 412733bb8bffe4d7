"""The processes of the demo, as they would run in production: fit, API and trainer."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from perdure.client import Client
from perdure.errors import PerdureError
from perdure_services.trainer.child import Child, perdure
from perdure_services.trainer.turn_process import without_settings

GRACE_SECONDS = 6.0
"""What API and trainer get to stop in good order; the trainer's own turn is given up within it."""

READY_SECONDS = 180.0
LOOK_SECONDS = 0.1
LINES_SHOWN = 12


class Processes:
    """Starts the processes, and stops all of them when the block ends, whichever way it ends.

    Args:
        folder: of the demo; the processes run in it, and write their logs to `logs/` there.
        settings: the file with their settings.
        threads: CPU threads of each of them; 0 leaves the choice to their libraries.
        command: makes the command line from the arguments of `perdure`; replaced in tests.
    """

    def __init__(
        self, folder: Path, settings: Path, *, threads: int, command: Callable[..., Sequence[str]] = perdure
    ) -> None:
        self._folder = folder
        self._options = ("--config", str(settings.resolve()))
        self._threads = threads
        self._command = command
        self._children: dict[str, Child] = {}

    def fit(self, data: Path, tick: Callable[[], None]) -> None:
        """Runs `perdure fit` to its end; `tick` is called meanwhile.

        Raises:
            PerdureError: it failed; with the last lines of its log.
        """
        child = self._start("fit", "fit", "--data", str(data.resolve()), *self._options)
        while child.wait(LOOK_SECONDS) is None:
            tick()
        del self._children["fit"]
        if code := child.stop(0):
            raise self._died("fit", code)

    def serve(self, tick: Callable[[], None]) -> str:
        """Starts `perdure serve`, waits until it is ready, and returns its URL.

        Raises:
            PerdureError: it ended, or was not ready in time; with the last lines of its log.
        """
        # Short texts are answered no faster with a second thread, and a turn wants the other core.
        self._start("serve", "serve", *self._options, "--set", "model.threads=1")
        end = time.monotonic() + READY_SECONDS
        while time.monotonic() < end:
            self.check()
            tick()
            if (url := self._url()) and _ready(url):
                return url
            time.sleep(LOOK_SECONDS)
        raise PerdureError(f"the API was not ready within {READY_SECONDS:.0f} s. {self._last_words('serve')}")

    def train(self) -> None:
        """Starts `perdure train`."""
        self._start("train", "train", *self._options)

    def check(self) -> None:
        """Notices when a process that should run does not.

        Raises:
            PerdureError: one has ended; with the last lines of its log.
        """
        for name, child in self._children.items():
            if (code := child.code()) is not None:
                raise self._died(name, code)

    def pids(self) -> dict[str, int]:
        """Of what runs."""
        return {name: child.pid for name, child in self._children.items()}

    def stop(self) -> None:
        """Stops everything, all at once."""
        end = time.monotonic() + GRACE_SECONDS
        for child in self._children.values():
            child.ask()
        while self._children:
            self._children.popitem()[1].stop(max(end - time.monotonic(), 0.0))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _start(self, name: str, *arguments: str) -> Child:
        environ = {**without_settings(os.environ), "DO_NOT_TRACK": "1", "PYTHONUNBUFFERED": "1", "COLUMNS": "120"}
        if self._threads:
            environ["OMP_NUM_THREADS"] = str(self._threads)
        log = self._log(name)
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as file:
            child = Child(
                self._command(*arguments), stdout=file, stderr=subprocess.STDOUT, environ=environ, cwd=self._folder
            )
        self._children[name] = child
        return child

    def _log(self, name: str) -> Path:
        return self._folder / "logs" / f"{name}.log"

    def _url(self) -> str | None:
        found = re.search(rb"https?://[^\s/]+", self._log("serve").read_bytes())
        return found[0].decode() if found else None

    def _died(self, name: str, code: int) -> PerdureError:
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        return PerdureError(f"`perdure {name}` {how}. {self._last_words(name)}")

    def _last_words(self, name: str) -> str:
        log = self._log(name)
        lines = log.read_text(encoding="utf-8", errors="replace").split("\n") if log.exists() else []
        shown = [line.rstrip() for line in lines if line.strip()][-LINES_SHOWN:]
        if not shown:
            return f"It wrote nothing to {log}"
        return f"The end of {log}:\n  " + "\n  ".join(shown)


def _ready(url: str) -> bool:
    with Client(url, api_key="", timeout=5.0) as api:
        return api.ready().ready
