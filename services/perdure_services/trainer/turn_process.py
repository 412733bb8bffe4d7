"""One turn of the loop, in a process of its own."""

from __future__ import annotations

import json
import logging
import os
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from subprocess import PIPE
from typing import IO, Literal

from perdure.config import Settings, names_setting
from perdure.turn import TurnResult
from perdure_services.trainer.child import Child, perdure

EXIT_BUSY = 3
"""What `perdure update` ends with while another process holds the memory."""

EXIT_FENCED = 4
"""What `perdure update` ends with when the trainer's term ended before the turn did."""

GRACE_SECONDS = 3.0
"""What a turn gets between being asked to end and being killed."""

_log = logging.getLogger(__name__)

Ending = Literal["done", "busy", "failed", "timeout", "fenced", "stopped"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How the process ended."""

    ending: Ending
    code: int
    """Its exit status, −N for signal N."""
    problem: str = ""
    """The sentence for the log, where it is not done."""
    result: TurnResult | None = None
    """What came out, where it is done."""
    seconds: float = 0.0


class TurnProcess:
    """Runs `perdure update` with the given settings, one at a time, and can be told to stop from another thread.

    Args:
        settings: of everything; the process gets them as a file, so that it sees the same, whatever they came from.
        command: makes the command from the settings file; replaced in tests.
    """

    def __init__(self, settings: Settings, command: Callable[[Path], Sequence[str]] | None = None) -> None:
        self._settings = settings
        self._command = command or update_command
        self._lock = threading.Lock()
        self._child: Child | None = None
        self._stopped = False
        self._fenced = ""

    def run(self, term: int = 0) -> Outcome:
        """Runs a turn to its end, or to the time limit; what it writes to the registry is fenced by `term`, if any."""
        timeout = self._settings.trainer.turn_timeout_seconds
        begun = time.monotonic()
        with (
            tempfile.TemporaryDirectory(prefix="perdure-turn-") as folder,
            (Path(folder) / "result").open("w+b") as out,
        ):
            config = Path(folder) / "settings.yaml"
            # JSON is YAML; the folder is readable by this user alone.
            config.write_text(json.dumps(self._settings.model_dump(mode="json")), encoding="utf-8")
            child = self._start(config, out, term)
            if child is None:
                return Outcome("stopped", 0, "the trainer is stopping")
            said: list[str] = []
            reader = threading.Thread(target=_pass_on, args=(child.errors, said), name="perdure-turn-log", daemon=True)
            reader.start()
            code = child.wait(timeout)
            late = code is None
            # Even after a good end: nothing that it started may linger.
            ended = child.stop(GRACE_SECONDS)
            reader.join(GRACE_SECONDS)
            with self._lock:
                self._child = None
                stopped, fenced = self._stopped, self._fenced
            out.seek(0)
            printed = out.read().decode("utf-8", "replace")
        outcome = _outcome(
            ended, late=late, stopped=stopped, fenced=fenced, timeout=timeout, printed=printed, said=said
        )
        return Outcome(outcome.ending, ended, outcome.problem, outcome.result, time.monotonic() - begun)

    def stop(self) -> None:
        """Ends the turn that runs, if any, within a few seconds; no other is started afterwards."""
        with self._lock:
            self._stopped = True
            child = self._child
        if child is not None:
            child.stop(GRACE_SECONDS)

    def fence(self, reason: str) -> None:
        """Ends the turn that runs, if any, because its term is over; `reason` becomes its outcome's problem."""
        with self._lock:
            child = self._child
            if child is not None:
                self._fenced = reason
        if child is not None:
            child.stop(GRACE_SECONDS)

    def _start(self, config: Path, out: IO[bytes], term: int) -> Child | None:
        with self._lock:
            if self._stopped:
                return None
            self._fenced = ""
            self._child = Child(
                (*self._command(config), *(("--term", str(term)) if term else ())),
                stdout=out,
                stderr=PIPE,
                environ=self._environ(),
                niceness=self._settings.trainer.niceness,
            )
            return self._child

    def _environ(self) -> dict[str, str]:
        environ = without_settings(os.environ)
        if threads := self._settings.model.threads:
            environ["OMP_NUM_THREADS"] = str(threads)
        return environ


def update_command(config: Path) -> Sequence[str]:
    """`perdure update` with the settings in the file `config`."""
    return perdure("update", "--json", "--config", str(config))


def without_settings(environ: Mapping[str, str]) -> dict[str, str]:
    """`environ` for a process that gets all settings in a file: those in the environment would come over it."""
    return {name: value for name, value in environ.items() if not names_setting(name)}


def _pass_on(errors: IO[bytes] | None, said: list[str]) -> None:
    """Hands the turn's errors to our log, line by line; the last line stays for the message."""
    if errors is None:
        return
    with errors:
        for line in errors:
            text = line.decode("utf-8", "replace").strip()
            if text:
                said[:] = [text]
                _log.info("turn: %s", text)


def _outcome(
    code: int, *, late: bool, stopped: bool, fenced: str, timeout: float, printed: str, said: Sequence[str]
) -> Outcome:
    message = said[-1] if said else "it said nothing"
    if stopped:
        return Outcome("stopped", code, "the trainer is stopping")
    if late:
        return Outcome("timeout", code, f"it took more than the {timeout:g} s of trainer.turn_timeout_seconds")
    # It may have come to its end just before it was to be ended.
    if fenced and code != 0:
        return Outcome("fenced", code, fenced)
    if code == EXIT_FENCED:
        return Outcome("fenced", code, message)
    if code == EXIT_BUSY:
        return Outcome("busy", code, message)
    if code < 0:
        return Outcome("failed", code, f"it was killed by signal {-code}: {message}")
    if code != 0:
        return Outcome("failed", code, f"exit code {code}: {message}")
    try:
        return Outcome("done", code, result=TurnResult.decode(printed))
    except (ValueError, TypeError, KeyError) as error:
        return Outcome("failed", code, f"its result cannot be read ({error}): {printed[:200]!r}")
