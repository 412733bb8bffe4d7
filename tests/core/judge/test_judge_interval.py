from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from perdure.judge.interval import Interval, clopper_pearson, mean, paired_difference, rows_needed, worth


def bounds(gains: int, losses: int, rows: int, alpha: float, cache: dict[tuple[int, int], Interval]) -> Interval:
    key = gains, losses
    if key not in cache:
        cache[key] = paired_difference(gains, losses, rows, alpha)
    return cache[key]


def test_agrees_with_published_interval() -> None:
    # Fagerland, Lydersen and Laake, "Recommended tests and confidence intervals for paired binomial proportions",
    # Statistics in Medicine 33 (2014): airway hyper-responsiveness, 1 and 7 discordant of 21, 95 % two-sided.
    found = paired_difference(1, 7, 21, 0.025)
    assert (found.lower, found.estimate, found.upper) == pytest.approx((-0.517, -0.286, -0.026), abs=5e-4)


@pytest.mark.parametrize(("gains", "losses", "rows"), [(3, 9, 200), (0, 4, 30), (7, 0, 25), (20, 25, 100)])
def test_bounds_solve_the_score_equation(gains: int, losses: int, rows: int) -> None:
    """Against maximum likelihood under the constraint, by brute force."""

    def score(delta: float) -> float:
        grid = np.linspace(max(0.0, -delta) + 1e-9, (1 - delta) / 2 - 1e-9, 200_001)
        equal = rows - gains - losses
        with np.errstate(divide="ignore"):
            logs = gains * np.log(grid + delta) + losses * np.log(grid) + equal * np.log(1 - 2 * grid - delta)
        p = float(grid[np.nanargmax(logs)])
        return (gains - losses - rows * delta) / math.sqrt(rows * (2 * p + delta * (1 - delta)))

    found = paired_difference(gains, losses, rows, 0.05)
    assert score(found.lower) == pytest.approx(1.6449, abs=0.01)
    assert score(found.upper) == pytest.approx(-1.6449, abs=0.01)


def test_no_disagreement_is_not_certainty() -> None:
    found = paired_difference(0, 0, 100, 0.05)
    assert found.lower == pytest.approx(-2.7055 / 102.7055, abs=1e-4)
    assert found.upper == pytest.approx(2.7055 / 102.7055, abs=1e-4)
    assert found.estimate == 0


def test_swapping_the_two_mirrors_the_bounds() -> None:
    one, other = paired_difference(3, 8, 120, 0.05), paired_difference(8, 3, 120, 0.05)
    assert one.lower == pytest.approx(-other.upper)
    assert one.upper == pytest.approx(-other.lower)


@pytest.mark.parametrize(("gains", "losses", "rows"), [(0, 10, 10), (10, 0, 10), (0, 0, 1), (1, 0, 1), (5, 5, 10)])
def test_extremes_stay_in_range(gains: int, losses: int, rows: int) -> None:
    found = paired_difference(gains, losses, rows, 0.05)
    assert -1 <= found.lower <= found.estimate <= found.upper <= 1


@pytest.mark.parametrize("counts", [(1, 0, 0), (-1, 0, 5), (0, -1, 5), (4, 3, 5)])
def test_impossible_counts_are_refused(counts: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="do not fit"):
        paired_difference(*counts, 0.05)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.9])
def test_impossible_level_is_refused(alpha: float) -> None:
    with pytest.raises(ValueError, match="alpha"):
        paired_difference(1, 1, 10, alpha)


@pytest.mark.parametrize(
    ("rows", "gain", "loss"), [(30, 0.0, 0.1), (60, 0.02, 0.02), (60, 0.0, 0.05), (300, 0.01, 0.03)]
)
def test_lower_bound_covers_at_small_n(rows: int, gain: float, loss: float) -> None:
    random = np.random.default_rng(rows)
    cache: dict[tuple[int, int], Interval] = {}
    draws = random.multinomial(rows, [gain, loss, 1 - gain - loss], size=4000)
    missed = np.mean([bounds(int(g), int(c), rows, 0.05, cache).lower > gain - loss for g, c, _ in draws])
    assert missed <= 0.075


def test_power_and_error_of_the_oracle() -> None:
    """d=3 %, m=1 %, n=1,856: power 80 % where truly equal, error 5 % where truly worse by m."""
    random = np.random.default_rng(1)
    cache: dict[tuple[int, int], Interval] = {}

    def declared(gain: float, loss: float) -> float:
        draws = random.multinomial(1856, [gain, loss, 1 - gain - loss], size=3000)
        return float(np.mean([bounds(int(g), int(c), 1856, 0.05, cache).lower > -0.01 for g, c, _ in draws]))

    assert 0.76 <= declared(0.015, 0.015) <= 0.84
    assert 0.03 <= declared(0.010, 0.020) <= 0.06


@pytest.mark.parametrize(("count", "rows"), [(0, 1), (0, 59), (1, 100), (7, 300), (299, 300), (40, 20_000)])
def test_a_share_is_bounded_by_quantiles_of_the_beta_distribution(count: int, rows: int) -> None:
    found = clopper_pearson(count, rows, 0.05)
    lower = stats.beta.ppf(0.05, count, rows - count + 1) if count else 0.0
    assert found.lower == pytest.approx(lower, abs=1e-9)
    assert found.estimate == count / rows
    assert found.upper == pytest.approx(stats.beta.ppf(0.95, count + 1, rows - count), abs=1e-9)


def test_a_share_of_all_rows_has_no_upper_bound_and_one_of_none_is_refused() -> None:
    assert clopper_pearson(3, 3, 0.05).upper == 1.0
    for count, rows in ((0, 0), (4, 3), (-1, 3)):
        with pytest.raises(ValueError, match="is no share"):
            clopper_pearson(count, rows, 0.05)


def test_rows_needed_is_the_oracle() -> None:
    assert rows_needed(0.03, 0.01, 0.05) == pytest.approx(1856, abs=2)
    with pytest.raises(ValueError, match="margin"):
        rows_needed(0.03, 0.0, 0.05)


@pytest.mark.parametrize("rows", [5, 20, 200])
def test_mean_has_students_bounds(rows: int) -> None:
    values = np.random.default_rng(rows).normal(0.3, 2.0, rows)
    reach = stats.t.ppf(0.95, rows - 1) * values.std(ddof=1) / math.sqrt(rows)
    found = mean(values, 0.05)
    assert found.lower == pytest.approx(values.mean() - reach, abs=0.01)
    assert found.upper == pytest.approx(values.mean() + reach, abs=0.01)


def test_one_value_bounds_nothing_and_none_is_refused() -> None:
    assert mean(np.array([3.0]), 0.05) == Interval(-math.inf, 3.0, math.inf)
    with pytest.raises(ValueError, match="no values"):
        mean(np.array([]), 0.05)


def test_weighted_rows_are_worth_what_the_heaviest_leave_them() -> None:
    assert worth(np.ones(7)) == 7
    assert worth(np.array([3.0, 1.0, 1.0, 1.0])) == 2
    assert worth(np.array([])) == 0
    # One row is one row, whatever its weight: a little less would be none.
    assert all(worth(np.array([count / rows])) == 1.0 for count in range(1, 40) for rows in range(1, 40))


def test_equal_weights_leave_students_bounds_as_they_are() -> None:
    values = np.random.default_rng(4).normal(0.3, 2.0, 60)
    plain, weighted = mean(values, 0.05), mean(values, 0.05, np.full(60, 0.7))
    assert (weighted.lower, weighted.estimate, weighted.upper) == pytest.approx(
        (plain.lower, plain.estimate, plain.upper)
    )


def test_what_one_row_says_alone_bounds_nothing() -> None:
    assert mean(np.array([1.0, 2.0]), 0.05, np.array([1.0, 0.0])) == Interval(-math.inf, 1.0, math.inf)


@pytest.mark.parametrize(("heavy", "light"), [(1.0, 1.0), (2.0, 0.3), (0.3, 2.0)])
def test_weighted_bounds_hold_as_often_as_they_say(heavy: float, light: float) -> None:
    """Two groups, of which the one with few rows counts most, whichever of the two varies more."""
    random = np.random.default_rng(8)
    weights = np.repeat([4.0, 0.5], [40, 400])
    truth = (160 * -0.2 + 200 * 0.5) / 360
    missed = 0
    for _ in range(3000):
        values = np.concatenate([random.normal(-0.2, heavy, 40), random.normal(0.5, light, 400)])
        missed += mean(values, 0.01, weights).lower > truth
    assert missed <= 3000 * 0.01 + 3 * math.sqrt(3000 * 0.01 * 0.99)


def test_weighted_counts_hold_as_often_as_they_say() -> None:
    """Twenty rows count as much as 480; a fifth of the twenty are losses, and of the others as many are gains."""
    random = np.random.default_rng(9)
    shares = np.repeat([0.5 / 20, 0.5 / 480], [20, 480])
    count = worth(shares)
    missed = 0
    for _ in range(400):
        lost, gained = random.random(20) < 0.2, random.random(480) < 0.2
        losses, gains = shares[:20][lost].sum() * count, shares[20:][gained].sum() * count
        missed += paired_difference(gains, losses, count, 0.0167).lower > 0
    assert missed <= 400 * 0.0167 + 3 * math.sqrt(400 * 0.0167)
