"""When turns and polls run."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from apscheduler.events import EVENT_JOB_ERROR, EVENT_JOB_MAX_INSTANCES, EVENT_JOB_MISSED, JobEvent
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.cron import CronTrigger
from apscheduler.triggers.interval import IntervalTrigger

from perdure.config import TrainerSettings
from perdure.errors import SettingError

TURN = "turn"
POLL = "poll"

DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat", "sun")
"""Days of the week as cron numbers them."""

_log = logging.getLogger(__name__)


class Schedule:
    """Runs `turn` and `poll` at their times, each in a thread, neither of them twice at once.

    Args:
        settings: of the trainer.
        turn: run on the cron expression, or else every interval, and whenever `turn_in` says so.
        poll: run at once, and every `poll_seconds`.

    Raises:
        SettingError: `trainer.cron` is no cron expression.
    """

    def __init__(self, settings: TrainerSettings, *, turn: Callable[[], None], poll: Callable[[], None]) -> None:
        self._scheduler = BackgroundScheduler(
            timezone=UTC,
            executors={"default": {"type": "threadpool", "max_workers": 2}},
            # Late is better than never: what was missed is made up for, once.
            job_defaults={"misfire_grace_time": None, "coalesce": True, "max_instances": 1},
        )
        self._scheduler.add_listener(_tell, EVENT_JOB_ERROR | EVENT_JOB_MAX_INSTANCES | EVENT_JOB_MISSED)
        self._scheduler.add_job(turn, turn_trigger(settings), id=TURN)
        every = IntervalTrigger(seconds=settings.poll_seconds, timezone=UTC)
        self._scheduler.add_job(poll, every, id=POLL, next_run_time=datetime.now(UTC))

    def start(self) -> None:
        """Begins."""
        self._scheduler.start()

    def stop(self) -> None:
        """Starts nothing more; what runs is not waited for."""
        if self._scheduler.running:
            self._scheduler.shutdown(wait=False)

    @property
    def alive(self) -> bool:
        """Whether the thread that starts turns and polls runs."""
        # APScheduler goes on calling itself running when its thread has died.
        thread = getattr(self._scheduler, "_thread", None)
        return bool(self._scheduler.running and thread is not None and thread.is_alive())

    def turn_in(self, seconds: float) -> None:
        """Runs the turn in so many seconds, unless it is due before that anyway."""
        job = self._scheduler.get_job(TURN)
        at = datetime.now(UTC) + timedelta(seconds=seconds)
        if job is not None and (job.next_run_time is None or at < job.next_run_time):
            job.modify(next_run_time=at)


def turn_trigger(settings: TrainerSettings) -> Any:
    """When turns are due.

    Raises:
        SettingError: `trainer.cron` is no cron expression.
    """
    if settings.cron is None:
        return IntervalTrigger(seconds=settings.interval_seconds, timezone=UTC)
    try:
        *rest, days = settings.cron.split()
        return CronTrigger.from_crontab(" ".join((*rest, _named_days(days))), timezone=UTC)
    except ValueError as error:
        raise SettingError(
            f"trainer.cron cannot be {settings.cron!r}: {error}. Write minute, hour, day, month and weekday in UTC, "
            "such as '*/15 * * * *'"
        ) from error


def _named_days(field: str) -> str:
    """The weekdays by name: APScheduler counts them from Monday, cron from Sunday."""
    return ",".join(_named_part(part) for part in field.split(","))


def _named_part(part: str) -> str:
    match = re.fullmatch(r"(\d)(?:-(\d))?(?:/(\d+))?", part)
    if match is None:
        return part
    first = int(match[1])
    last = int(match[2]) if match[2] else 6 if match[3] else first
    if last > 7 or last < first or match[3] == "0":
        raise ValueError(f"{part!r} is no range of weekdays: they go from 0 (Sunday) to 7 (Sunday)")
    return ",".join(DAYS[day] for day in range(first, last + 1, int(match[3] or 1)))


def _tell(event: JobEvent) -> None:
    if event.code == EVENT_JOB_ERROR:
        _log.error("the %s failed: %s", event.job_id, event.exception, exc_info=event.exception)
    elif event.code == EVENT_JOB_MISSED:
        _log.warning("the %s that was due at %s was missed", event.job_id, event.scheduled_run_time)
    else:
        _log.info("the %s is still running: the one that was due now is left out", event.job_id)
