"""When is tried again, and when that is over: with a clock made by hand."""

from __future__ import annotations

import pytest

from perdure.client import operation
from perdure.client.attempts import FIRST_PAUSE, LONGEST_PAUSE, Fault, Patience, Pause, Try, attempts
from perdure.client.operation import Reply
from perdure.client.retry_after import seconds_of
from perdure.errors import ApiBusy, ApiError, ApiTimeout, ApiUnreachable, UsageError

BROKEN = Fault("reset", sent=True, timed_out=False)
STALE = Fault("reset", sent=True, timed_out=False, stale=True)
BUSY = Reply(503, {}, b"")
GOOD = Reply(200, {}, b"{}")


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def upper(low, high):
    return high


def play(outcomes, *, ask=None, timeout=10.0, deadline=30.0, tries=4, jitter=upper, seconds=1.0):
    """What the steps ask for when each try takes `seconds`: the steps, and the end."""
    clock = Clock()
    steps = attempts(
        ask or operation.predict_one("order", operation.Wanted()),
        Patience(timeout, deadline, tries),
        "http://api",
        clock=clock,
        jitter=jitter,
    )
    seen, outcome, left = [], None, list(outcomes)
    while True:
        try:
            step = steps.send(outcome)
        except StopIteration as ended:
            return seen, ended.value
        except ApiError as error:
            return seen, error
        seen.append(step)
        if isinstance(step, Pause):
            clock.now += step.seconds
            outcome = None
        else:
            clock.now += min(seconds, step.seconds)
            outcome = left.pop(0) if len(left) > 1 else left[0]


def pauses(seen):
    return [round(step.seconds, 6) for step in seen if isinstance(step, Pause)]


def test_the_first_good_answer_ends_it():
    assert play([GOOD]) == ([Try(10.0)], GOOD)


def test_pauses_double_up_to_a_bound():
    seen, error = play([BROKEN], tries=9, deadline=1000)
    assert pauses(seen) == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
    assert isinstance(error, ApiUnreachable)
    assert (FIRST_PAUSE, LONGEST_PAUSE) == (0.1, 5.0)


def test_pauses_are_drawn_from_zero_to_the_bound():
    drawn = []

    def jitter(low, high):
        drawn.append((low, high))
        return 0.05

    seen, _ = play([BROKEN, BUSY, GOOD], jitter=jitter)
    assert drawn == [(0.0, 0.1), (0.0, 0.2)]
    assert pauses(seen) == [0.05, 0.05]


def test_retry_after_is_the_least():
    asked = Reply(429, {"retry-after": "3"}, b"")
    seen, end = play([asked, GOOD])
    assert pauses(seen) == [3.1]
    assert end is GOOD


def test_no_more_tries_than_said():
    seen, error = play([BUSY], tries=3)
    assert sum(isinstance(step, Try) for step in seen) == 3
    assert isinstance(error, ApiBusy)


def test_tries_get_less_as_the_deadline_comes_near():
    timed_out = Fault("slow", sent=True, timed_out=True)
    seen, error = play([timed_out], timeout=10, deadline=25, tries=9, jitter=lambda low, high: 0.0, seconds=10)
    assert [step.seconds for step in seen] == [10, 10, 5]
    assert isinstance(error, ApiTimeout)
    assert "3 tries in 25.0 s" in str(error)


def test_a_pause_that_would_end_after_the_deadline_is_not_begun():
    seen, _ = play([BUSY], deadline=1.05)
    assert [type(step) for step in seen] == [Try]


def test_a_stale_connection_costs_neither_try_nor_pause():
    seen, end = play([STALE, STALE, STALE, GOOD], tries=1)
    assert seen == [Try(10.0)] * 4
    assert end is GOOD


def test_stale_connections_end_at_the_deadline_too():
    seen, error = play([STALE], tries=1, deadline=5)
    assert len(seen) == 5
    assert isinstance(error, ApiUnreachable)


def test_whether_anything_was_sent_is_told_of_all_tries():
    refused = Fault("refused", sent=False, timed_out=False)
    assert "Nothing was sent" in str(play([refused])[1])
    assert "An earlier try may have arrived" in str(play([BROKEN, refused])[1])
    assert "An earlier try may have arrived" in str(play([BUSY, refused])[1])


@pytest.mark.parametrize("ask", [operation.promote("v2", None), operation.rollback(None)])
def test_not_even_a_stale_connection_excuses_a_second_promotion(ask):
    seen, _ = play([STALE, GOOD], ask=ask)
    assert len(seen) == 1


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ((0, 1, 1), "timeout must be a number of seconds above 0, at most 9223372036, got 0"),
        ((1, -1, 1), "deadline must be"),
        ((1, float("nan"), 1), "got nan"),
        ((float("inf"), 1, 1), "got inf"),
        ((1e12, 1, 1), "got 1000000000000.0"),
        ((1, 1, 0), "tries must be at least 1, got 0"),
    ],
)
def test_impatience_is_refused(values, part):
    with pytest.raises(UsageError, match=part):
        Patience(*values)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": " 0 "}, 0.0),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "1.5"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "²"}, None),
        ({"retry-after": "Sun, 06 Nov 1994 08:49:37 GMT"}, 0.0),
        ({"retry-after": "Sun, 06 Nov 1994 08:49:37 GMT", "date": "Sun, 06 Nov 1994 08:49:30 GMT"}, 7.0),
        ({"retry-after": "Sunday, 06-Nov-94 08:49:37 GMT", "date": "Sun, 06 Nov 1994 08:49:36 GMT"}, 1.0),
        ({"retry-after": "Sun, 06 Nov 1994 08:49:37 GMT", "date": "Sun, 06 Nov 1994 09:49:30 GMT"}, 0.0),
    ],
)
def test_retry_after_is_read(headers, seconds):
    assert seconds_of(headers) == seconds
