from __future__ import annotations

import pytest

from perdure_services.serving.pace import BEYOND, OVERHEAD, Pace, measured


def test_what_a_text_costs_goes_by_what_the_encoder_sees_of_it():
    one = measured(["x" * 100], 640)
    assert (one.texts, one.seen, one.own, one.padded) == (1, 100, 100 + OVERHEAD, 100 + OVERHEAD)
    cut = measured(["x" * (640 + 64 * 5)], 640)
    assert (cut.seen, cut.own) == (640, 640 + OVERHEAD + 64 * 5 // BEYOND)
    assert cut.padded == cut.own


def test_texts_together_are_padded_to_the_longest():
    short, long = measured(["x" * 10] * 3, 640), measured(["x" * 200], 640)
    both = short + long
    assert both == measured(["x" * 10, "x" * 10, "x" * 10, "x" * 200], 640)
    assert both.own == 3 * (10 + OVERHEAD) + 200 + OVERHEAD
    assert both.padded == 4 * (200 + OVERHEAD)


def test_a_pace_finds_what_a_batch_costs_and_what_its_texts_do():
    pace = Pace()
    assert pace.seconds(1000) == 0.0
    for work in (60, 250, 900, 3000):
        pace.learn(work, 0.004 + 0.0001 * work)
    assert pace.fixed == pytest.approx(0.004)
    assert pace.per_work == pytest.approx(0.0001)
    assert pace.seconds(1000, 2) == pytest.approx(0.108)


def test_while_one_size_is_known_the_rest_is_found_out_by_trying():
    pace = Pace()
    for _ in range(5):
        pace.learn(64, 0.005)
    assert (pace.fixed, pace.per_work) == (pytest.approx(0.005), 0.0)


def test_a_long_time_of_small_batches_does_not_make_the_large_ones_forgotten():
    pace = Pace()
    pace.learn(4000, 0.4)
    for _ in range(1000):
        pace.learn(60, 0.006)
    assert pace.seconds(4000) == pytest.approx(0.4, rel=0.01)


def test_a_machine_that_becomes_slower_is_followed():
    pace = Pace()
    for slow in (1.0, 3.0):
        for _ in range(30):
            for work in (60, 1000):
                pace.learn(work, slow * (0.002 + 0.0001 * work))
    assert pace.seconds(1000) == pytest.approx(0.306, rel=0.02)


def test_one_long_pause_does_not_count_for_much():
    pace = Pace()
    for seconds in (0.01, 0.01, 60.0):
        pace.learn(60, seconds)
    assert pace.seconds(60) <= 0.017


@pytest.mark.parametrize("times", [{60: 0.1, 1000: 0.05}, {60: 0.001, 1000: 0.5}, {60: 0.0, 1000: 0.1}])
def test_no_part_is_ever_negative(times):
    pace = Pace()
    for work, seconds in times.items():
        pace.learn(work, seconds)
    assert pace.fixed >= 0.0
    assert pace.per_work >= 0.0
    assert pace.seconds(500) > 0.0
