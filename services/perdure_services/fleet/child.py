"""A worker as its parent sees it."""

from __future__ import annotations

import errno
import math
import signal
import socket
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from perdure_services.fleet.beat import ASKED, CONNECTION, Beat
from perdure_services.fleet.hello import Hello

STALE_SECONDS = 2.0
"""A worker whose last beat is older gets no connections while others are there: its event loop stands still."""

_READ = 65536

_FULL = (errno.EAGAIN, errno.EWOULDBLOCK, errno.ENOBUFS, errno.ETOOMANYREFS)
"""There is no room on a line: for bytes, or for file descriptors."""


class Child:
    """One process at a place, and the line to it.

    Connections go down that line, one byte and a file descriptor each; beats come up.

    Args:
        process: what was started.
        line: the parent's end; does not block.
        hello: what the process was told.
        now: monotonic seconds, here and everywhere in this class.
    """

    def __init__(self, process: subprocess.Popen[bytes], line: socket.socket, hello: Hello, now: float) -> None:
        self.process = process
        self.line = line
        self.place = hello.place
        self.since = now
        """When it was started."""
        self.heard = now
        """When it last told something."""
        self.beat: Beat | None = None
        """What it told last."""
        self.kill_at = math.inf
        """When it has to have ended; infinite while it need not end."""
        self.deaf = False
        """It reads its line no more."""
        self._handed = 0
        self._rest = b""

    @property
    def load(self) -> int:
        """Connections that it has, those on their way included."""
        return self._handed if self.beat is None else self.beat.open + self._handed - self.beat.taken

    def takes(self) -> bool:
        """Whether it may be handed connections at all."""
        return self.beat is not None and not self.beat.leaving and not self.deaf

    def rank(self, now: float) -> tuple[bool, bool, bool, int, int]:
        """Who is handed the next connection: the one with the least."""
        assert self.beat is not None
        ending, stale = self.kill_at < math.inf, now - self.heard > STALE_SECONDS
        return not self.beat.serving, ending, stale, self.load, self._handed

    def hand(self, connection: socket.socket) -> bool:
        """Gives `connection` away, of which the caller closes its own end; False when there is no room on the line."""
        try:
            socket.send_fds(self.line, [CONNECTION], [connection.fileno()])
        except OSError as error:
            # Or else it has died: that is found out elsewhere.
            self.deaf = error.errno not in _FULL
            return False
        self._handed += 1
        return True

    def tell_asked(self) -> None:
        """Somebody has asked another worker for readiness."""
        # With no room on the line the next time does.
        with suppress(OSError):
            self.line.send(ASKED)

    def listen(self, now: float) -> Beat | None:
        """The last of the beats that came since; None when none did."""
        newest = None
        while True:
            try:
                data = self.line.recv(_READ)
            except BlockingIOError:
                break
            except OSError:
                data = b""
            if not data:
                self.deaf = True
                break
            *lines, self._rest = (self._rest + data).split(b"\n")
            if lines:
                newest = Beat.decode(lines[-1])
        if newest is not None:
            self.beat, self.heard = newest, now
        return newest

    def end(self, number: int, by: float) -> None:
        """Sends the signal `number`; the process is to have ended at the time `by`."""
        self.kill_at = min(self.kill_at, by)
        self.process.send_signal(number)

    def close(self) -> None:
        """Gives the line back; the process has ended."""
        self.line.close()


def start_child(command: Sequence[str], hello: Hello, now: float) -> Child:
    """Starts a worker.

    Raises:
        OSError: no process can be started.
    """
    ours, theirs = socket.socketpair()
    with theirs:
        try:
            ours.setblocking(False)
            process = subprocess.Popen(
                [*command, str(theirs.fileno())],
                stdin=subprocess.PIPE,
                pass_fds=[theirs.fileno()],
                # A terminal's Ctrl-C reaches the parent only, which passes it on: twice would mean at once.
                process_group=0,
            )
        except BaseException:
            ours.close()
            raise
    assert process.stdin is not None
    # One that has died already is found out elsewhere.
    with suppress(BrokenPipeError), process.stdin:
        process.stdin.write(hello.encode().encode())
    return Child(process, ours, hello, now)


def how_it_ended(code: int) -> str:
    """The exit code of a process in words."""
    if code >= 0:
        return f"with exit code {code}"
    try:
        return f"by {signal.Signals(-code).name}"
    except ValueError:
        return f"by signal {-code}"


def socket_path(folder: Path | str, place: int) -> Path:
    """Where the worker of that place is asked by the others."""
    return Path(folder) / f"{place}.sock"
