from __future__ import annotations

import logging
import threading
import time
from datetime import UTC, datetime, timedelta

import pytest

from perdure.config import TrainerSettings
from perdure.errors import SettingError
from perdure_services.trainer.schedule import Schedule, turn_trigger

FAR = 10_000.0


@pytest.fixture
def scheduled():
    made = []

    def make(turn=lambda: None, poll=lambda: None, **settings):
        schedule = Schedule(
            TrainerSettings(**{"interval_seconds": FAR, "poll_seconds": FAR, **settings}), turn=turn, poll=poll
        )
        made.append(schedule)
        schedule.start()
        return schedule

    yield make
    for one in made:
        one.stop()


def fires(cron: str, start: str, count: int = 3) -> list[str]:
    trigger = turn_trigger(TrainerSettings(cron=cron))
    now = datetime.fromisoformat(start).replace(tzinfo=UTC)
    found = []
    for _ in range(count):
        at = trigger.get_next_fire_time(None, now)
        found.append(at.strftime("%a %H:%M"))
        now = at + timedelta(seconds=1)
    return found


def test_the_poll_runs_at_once_and_then_every_so_often(scheduled, until):
    times = []
    scheduled(poll=lambda: times.append(time.monotonic()), poll_seconds=0.1)
    until(lambda: len(times) >= 4)
    assert 0.25 < times[3] - times[0] < 3


def test_the_first_poll_waits_for_nothing(scheduled):
    came = threading.Event()
    scheduled(poll=came.set)
    assert came.wait(3)


def test_the_turn_waits_for_its_interval(scheduled, until):
    times = []
    begun = time.monotonic()
    scheduled(turn=lambda: times.append(time.monotonic()), interval_seconds=0.3)
    until(lambda: len(times) >= 2)
    assert times[0] - begun > 0.25
    assert 0.2 < times[1] - times[0] < 3


def test_a_turn_can_be_called_for_before_its_time(scheduled, until):
    came = threading.Event()
    scheduled(turn=came.set).turn_in(0)
    assert came.wait(3)


def test_a_call_does_not_put_off_a_turn_that_is_due_before(scheduled):
    came = threading.Event()
    scheduled(turn=came.set, interval_seconds=0.3).turn_in(60)
    assert came.wait(3)


def test_neither_job_runs_twice_at_once_and_the_poll_does_not_wait_for_the_turn(scheduled, until, caplog):
    running, most, polls = [], [], []
    go_on = threading.Event()

    def turn():
        running.append(1)
        most.append(len(running))
        go_on.wait(5)
        running.pop()

    with caplog.at_level(logging.INFO):
        schedule = scheduled(turn=turn, poll=lambda: polls.append(1), interval_seconds=0.1, poll_seconds=0.05)
        schedule.turn_in(0)
        until(lambda: running)
        before = len(polls)
        until(lambda: len(polls) > before + 3)
        until(lambda: "the turn is still running" in caplog.text)
        go_on.set()
        until(lambda: len(most) > 1)
    assert max(most) == 1


def test_what_fails_is_told_and_tried_again(scheduled, until, caplog):
    calls = []

    def poll():
        calls.append(1)
        raise RuntimeError("broken")

    scheduled(poll=poll, poll_seconds=0.05)
    until(lambda: len(calls) > 2)
    assert any("the poll failed: broken" in record.getMessage() for record in caplog.records)


def test_a_late_job_is_made_up_for_once(scheduled):
    schedule = scheduled()
    for job in schedule._scheduler.get_jobs():
        assert (job.misfire_grace_time, job.coalesce, job.max_instances) == (None, True, 1)
        assert job.next_run_time.utcoffset() == timedelta(0)


def test_stopping_twice_does_no_harm(scheduled):
    schedule = scheduled()
    schedule.stop()
    schedule.stop()


@pytest.mark.parametrize(
    ("cron", "expected"),
    [
        ("30 4 * * *", ["Sun 04:30", "Mon 04:30", "Tue 04:30"]),
        ("0 0 * * 0", ["Sun 00:00", "Sun 00:00", "Sun 00:00"]),
        ("0 0 * * 7", ["Sun 00:00", "Sun 00:00", "Sun 00:00"]),
        ("0 9 * * 1-3", ["Mon 09:00", "Tue 09:00", "Wed 09:00"]),
        ("0 9 * * 0,6", ["Sun 09:00", "Sat 09:00", "Sun 09:00"]),
        ("0 9 * * 1-5/2", ["Mon 09:00", "Wed 09:00", "Fri 09:00"]),
        ("0 9 * * 5-7", ["Sun 09:00", "Fri 09:00", "Sat 09:00"]),
        ("0 9 * * 4/2", ["Thu 09:00", "Sat 09:00", "Thu 09:00"]),
        ("0 9 * * mon", ["Mon 09:00", "Mon 09:00", "Mon 09:00"]),
        ("0 */8 * * *", ["Sun 00:00", "Sun 08:00", "Sun 16:00"]),
    ],
)
def test_cron_counts_days_as_cron_does(cron, expected):
    # 1 November 2026 is a Sunday.
    assert fires(cron, "2026-11-01T00:00:00") == expected


@pytest.mark.parametrize("cron", ["", "* * * *", "60 * * * *", "a b c d e", "* * * * 8", "* * * * 3-1", "* * * * 1/0"])
def test_a_wrong_expression_is_refused(cron):
    with pytest.raises(SettingError, match=r"trainer\.cron cannot be") as caught:
        turn_trigger(TrainerSettings(cron=cron))
    assert "*/15" in str(caught.value)
