"""The parent of several workers: takes connections, hands them out, and starts again who dies."""

from __future__ import annotations

import logging
import math
import selectors
import signal
import socket
import time
from collections import deque
from collections.abc import Callable
from types import FrameType

from perdure_services.fleet.child import Child, how_it_ended, start_child
from perdure_services.fleet.hello import Hello
from perdure_services.fleet.spec import Spec

TICK_SECONDS = 0.25

FIRST_RESTART_SECONDS = 0.25
MAX_RESTART_SECONDS = 30.0

WELL_SECONDS = 60.0
"""A worker that has lived so long was well: when it dies, it is started again as if for the first time."""

START_SECONDS = 600.0
"""How long a worker may take until it tells something for the first time."""

SILENT_SECONDS = 60.0
"""A worker that has told nothing for so long is stuck, and killed."""

PAUSE_SECONDS = 0.5
"""How long no connection is taken after one could not be, for want of file descriptors above all."""

LATE_SECONDS = 5.0
"""When the parent itself was kept from looking for so long (the machine slept), nobody's silence says anything."""

MOST_AT_ONCE = 64
"""Connections that are handed out before anything else is looked at."""

_log = logging.getLogger(__name__)


class Fleet:
    """`spec.processes` workers at one listening socket.

    The next connection goes to the worker that has the fewest, among those that serve. While none does, those that
    run take them all the same, and say what is wrong; while none runs, connections wait in the socket's queue.

    A worker that dies, tells that it is not live any more, or falls silent, is started again; not so before all were
    ready for the first time: what is wrong then will not mend.

    Args:
        spec: who is started.
        listener: closed when all workers leave.
        folder: what they share.
        announce: gets one line when all are ready.
    """

    def __init__(self, spec: Spec, *, listener: socket.socket, folder: str, announce: Callable[[str], None]) -> None:
        self._spec = spec
        self._listener = listener
        self._folder = folder
        self._announce = announce
        self._announced = False
        self._children: list[Child | None] = [None] * spec.processes
        self._restarts = [-1] * spec.processes
        self._failures = [0] * spec.processes
        self._start_at = [0.0] * spec.processes
        self._signals: deque[int] = deque()
        self._selector = selectors.DefaultSelector()
        self._listening = False
        self._held: socket.socket | None = None
        self._pause_until = 0.0
        self._turned = time.monotonic()
        self._stopping = False
        self._code = 0

    def run(self) -> int:
        """Until SIGTERM or SIGINT, which workers get too; the exit code: 0 if all ended well, else 1 or a worker's."""
        awake, wake = socket.socketpair()
        with awake, wake, self._listener, self._selector:
            for end in (awake, wake, self._listener):
                end.setblocking(False)
            self._selector.register(awake, selectors.EVENT_READ, lambda: awake.recv(4096))
            signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, self._noted)
            # Only so that it wakes this up.
            signal.signal(signal.SIGCHLD, lambda number, frame: None)
            try:
                while not (self._stopping and not any(self._children)):
                    self._turn()
            finally:
                signal.set_wakeup_fd(-1)
                self._kill_all()
                if self._held is not None:
                    self._held.close()
        return self._code

    def _turn(self) -> None:
        now = time.monotonic()
        if now - self._turned > LATE_SECONDS:
            for awaited in filter(None, self._children):
                awaited.heard = now
        self._turned = now
        while self._signals:
            self._stop(self._signals.popleft())
        for place, child in enumerate(self._children):
            if child is not None:
                self._look(child, now)
            elif not self._stopping and now >= self._start_at[place]:
                self._start(place, now)
        self._listen(now)
        for key, _ in self._selector.select(TICK_SECONDS):
            key.data()

    # ── signals ──
    def _noted(self, number: int, frame: FrameType | None) -> None:
        self._signals.append(number)

    def _stop(self, number: int) -> None:
        if not self._stopping:
            _log.info("stopping %d processes", sum(child is not None for child in self._children))
        self._stopping = True
        by = time.monotonic() + self._spec.stop_seconds
        for child in self._children:
            if child is not None:
                child.end(number, by)

    # ── workers ──
    def _start(self, place: int, now: float) -> None:
        self._restarts[place] += 1
        hello = Hello(place, self._spec.processes, self._restarts[place], self._folder, self._spec.given)
        try:
            child = start_child(self._spec.command, hello, now)
        except OSError as error:
            if not self._announced:
                raise
            self._again(place, f"cannot be started: {error}", now)
            return
        self._children[place] = child
        self._selector.register(child.line, selectors.EVENT_READ, lambda: self._hear(child))

    def _hear(self, child: Child) -> None:
        beat = child.listen(time.monotonic())
        if child.deaf:
            self._selector.unregister(child.line)
            # It has closed its line, and so is about to end; or should be.
            child.kill_at = min(child.kill_at, time.monotonic() + self._spec.stop_seconds)
        if beat is None:
            return
        if beat.asked:
            for other in self._children:
                if other is not None and other is not child:
                    other.tell_asked()
        if not beat.live and child.kill_at == math.inf:
            _log.error("process %d (%d) says that only a restart helps it", child.place, child.process.pid)
            child.end(signal.SIGTERM, time.monotonic() + self._spec.stop_seconds)
        if not self._announced and not self._stopping:
            self._announce_all()

    def _announce_all(self) -> None:
        beats = [child.beat for child in self._children if child is not None]
        lines = [beat.line for beat in beats if beat is not None and beat.line is not None]
        if len(lines) == self._spec.processes:
            self._announced = True
            self._announce(lines[0])

    def _look(self, child: Child, now: float) -> None:
        if child.process.poll() is not None:
            self._ended(child, now)
        elif now >= child.kill_at:
            _log.error("process %d (%d) does not end by itself, and is killed", child.place, child.process.pid)
            child.process.kill()
        elif now - child.heard > (START_SECONDS if child.beat is None else SILENT_SECONDS):
            _log.error(
                "process %d (%d) has told nothing for %.0f seconds, and is killed",
                child.place,
                child.process.pid,
                now - child.heard,
            )
            child.process.kill()

    def _ended(self, child: Child, now: float) -> None:
        place, code = child.place, child.process.returncode
        self._children[place] = None
        if child.line in self._selector.get_map():
            self._selector.unregister(child.line)
        child.close()
        if self._stopping:
            # Before it could be taken for a wish to stop, SIGTERM is simply an end.
            if code not in (0, -signal.SIGTERM, -signal.SIGINT) and self._code == 0:
                self._code = 1
            return
        if not self._announced:
            _log.error("process %d ended %s before all were ready", place, how_it_ended(code))
            self._code = code if code in (1, 2) else 1
            self._stop(signal.SIGTERM)
            return
        if now - child.since > WELL_SECONDS:
            self._failures[place] = 0
        self._again(place, f"({child.process.pid}) ended {how_it_ended(code)}", now)

    def _again(self, place: int, what: str, now: float) -> None:
        delay = min(FIRST_RESTART_SECONDS * 2.0 ** min(self._failures[place], 30), MAX_RESTART_SECONDS)
        self._failures[place] += 1
        self._start_at[place] = now + delay
        _log.error("process %d %s: it is started again in %.2g seconds", place, what, delay)

    def _kill_all(self) -> None:
        """Nobody is left behind, whatever went wrong here."""
        for child in self._children:
            if child is not None:
                child.process.kill()
                child.process.wait()
                child.close()

    # ── connections ──
    def _listen(self, now: float) -> None:
        """Looks at the listener only while somebody can be handed what comes there."""
        takers = any(child is not None and child.takes() for child in self._children)
        wanted = takers and now >= self._pause_until and self._listener.fileno() >= 0
        if wanted and not self._listening:
            self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        elif self._listening and not wanted:
            self._selector.unregister(self._listener)
        self._listening = wanted
        if self._stopping and not wanted and now >= self._pause_until and self._listener.fileno() >= 0:
            # Refused at once is better than waiting for nobody.
            self._listener.close()

    def _accept(self) -> None:
        for _ in range(MOST_AT_ONCE):
            now = time.monotonic()
            takers = [child for child in self._children if child is not None and child.takes()]
            if not takers:
                return
            connection, self._held = self._held, None
            try:
                if connection is None:
                    connection, _ = self._listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:
                _log.error("no connection can be taken for now: %s", error)
                self._pause_until = now + PAUSE_SECONDS
                return
            takers.sort(key=lambda child: child.rank(now))
            if not any(child.hand(connection) for child in takers):
                # All lines are full, of hundreds of connections.
                self._held = connection
                self._pause_until = now + TICK_SECONDS
                return
            connection.close()
