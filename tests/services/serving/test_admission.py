from __future__ import annotations

import math

import pytest

from perdure_services.serving import admission as module
from perdure_services.serving.admission import BURST, MOST_DRIFT, NEWEST, STANDING_BATCHES, Admission
from perdure_services.serving.pace import Pace, measured
from perdure_services.serving.waiting_line import WaitingLine, WaitingRequest

PER_TEXT = 0.01


class Serving:
    """A line and its admission, with a clock of its own: each text of 90 characters takes 10 ms, batches nothing."""

    def __init__(self, max_requests=10_000, max_seconds=1.0, max_batch=4):
        self.pace = Pace()
        for texts in (1, 8, 64):
            self.pace.learn(100 * texts, PER_TEXT * texts)
        self.line = WaitingLine(self.pace, max_batch=max_batch, batch_seconds=60.0)
        self.now = 1000.0
        self.admission = Admission(
            self.line, self.pace, max_requests=max_requests, max_seconds=max_seconds, max_batch=max_batch, now=self.now
        )

    def ask(self, texts=1, deadline=math.inf):
        """The refusal; None when it waits."""
        request = WaitingRequest(("x" * 90,) * texts, measured(["x" * 90] * texts, 640), 90 * texts, deadline)
        refusal = self.admission.refusal(self.now, self.now + deadline, request.chars)
        if refusal is None:
            self.line.put(request)
        return refusal

    def run(self, slow=1.0):
        """One batch, in the time that it should take, or a multiple."""
        batch, _ = self.line.take(self.now)
        size = measured([text for request in batch for text in request.texts], 640)
        run = self.admission.begun(size, 1, self.now)
        self.now += slow * PER_TEXT * size.texts
        self.admission.ended(run, self.now)

    def flood(self):
        """As many requests as are let in now."""
        count = 0
        while self.ask() is None:
            count += 1
        return count


def test_the_wait_is_what_waits_and_what_is_left_of_the_batch():
    serving = Serving()
    assert serving.admission.wait(serving.now) == 0.0
    for _ in range(6):
        serving.ask()
    assert serving.admission.wait(serving.now) == pytest.approx(0.06)
    batch, _ = serving.line.take(serving.now)
    serving.admission.begun(measured(["x" * 90] * len(batch), 640), 1, serving.now)
    assert serving.admission.wait(serving.now + 0.01) == pytest.approx(0.02 + 0.03)


def test_a_batch_that_is_overdue_is_expected_to_take_as_long_again():
    serving = Serving()
    serving.ask(4)
    serving.line.take(serving.now)
    serving.admission.begun(measured(["x" * 90] * 4, 640), 1, serving.now)
    assert serving.admission.wait(serving.now + 0.04) == pytest.approx(0.0)
    assert serving.admission.wait(serving.now + 5.04) == pytest.approx(5.0)


def test_a_burst_may_wait_longer_than_a_queue_that_stands():
    serving = Serving(max_seconds=1.0)
    assert serving.flood() == pytest.approx(BURST / PER_TEXT, abs=2)
    let_in = []
    for _ in range(400):
        serving.run()
        let_in.append(serving.flood())
    # First nothing, until no more than a second of work waits; then as much as is answered.
    assert let_in[0] == 4
    assert len(serving.line) == pytest.approx(1.0 / PER_TEXT, abs=6)
    assert sum(let_in[-50:]) == pytest.approx(50 * 4, abs=4)
    assert serving.admission.wait(serving.now) == pytest.approx(1.0, abs=0.05)


def test_after_the_queue_was_empty_there_may_be_a_burst_again():
    serving = Serving(max_seconds=0.2)
    for _ in range(100):
        serving.flood()
        serving.run()
    assert serving.admission.bound(serving.now) == 0.2
    while len(serving.line):
        serving.run()
    assert serving.flood() == pytest.approx(0.2 * BURST / PER_TEXT, abs=2)


def test_the_model_is_never_left_idle_by_a_bound_that_is_too_tight():
    serving = Serving(max_seconds=0.001, max_batch=4)
    serving.ask(4)
    serving.run()
    serving.flood()
    assert len(serving.line) >= STANDING_BATCHES * 4


def test_nothing_is_refused_while_nothing_waits():
    serving = Serving(max_seconds=0.1, max_requests=1)
    assert serving.ask(64) is None
    assert serving.ask(1).status_code == 429
    serving.line.take(serving.now)
    serving.admission.begun(measured(["x" * 90] * 64, 640), 1, serving.now)
    assert serving.ask(64) is None


def test_retry_after_says_when_there_will_be_room():
    serving = Serving(max_seconds=2.9)
    serving.flood()
    refusal = serving.ask()
    assert refusal.status_code == 429
    assert refusal.headers == {"Retry-After": "6"}
    assert "5.8 seconds of work" in refusal.what
    assert refusal.value == len(serving.line)
    quick = Serving(max_seconds=0.1)
    quick.flood()
    assert quick.ask().headers == {"Retry-After": "1"}


def test_what_cannot_be_answered_in_time_is_told_so_at_once():
    serving = Serving(max_seconds=10.0)
    for _ in range(40):
        serving.ask()
    assert serving.ask(deadline=0.3).status_code == 429
    assert "0.3 left" in serving.ask(deadline=0.3).what
    assert serving.ask(deadline=0.6) is None


def test_a_deadline_leaves_room_for_an_error_and_for_its_own_batch():
    serving = Serving(max_seconds=10.0)
    serving.ask(4)
    serving.run()
    for _ in range(40):
        serving.ask()
    # 0.4 seconds of work before it, a quarter more for an error, and 0.04 for a batch as they were.
    assert serving.ask(deadline=0.52).status_code == 429
    assert serving.ask(deadline=0.56) is None


def test_one_long_pause_is_not_taken_for_the_pace():
    serving = Serving()
    serving.ask(4)
    serving.run(slow=1000.0)
    serving.ask(4)
    assert serving.admission.wait(serving.now) == pytest.approx(0.04 * (1 + NEWEST * (MOST_DRIFT - 1)))


def test_a_batch_that_is_run_in_parts_counts_as_so_many():
    serving = Serving(max_seconds=0.001)
    size = measured(["x" * 90] * 4, 640)
    serving.admission.ended(serving.admission.begun(size, 4, serving.now), serving.now + 0.4)
    assert serving.admission.bound(serving.now) == pytest.approx(STANDING_BATCHES * 0.1)


def test_a_batch_that_left_nothing_behind_does_not_say_how_full_they_get():
    serving = Serving(max_batch=4)
    pace = serving.pace
    for _ in range(100):
        for texts in (1, 8, 64):
            pace.learn(100 * texts, 0.1 + PER_TEXT * texts)
    one = measured(["x" * 90], 640)
    for _ in range(100):
        run = serving.admission.begun(one, 1, serving.now)
        serving.admission.ended(run, serving.now + pace.seconds(one.own))
    serving.ask(8)
    assert serving.admission.wait(serving.now) == pytest.approx(2 * 0.1 + 8 * PER_TEXT, rel=0.02)


def test_requests_and_their_characters_are_bounded_too(monkeypatch):
    serving = Serving(max_requests=3, max_seconds=100.0)
    assert serving.flood() == 3
    assert "3 requests wait" in serving.ask().what
    monkeypatch.setattr(module, "MAX_QUEUE_CHARS", 300)
    serving = Serving(max_seconds=100.0)
    assert serving.flood() == 3


def test_a_model_that_is_slower_than_its_batches_say_is_believed():
    serving = Serving(max_seconds=100.0)
    for _ in range(60):
        serving.ask(4)
        serving.run(slow=2.0)
    for _ in range(10):
        serving.ask(4)
    assert serving.admission.wait(serving.now) == pytest.approx(0.8, rel=0.05)


@pytest.mark.parametrize("times", [1, 2, 3, 10])
def test_at_many_times_capacity_everything_that_can_be_answered_is(times):
    """In simulated time: requests come evenly, each wants its answer within a second."""
    serving = Serving(max_seconds=0.5)
    end = serving.now + 30.0
    due, gap = serving.now, PER_TEXT / times
    arrived = answered = 0
    waiting = []
    while serving.now < end:
        while due <= serving.now:
            arrived += 1
            if serving.ask(deadline=1.0) is None:
                waiting.append(due)
            due += gap
        if not len(serving.line):
            serving.now = due
            continue
        before = len(serving.line)
        serving.run()
        done = before - len(serving.line)
        answered += sum(serving.now - asked <= 1.0 for asked in waiting[:done])
        waiting = waiting[done:]
    best = 30.0 / PER_TEXT
    assert arrived == pytest.approx(times * best, rel=0.02)
    assert answered >= 0.97 * best


def test_batches_that_run_at_once_share_what_waits():
    serving = Serving()
    serving.admission.lanes = 2
    for _ in range(8):
        serving.ask()
    assert serving.admission.wait(serving.now) == pytest.approx(0.04)
    runs = []
    for _ in range(2):
        batch, _late = serving.line.take(serving.now)
        runs.append(serving.admission.begun(measured(["x" * 90] * len(batch), 640), 1, serving.now))
    assert serving.admission.running == 2
    assert serving.admission.wait(serving.now + 0.01) == pytest.approx(0.03)
    serving.admission.ended(runs[0], serving.now + 0.04)
    assert serving.admission.running_since == serving.now
    assert serving.admission.wait(serving.now + 0.04) == pytest.approx(0.0)
