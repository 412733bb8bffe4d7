from __future__ import annotations

import math

import pytest

from perdure_services.serving.pace import OVERHEAD, Pace, measured
from perdure_services.serving.waiting_line import FIXED_SHARE, WINDOW, WaitingLine, WaitingRequest

FIXED, PER_WORK = 0.002, 0.0001


@pytest.fixture
def pace():
    """2 ms a batch and 0.1 ms a character."""
    known = Pace()
    for work in (50, 500, 5000):
        known.learn(work, FIXED + PER_WORK * work)
    return known


@pytest.fixture
def line_of(pace):
    def make(*requests, max_batch=32, batch_seconds=60.0):
        line = WaitingLine(pace, max_batch=max_batch, batch_seconds=batch_seconds)
        for request in requests:
            line.put(request)
        return line

    return make


def asked(*lengths, deadline=math.inf, name=""):
    texts = tuple(name + "x" * (length - len(name)) for length in lengths)
    return WaitingRequest(texts, measured(texts, 640), sum(lengths), deadline)


def lengths(batch):
    return [len(text) for request in batch for text in request.texts]


def batches(line, now=0.0):
    found = []
    while batch := line.take(now)[0]:
        found.append(lengths(batch))
    return found


def test_a_long_text_does_not_pad_short_ones(line_of):
    line = line_of(*(asked(30) for _ in range(10)), asked(600), *(asked(30) for _ in range(10)))
    assert batches(line) == [[30] * 20, [600]]


def test_the_oldest_is_in_the_next_batch_whatever_its_length(line_of):
    line = line_of(asked(600), *(asked(30) for _ in range(10)))
    assert batches(line) == [[600], [30] * 10]


def test_nobody_starves_however_many_others_fit_better(line_of):
    line = line_of(asked(30), asked(600, name="long"), asked(30))
    turns = 1
    while lengths(line.take(0.0)[0]) != [600]:
        turns += 1
        # Short ones keep coming; they must not get before it again and again.
        line.put(asked(30))
        line.put(asked(30))
    assert turns == 2


def test_padding_that_costs_less_than_a_batch_of_its_own_is_accepted(line_of):
    # 2 ms are 20 characters.
    assert batches(line_of(asked(5), asked(24))) == [[5, 24]]
    assert batches(line_of(asked(5), asked(26))) == [[5], [26]]
    assert batches(line_of(asked(24), asked(5))) == [[24, 5]]
    assert batches(line_of(asked(26), asked(5))) == [[26], [5]]
    # Three are padded by one that is longer.
    assert batches(line_of(asked(5), asked(5), asked(5), asked(11))) == [[5, 5, 5, 11]]
    assert batches(line_of(asked(5), asked(5), asked(5), asked(13))) == [[5, 5, 5], [13]]


def test_a_little_padding_is_accepted_where_batches_cost_nothing_of_their_own():
    proportional = Pace()
    for work in (50, 5000):
        proportional.learn(work, PER_WORK * work)

    def taken(*lengths):
        line = WaitingLine(proportional, max_batch=32, batch_seconds=60.0)
        for length in lengths:
            line.put(asked(length))
        return batches(line)

    assert taken(100, 120, 90, 140) == [[100, 90, 120, 140]]
    assert taken(100, 208) == [[100, 208]]
    assert taken(100, 214) == [[100], [214]]


def test_those_nearest_in_length_come_first_and_the_earlier_of_them(line_of):
    line = line_of(asked(50), asked(65), asked(52), asked(50, name="a"), asked(50, name="b"), max_batch=3)
    batch, _ = line.take(0.0)
    assert [text[0] for request in batch for text in request.texts] == ["x", "a", "b"]
    assert batches(line) == [[65, 52]]


def test_while_nothing_is_known_all_go_together():
    line = WaitingLine(Pace(), max_batch=32, batch_seconds=0.05)
    for request in (asked(30), asked(600), asked(5)):
        line.put(request)
    assert sorted(batches(line)[0]) == [5, 30, 600]


def test_a_batch_is_bounded_in_texts_and_in_time(line_of):
    assert batches(line_of(*(asked(30) for _ in range(5)), max_batch=2)) == [[30, 30], [30, 30], [30]]
    # 50 ms are 480 characters: four texts of 110 with what each costs beside.
    many = [asked(110) for _ in range(9)]
    assert batches(line_of(*many, batch_seconds=0.05)) == [[110] * 4, [110] * 4, [110]]
    # Less than what the fixed cost is worth no bound makes it.
    least = int((FIXED_SHARE - 1) * FIXED / PER_WORK / (9 + OVERHEAD))
    assert batches(line_of(*(asked(9) for _ in range(20)), batch_seconds=1e-6))[0] == [9] * least


def test_a_request_that_is_too_large_for_any_batch_is_one_of_its_own(line_of):
    line = line_of(asked(30), asked(*[30] * 5), asked(30), max_batch=4)
    assert batches(line) == [[30, 30], [30] * 5]


def test_what_is_too_late_leaves_without_being_given_out(line_of):
    late, early = asked(30, deadline=1.0), asked(30, deadline=3.0)
    line = line_of(asked(30), late, early)
    batch, left = line.take(1.0)
    assert (len(batch), left) == (2, [late])
    assert (len(line), line.texts, line.work, line.chars) == (0, 0, 0, 0)


def test_to_leave_frees_the_place_once(line_of):
    one, other = asked(30), asked(50, 60)
    line = line_of(one, other)
    assert (len(line), line.texts, line.work, line.chars) == (2, 3, 140 + 3 * OVERHEAD, 140)
    assert line.remove(other)
    assert not line.remove(other)
    assert (len(line), line.texts, line.work, line.chars) == (1, 1, 30 + OVERHEAD, 30)
    assert batches(line) == [[30]]
    assert not line.remove(one)


def test_only_so_many_are_looked_at(line_of):
    line = line_of(asked(30), *(asked(300) for _ in range(WINDOW)), asked(30))
    assert lengths(line.take(0.0)[0]) == [30]


def test_the_texts_of_one_request_are_run_by_length(line_of):
    sizes = [measured(["x" * length], 640) for length in (600, 30, 31, 590, 30)]
    assert line_of().pieces(sizes) == [[1, 4, 2], [3, 0]]
    assert line_of(max_batch=2).pieces(sizes) == [[1, 4], [2], [3, 0]]
