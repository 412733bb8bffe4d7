"""The trainer: reads the stream, and runs a turn on schedule, or as soon as enough new labels wait."""

from __future__ import annotations

import logging
import threading
import time

from perdure.config import Settings
from perdure.errors import PerdureError, StoreBusy
from perdure_services.trainer.inbox import Inbox, Waiting
from perdure_services.trainer.leadership import Leadership
from perdure_services.trainer.metrics import TrainerMetrics
from perdure_services.trainer.schedule import Schedule
from perdure_services.trainer.turn_process import EXIT_BUSY, Outcome, TurnProcess

BUSY_SECONDS = 5.0
"""After this a turn is tried again that found the memory taken."""

FIRST_RETRY_SECONDS = 5.0
MAX_RETRY_SECONDS = 600.0
"""A turn that failed is tried again after the first, then twice as long each time, up to the second of these."""

OVERDUE_SECONDS = 60.0
"""A turn that is still there so long after its limit cannot be ended by this process."""

STUCK_SECONDS = 900.0
"""A look at the stream that takes longer hangs. What came in a long outage is read in it, page by page."""

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
        self._leadership = Leadership(settings, self._process.fence)
        # Held by whoever has the memory open, be it the poll or the turn's process.
        self._memory = threading.Lock()
        self._schedule = Schedule(settings.trainer, turn=self.turn, poll=self.poll)
        self._failures = 0
        self._not_before = 0.0
        self._problem = ""
        self._turn_began: float | None = None
        self._look_began: float | None = None
        self.metrics = TrainerMetrics(settings.trainer)
        self.metrics.leader.set_function(lambda: float(self._leadership.leads))

    def start(self) -> None:
        """Begins to poll and to run turns, in threads, as soon as this process has the lease."""
        self._leadership.start()
        self._schedule.start()

    def stop(self) -> None:
        """Ends the turn that runs and starts no other, within about five seconds."""
        self._stopping.set()
        self._schedule.stop()
        self._process.stop()
        if self._memory.acquire(timeout=1.0):
            self._inbox.close()
            self._memory.release()
        # Last: who takes over finds nothing of this process at work any more.
        self._leadership.stop()

    def once(self) -> int:
        """Reads the stream and runs one turn if there is something to learn; the exit code.

        Where another trainer is at work, this one leaves it to that.

        Raises:
            PerdureError: the stream or the memory cannot be read.
        """
        self._leadership.start()
        if not self._leadership.settle():
            _log.info("%s leads: this trainer leaves the turn to that one", self._leadership.holder)
            return EXIT_BUSY
        with self._memory:
            if not self._inbox.read().anything:
                _log.info("nothing new to learn from")
                return 0
            outcome = self._run()
        self._tell(outcome)
        return {"done": 0, "stopped": 0, "busy": EXIT_BUSY, "fenced": EXIT_BUSY}.get(
            outcome.ending, outcome.code if outcome.code > 0 else 1
        )

    def poll(self) -> None:
        """Reads the stream, and calls for a turn where enough waits; does nothing while a turn runs, nor while another
        trainer leads."""
        if not self._leadership.leads:
            # Whoever leads may write the memory meanwhile, where it is the same.
            self._inbox.changed()
            return
        if not self._memory.acquire(blocking=False):
            self._measure()
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
            if self._stopping.is_set() or not self._leadership.leads:
                return
            early = self._not_before - time.monotonic()
            if early > 0:
                # A poll called for it that had looked just before the last one failed.
                self._schedule.turn_in(early)
                return
            waiting = self._read()
            if waiting is None:
                self._schedule.turn_in(self._wait(BUSY_SECONDS))
                return
            if not waiting.anything:
                _log.debug("nothing new to learn from")
                return
            _log.info("a turn begins; labels that wait: %d%s", waiting.labels, ", one goes on" * waiting.interrupted)
            outcome = self._run()
            self._inbox.changed()
        self._tell(outcome)
        if outcome.ending == "done":
            self._failures, self._not_before = 0, 0.0
        elif outcome.ending == "busy":
            self._schedule.turn_in(self._wait(BUSY_SECONDS))
        elif outcome.ending == "fenced":
            # The thread that keeps the lease may not know it yet. What the turn committed in memory stays.
            self._wait(BUSY_SECONDS)
        elif outcome.ending != "stopped":
            delay = min(FIRST_RETRY_SECONDS * 2.0**self._failures, MAX_RETRY_SECONDS)
            self._failures += 1
            _log.error("it is tried again in %.0f s, and goes on where it was", delay)
            self._schedule.turn_in(self._wait(delay))

    def problem(self) -> str:
        """Why only a restart helps; empty while all is well."""
        now, turn, look = time.monotonic(), self._turn_began, self._look_began
        if self._stopping.is_set():
            return ""
        if turn is not None and now - turn > self._settings.turn_timeout_seconds + OVERDUE_SECONDS:
            return (
                f"the turn has run for {now - turn:.0f} s, but should have been killed after "
                f"{self._settings.turn_timeout_seconds:g} s"
            )
        if look is not None and now - look > STUCK_SECONDS:
            return f"a look at the stream has taken {now - look:.0f} s"
        if not self._schedule.alive:
            return "the thread that starts turns does not run"
        return self._leadership.problem()

    def _run(self) -> Outcome:
        self._turn_began = time.monotonic()
        self.metrics.begun()
        try:
            outcome = self._process.run(self._leadership.term)
        finally:
            self._turn_began = None
        self.metrics.ended(outcome)
        return outcome

    def _measure(self) -> None:
        """What waits in the stream while a turn runs."""
        try:
            self.metrics.lag.set(self._inbox.behind())
        except PerdureError as error:
            self._note(str(error), logging.ERROR)

    def _wait(self, seconds: float) -> float:
        """Keeps polls from calling for a turn any earlier."""
        self._not_before = time.monotonic() + seconds
        return seconds

    def _read(self) -> Waiting | None:
        """What waits; None when it cannot be said now. A problem is told once, not with every poll."""
        self._look_began = time.monotonic()
        try:
            waiting = self._inbox.read()
            self.metrics.lag.set(self._inbox.behind())
        except StoreBusy as error:
            self._note(str(error), logging.INFO)
            return None
        except PerdureError as error:
            self._note(str(error), logging.ERROR)
            return None
        finally:
            self._look_began = None
        self.metrics.samples.set(self._inbox.kept.samples)
        self.metrics.quarantined.set(self._inbox.kept.quarantined)
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
        elif outcome.ending == "fenced":
            _log.warning("the turn was ended, and promoted nothing: %s", outcome.problem)
        elif outcome.ending != "stopped":
            _log.error("the turn ended early: %s", outcome.problem)
