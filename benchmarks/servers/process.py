"""A server as a process: started, waited for, weighed and stopped with all that it started."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from contestants.contest import Unavailable
from servers.base import Launch

START_SECONDS = 300.0
ANSWER_SECONDS = 60.0
"""The first answer may take long."""
STOP_SECONDS = 20.0
LONGEST_REASON = 400
POLL_SECONDS = 0.1
LEFT_OUT = ("PYTHONPATH", "VIRTUAL_ENV")
"""Variables of this process that servers are not given: they run as their users run them."""


@dataclass(frozen=True, slots=True)
class Running:
    """A server that answers."""

    process: subprocess.Popen[bytes]
    port: int
    start_seconds: float

    def memory_bytes(self) -> int:
        """What its processes hold, memory that they share counted once."""
        return sum(proportional_bytes(pid) for pid in family(self.process.pid))


@contextmanager
def running(
    launch: Launch, *, port: int, folder: Path, threads: int, path: str, body: str, limit: float = START_SECONDS
) -> Iterator[Running]:
    """Starts a server, waits until it answers `body` at `path` with 200, and stops it at the end.

    Raises:
        Unavailable: it cannot be started, ends, or does not answer in `limit` seconds; with the last of what it said.
    """
    said = folder / "server.log"
    began = time.perf_counter()
    with said.open("wb") as log:
        try:
            process = subprocess.Popen(
                list(launch.command),
                cwd=folder,
                env=surroundings(launch.environment, threads),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            raise Unavailable(f"{launch.command[0]} cannot be started: {error.strerror or error}") from error
    try:
        status: int | str = "no answer"
        while (status := asked(port, path, body)) != 200:
            if process.poll() is not None:
                raise Unavailable(f"it ended with status {process.returncode}: {last_words(said)}")
            if time.perf_counter() - began > limit:
                raise Unavailable(f"it did not answer within {limit:g} seconds ({status}): {last_words(said)}")
            time.sleep(POLL_SECONDS)
        yield Running(process, port, time.perf_counter() - began)
    finally:
        stop(process)


def surroundings(extra: Mapping[str, str], threads: int) -> dict[str, str]:
    """The environment variables of a server: the same for all, but for its own."""
    mine = {name: value for name, value in os.environ.items() if name not in LEFT_OUT}
    given = {
        "OMP_NUM_THREADS": str(threads),
        # Threads that wait by spinning take the cores from the load, and from the server's other threads.
        "OMP_WAIT_POLICY": "PASSIVE",
        "HF_HUB_OFFLINE": "1",
        "DO_NOT_TRACK": "1",
        "PYTHONNOUSERSITE": "1",
    }
    return {**mine, **given, **extra}


def asked(port: int, path: str, body: str) -> int | str:
    """The status of one answer, or what was in the way."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_SECONDS)
    try:
        connection.request("POST", path, body.encode(), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        answer.read()
    except (OSError, http.client.HTTPException) as error:
        return str(error) or type(error).__name__
    else:
        return answer.status
    finally:
        connection.close()


def stop(process: subprocess.Popen[bytes]) -> None:
    """Asks a process to end, and ends it and all that it started where it does not."""
    started = family(process.pid)
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for pid, born in started.items():
        if pid != process.pid and birth(pid) == born:
            os.kill(pid, signal.SIGKILL)


def family(root: int) -> dict[int, str]:
    """The process `root` and all that came from it, each with its birth."""
    parents: dict[int, list[int]] = {}
    births: dict[int, str] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (fields := stat_fields(int(entry.name))):
            parents.setdefault(int(fields[1]), []).append(int(entry.name))
            births[int(entry.name)] = fields[19]
    found: dict[int, str] = {}
    waiting = [root]
    while waiting:
        pid = waiting.pop()
        if pid in births:
            found[pid] = births[pid]
        waiting += parents.get(pid, [])
    return found


def birth(pid: int) -> str | None:
    """When a process began, in ticks since the start of the system; None where there is none, or only its remains."""
    fields = stat_fields(pid)
    return fields[19] if fields and fields[0] != "Z" else None


def stat_fields(pid: int) -> list[str]:
    """What the system says of a process from its state on; empty where there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return []


def proportional_bytes(pid: int) -> int:
    """Memory of a process, pages that it shares divided among those that share them; 0 where it has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)


def last_words(said: Path) -> str:
    """The end of a log, in one line."""
    return " ".join(said.read_text(encoding="utf-8", errors="replace").split())[-LONGEST_REASON:] or "nothing was said"


def free_port(count: int = 3) -> int:
    """A port that is free, with `count` − 1 free ones after it."""
    while True:
        with socket.socket() as first:
            first.bind(("127.0.0.1", 0))
            port: int = first.getsockname()[1]
        if port + count < 65536 and all(is_free(port + step) for step in range(count)):
            return port


def is_free(port: int) -> bool:
    with socket.socket() as one:
        try:
            one.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
