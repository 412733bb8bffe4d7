"""Processes that run beside this one, and end with it."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path


def launch(
    command: Sequence[str | Path], log_file: Path, environment: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """A process in the folder of its log, to whose end it adds all that it says."""
    with log_file.open("ab") as log:
        return subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=log_file.parent,
            start_new_session=True,  # Ctrl-C is for us: we end it, in order
        )


def last_words(log_file: Path, since: int = 0) -> str:
    """The end of what a log holds behind its first `since` bytes: 2000 characters at most."""
    return log_file.read_bytes()[since:].decode("utf-8", "replace").strip()[-2000:] or "it said nothing"


def watch(*pids: int) -> subprocess.Popen[bytes]:
    """A process that ends `pids` when this one is gone: it notices by the pipe that closes then.

    The kernel's own way, PR_SET_PDEATHSIG, goes by the thread that started the process, and a test may well start a
    server in a thread that ends.
    """
    script = 'while read -r _; do :; done; kill -9 "$@"'
    return subprocess.Popen(
        ["/bin/sh", "-c", script, "sh", *map(str, pids)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def unwatch(watching: subprocess.Popen[bytes] | None) -> None:
    """Ends what `watch` has started, and nothing else."""
    if watching is not None:
        # Its pipe closes at the end of `with`: by then it must be past noticing.
        with watching:
            watching.kill()


def heed_signals() -> None:
    """SIGTERM ends this process as Ctrl-C does, by a KeyboardInterrupt."""
    for number in (signal.SIGTERM, signal.SIGINT):
        # Also where a shell that started it in the background has told it not to listen.
        signal.signal(number, signal.default_int_handler)
