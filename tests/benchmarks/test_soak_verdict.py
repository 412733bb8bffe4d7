"""When a soak calls memory flat."""

from __future__ import annotations

import numpy as np
import pytest

import soak


def memory(seconds, growth, noise=1.0, warm_up=0.0):
    """Samples a second of a process with 1000 MB that grows by a share an hour."""
    times = np.arange(seconds, dtype=float)
    level = 1000 * (1 + growth * times / 3600) + warm_up * np.exp(-times / (seconds / 40))
    return times, level + np.random.default_rng(5).normal(0, noise, len(times))


@pytest.mark.parametrize(
    ("growth", "verdict"), [(0.0, "flat"), (0.03, "flat"), (-0.2, "flat"), (0.08, "grows"), (1.0, "grows")]
)
def test_half_an_hour_tells(growth, verdict):
    line = soak.fit_line(*memory(1800, growth, noise=3.0), per=3600.0)
    assert line.verdict == verdict
    scale = line.level_mb / 1000
    assert line.low * scale < growth < line.high * scale
    assert line.growth * scale == pytest.approx(growth, abs=0.01)
    # Warm-up is left out: the mean is that of the middle of the rest.
    assert scale == pytest.approx(1 + growth * 0.6 / 2, abs=0.001)


def test_a_minute_of_noise_tells_nothing():
    assert soak.fit_line(*memory(60, 0.0, noise=20.0), per=3600.0).verdict == "undecided"


def test_what_grows_while_it_warms_up_is_not_held_against_it():
    times, sampled = memory(1800, 0.0, warm_up=-400.0)
    assert soak.fit_line(times, sampled, per=3600.0).verdict == "flat"


def test_swaps_are_told_by_the_hundred():
    line = soak.fit_line(range(100), [500 + 0.5 * number for number in range(100)], per=100.0)
    assert line.growth == pytest.approx(50 / line.level_mb)
    assert line.verdict == "grows"


def test_a_minute_says_what_happened():
    minute = soak.Minute(seconds=[0.001 * number for number in range(1, 101)], swaps=2)
    minute.failures["ApiBusy"] += 3
    figures = minute.figures()
    assert figures["answered"] == 100
    assert figures["failures"] == {"ApiBusy": 3}
    assert figures["p50_ms"] == pytest.approx(50.5)
    assert figures["p99_ms"] == pytest.approx(99.01)
    assert figures["most_ms"] == 100
    assert soak.Minute().figures() == {"answered": 0, "failures": {}, "swaps": 0}
