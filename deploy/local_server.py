"""A server of ours on this machine: how it is started, ended and paused, whatever it serves."""

from __future__ import annotations

import random
import signal
import socket
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

from local_process import last_words, launch, unwatch, watch

HOST = "127.0.0.1"

PORTS = range(20_000, 30_000)
"""Below the ports that systems give to outgoing connections: a client that reconnects to a stopped server on one of
those can be given that very port, and then talks to itself and keeps the server from coming back."""


class LocalServer(ABC):
    """One server in a process of its own.

    What it keeps outlives it: started again on the same folder, after whatever end, it has it. It ends with the process
    that started it, however that one ends.

    Args:
        folder: holds all that it writes; made where it is missing.
        port: where clients reach it on 127.0.0.1; a free one where None is given, the same at every start.
    """

    called: ClassVar[str]
    """What messages and its log are named by."""

    error: ClassVar[type[Exception]]
    """What is raised where it cannot be started or ended, or does not run."""

    def __init__(self, folder: Path | str, *, port: int | None = None) -> None:
        self.folder = Path(folder).resolve()
        self._port = port
        self._process: subprocess.Popen[bytes] | None = None
        self._watch: subprocess.Popen[bytes] | None = None

    @property
    def port(self) -> int:
        """Where clients reach it."""
        if self._port is None:
            self._port = self._free_port()
        return self._port

    @property
    def log_file(self) -> Path:
        """What it said, over all its starts."""
        return self.folder / f"{self.called}.log"

    @property
    def pid(self) -> int | None:
        """The process that runs; None where none does."""
        return self._process.pid if self._process and self._process.poll() is None else None

    @abstractmethod
    def start(self) -> Self:
        """Returns when the server answers."""

    def stop(self, timeout: float = 30.0) -> None:
        """Asks the server to end (SIGTERM) and waits for it; one that does not run stays so.

        Raises:
            error: it did not end within `timeout` seconds, and was killed.
        """
        if (process := self._process) is None:
            return
        if process.poll() is None:
            process.send_signal(signal.SIGCONT)
            process.terminate()
            try:
                process.wait(timeout)
            except subprocess.TimeoutExpired as error:
                self.kill()
                raise self.error(
                    f"the {self.called} in {self.folder} did not end within {timeout:g} s and was killed: see "
                    f"{self.log_file}"
                ) from error
        self._release()

    def kill(self) -> None:
        """Ends the server at once (SIGKILL), as a crash would; one that does not run stays so."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._release()

    def pause(self) -> None:
        """Stops the server where it stands (SIGSTOP): connections stay open, and nothing answers.

        Raises:
            error: it does not run.
        """
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Lets a paused server go on.

        Raises:
            error: it does not run.
        """
        self._signal(signal.SIGCONT)

    def __enter__(self) -> Self:
        return self if self.pid is not None else self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _signal(self, number: signal.Signals) -> None:
        if self._process is None or self.pid is None:
            raise self.error(
                f"the {self.called} in {self.folder} does not run, so it cannot get {number.name}: start it"
            )
        self._process.send_signal(number)

    def _clear(self) -> None:
        """Makes way for a start; a server that runs is not started again."""
        if self.pid is not None:
            raise self.error(f"the {self.called} in {self.folder} runs already: stop it first")
        self._release()

    def _release(self) -> None:
        # After the server: its number could belong to another process by the time that the watch uses it.
        unwatch(self._watch)
        self._watch = self._process = None

    def _begin(
        self,
        command: Sequence[str | Path],
        answers: Callable[[], bool],
        timeout: float,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Runs `command`, and returns when it `answers()`."""
        since = self.log_file.stat().st_size if self.log_file.exists() else 0
        self._process = launch(command, self.log_file, environment)
        try:
            self._watch = watch(self._process.pid)
            self._await(self._process, answers, timeout, since)
        except BaseException:
            self.kill()
            raise

    def _await(self, process: subprocess.Popen[bytes], answers: Callable[[], bool], timeout: float, since: int) -> None:
        deadline = time.monotonic() + timeout
        named = f"the {self.called} in {self.folder}"
        while not answers():
            if (status := process.poll()) is not None:
                raise self.error(f"{named} ended with {status} at its start: {last_words(self.log_file, since)}")
            if time.monotonic() > deadline:
                raise self.error(
                    f"{named} did not answer within {timeout:g} s: give it longer, or see why in {self.log_file}: "
                    f"{last_words(self.log_file, since)}"
                )
            time.sleep(0.05)

    def _free_port(self, *but: int) -> int:
        for port in random.SystemRandom().sample(PORTS, 100):
            if port not in but and is_free(port):
                return port
        raise self.error(f"no free port found between {PORTS.start} and {PORTS.stop - 1}: name one")


def is_free(port: int) -> bool:
    """Whether nobody listens at a port of 127.0.0.1."""
    with socket.socket() as probe:
        # Connections of a server that was killed linger; they keep nobody from listening.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True
