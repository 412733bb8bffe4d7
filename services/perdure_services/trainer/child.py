"""A process of its own group that does not outlive the one that started it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

PROGRAM = (
    "from perdure_services.trainer.child import follow_parent; follow_parent(); from perdure.cli import main; main()"
)


def perdure(*arguments: str) -> tuple[str, ...]:
    """The command that runs `perdure ARGUMENTS` with this interpreter, and ends when its parent is gone."""
    return (sys.executable, "-c", PROGRAM, *arguments)


def follow_parent() -> None:
    """Kills this process and its group as soon as the parent is gone, however it went.

    The parent holds the other end of standard input and never writes: the system closes it when the parent dies.
    """
    threading.Thread(target=_wait_for_the_end, name="perdure-parent", daemon=True).start()


def _wait_for_the_end() -> None:
    while os.read(0, 1024):
        pass
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpgrp(), signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


class Child:
    """A started process; whatever it starts itself stays in its group and is stopped with it.

    Args:
        command: program and arguments; one made by `perdure` also ends when this process is killed.
        stdout: where its output goes, as `subprocess.Popen` takes it.
        stderr: the same for its errors.
        environ: its environment; by default this process's.
        cwd: its working folder; by default this process's.
        niceness: how far it stands back from others that want the processor, 0 to 19.

    Raises:
        OSError: the program cannot be started.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        stdout: int | IO[bytes],
        stderr: int | IO[bytes],
        environ: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        niceness: int = 0,
    ) -> None:
        # Its own session: a Ctrl-C in the terminal is for this process, which then stops the child in good order.
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=stdout, stderr=stderr, env=environ, cwd=cwd, start_new_session=True
        )
        if niceness:
            # Before it has started threads, which inherit it.
            os.setpriority(os.PRIO_PROCESS, self._process.pid, niceness)

    @property
    def pid(self) -> int:
        """Of the process, and of its group."""
        return self._process.pid

    @property
    def errors(self) -> IO[bytes] | None:
        """Its standard error, where that is a pipe."""
        return self._process.stderr

    def code(self) -> int | None:
        """Exit status, −N for signal N; None while it runs."""
        return self._process.poll()

    def wait(self, timeout: float | None = None) -> int | None:
        """Exit status; None when it still runs after `timeout` seconds."""
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            return None

    def ask(self) -> None:
        """Asks the group to end, and does not wait for it."""
        if self.code() is None:
            self._signal(signal.SIGTERM)

    def stop(self, grace: float) -> int:
        """Asks the group to end, and kills what is left after `grace` seconds; its exit status."""
        self.ask()
        self.wait(grace)
        self._signal(signal.SIGKILL)
        code = self._process.wait()
        if self._process.stdin:
            self._process.stdin.close()
        return code

    def _signal(self, number: signal.Signals) -> None:
        try:
            os.killpg(self.pid, number)
        except (ProcessLookupError, PermissionError):
            # Nobody is left in the group; macOS says that with the other error.
            return
