"""The trainer: reads the stream, and runs a turn on schedule, or as soon as enough new labels wait."""

from __future__ import annotations

import logging
import threading
import time

from perdure.config import Settings
from perdure.errors import PerdureError, StoreBusy
from perdure_services.trainer.inbox import Inbox, Waiting
from perdure_services.trainer.schedule import Schedule
from perdure_services.trainer.turn_process import EXIT_BUSY, Outcome, TurnProcess

BUSY_SECONDS = 5.0
"""After this a turn is tried again that found the memory taken."""

FIRST_RETRY_SECONDS = 5.0
MAX_RETRY_SECONDS = 600.0
"""A turn that failed is tried again after the first, then twice as long each time, up to the second of these."""

_log = logging.getLogger(__name__)


class Trainer:
    """One turn at a time, each in a process that can be killed. This process holds no model, and memory only briefly.

    Args:
        settings: of everything.
        process: runs the turns; by default `perdure update`.

    Raises:
        SettingError: `trainer.cron` is no cron expression.
    """

    def __init__(self, settings: Settings, process: TurnProcess | None = None) -> None:
        self._settings = settings.trainer
        self._stopping = threading.Event()
        self._inbox = Inbox(settings, self._stopping)
        self._process = process or TurnProcess(settings)
        # Held by whoever has the memory open, be it the poll or the turn's process.
        self._memory = threading.Lock()
        self._schedule = Schedule(settings.trainer, turn=self.turn, poll=self.poll)
        self._failures = 0
        self._not_before = 0.0
        self._problem = ""

    def start(self) -> None:
        """Begins to poll and to run turns, in threads."""
        self._schedule.start()

    def stop(self) -> None:
        """Ends the turn that runs and starts no other, within about five seconds."""
        self._stopping.set()
        self._schedule.stop()
        self._process.stop()
        if self._memory.acquire(timeout=1.0):
            self._inbox.close()
            self._memory.release()

    def once(self) -> int:
        """Reads the stream and runs one turn if there is something to learn; the exit code.

        Raises:
            PerdureError: the stream or the memory cannot be read.
        """
        with self._memory:
            if not self._inbox.read().anything:
                _log.info("nothing new to learn from")
                return 0
            outcome = self._process.run()
        self._tell(outcome)
        return {"done": 0, "stopped": 0, "busy": EXIT_BUSY}.get(outcome.ending, outcome.code if outcome.code > 0 else 1)

    def poll(self) -> None:
        """Reads the stream, and calls for a turn where enough waits; does nothing while a turn runs."""
        if not self._memory.acquire(blocking=False):
            return
        try:
            waiting = self._read()
        finally:
            self._memory.release()
        if waiting is None or self._stopping.is_set() or time.monotonic() < self._not_before:
            return
        least = self._settings.min_new_labels
        if waiting.interrupted or (least and waiting.labels >= least):
            self._schedule.turn_in(0)

    def turn(self) -> None:
        """Runs a turn if there is something to learn."""
        with self._memory:
            if self._stopping.is_set():
                return
            waiting = self._read()
            if waiting is None:
                self._schedule.turn_in(self._wait(BUSY_SECONDS))
                return
            if not waiting.anything:
                _log.debug("nothing new to learn from")
                return
            _log.info("a turn begins; labels that wait: %d%s", waiting.labels, ", one goes on" * waiting.interrupted)
            outcome = self._process.run()
            self._inbox.changed()
        self._tell(outcome)
        if outcome.ending == "done":
            self._failures, self._not_before = 0, 0.0
        elif outcome.ending == "busy":
            self._schedule.turn_in(self._wait(BUSY_SECONDS))
        elif outcome.ending != "stopped":
            delay = min(FIRST_RETRY_SECONDS * 2.0**self._failures, MAX_RETRY_SECONDS)
            self._failures += 1
            _log.error("it is tried again in %.0f s, and goes on where it was", delay)
            self._schedule.turn_in(self._wait(delay))

    def _wait(self, seconds: float) -> float:
        """Keeps polls from calling for a turn any earlier."""
        self._not_before = time.monotonic() + seconds
        return seconds

    def _read(self) -> Waiting | None:
        """What waits; None when it cannot be said now. A problem is told once, not with every poll."""
        try:
            waiting = self._inbox.read()
        except StoreBusy as error:
            self._note(str(error), logging.INFO)
            return None
        except PerdureError as error:
            self._note(str(error), logging.ERROR)
            return None
        if self._problem:
            _log.info("the stream and the memory can be read again")
            self._problem = ""
        return waiting

    def _note(self, problem: str, level: int) -> None:
        if problem != self._problem:
            _log.log(level, "the stream cannot be read into memory now, it is tried again: %s", problem)
            self._problem = problem

    def _tell(self, outcome: Outcome) -> None:
        if outcome.ending == "done" and outcome.result is not None:
            _log.info("%s (%.1f s)", outcome.result.line(), outcome.seconds)
        elif outcome.ending == "busy":
            _log.info("the turn could not begin, it is tried again: %s", outcome.problem)
        elif outcome.ending != "stopped":
            _log.error("the turn ended early: %s", outcome.problem)
