"""Chances, places, held-out samples, tombstones, provenance."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy.stats import chi2, chisquare

from perdure.records import Record, sample_key
from perdure_replay import ReplayMemory
from perdure_replay.priority import Priorities, key_from_seed, unit

Open = Callable[..., ReplayMemory]
K, N = 2, 6


def wrong_reservoir(draws: random.Random) -> list[int]:
    """Algorithm R with the known error: the slot is drawn before the count includes the newcomer."""
    kept = list(range(K))
    for count in range(K, N):
        slot = draws.randint(0, count - 1)
        if slot < K:
            kept[slot] = count
    return kept


def p_value(times: np.ndarray[Any, Any], trials: int) -> float:
    """Of the hypothesis that each of N positions stays with the same chance, K/N.

    The counts of one trial are tied to K, which makes the statistic smaller by (N−K)/(N−1); undone here.
    """
    expected = np.full(N, trials * K / N)
    statistic = chisquare(times, expected).statistic * (N - 1) / (N - K)
    return float(chi2.sf(statistic, N - 1))


def test_every_position_has_the_same_chance(world: Any, opened: Open) -> None:
    trials = 400
    labels = [f"label{trial:04}" for trial in range(trials)]
    records: list[Record] = []
    for position in range(N):
        for label in labels:
            records += world.labelled(f"{label}-{position}", f"text {position}", label, at=position)
    memory = opened(records, per_class=K, seed=7)
    times = np.zeros(N)
    for sample in memory.samples():
        times[int(sample.text[-1])] += 1
    assert times.sum() == trials * K
    assert p_value(times, trials) > 0.001


def test_the_uniformity_test_notices_a_wrong_reservoir() -> None:
    trials, draws, times = 400, random.Random(7), np.zeros(N)
    for _ in range(trials):
        times[wrong_reservoir(draws)] += 1
    assert p_value(times, trials) < 1e-6


def test_priorities_are_uniform_over_keys_and_texts() -> None:
    places = [
        Priorities(key_from_seed(seed), 0).place("label", Priorities(key_from_seed(seed), 0).text(f"text {text}"))
        for seed in range(100)
        for text in range(50)
    ]
    counts, _ = np.histogram([unit(place) for place in places], bins=20, range=(0, 1))
    assert chisquare(counts).pvalue > 0.001


def test_the_score_follows_the_weighted_form_and_does_not_overflow() -> None:
    plain, fading = Priorities(b"k", 0), Priorities(b"k", 2.0)
    place = plain.place("a", plain.text("b"))
    assert plain.score(place, 1e18) == plain.score(place, 0)
    two_days = 2 * 86_400.0
    assert np.exp(fading.score(place, two_days)) == pytest.approx(-np.log(unit(place)) / 2)
    assert np.isfinite(fading.score(place, 1e10))
    assert 0 < unit(b"\0" * 16) < unit(b"\xff" * 16) < 1


def test_a_half_life_prefers_what_was_asserted_lately(world: Any, opened: Open) -> None:
    records: list[Record] = []
    for number in range(40):
        records += world.labelled(f"old{number}", f"old {number}", "a", at=-20 * 86_400.0)
        records += world.labelled(f"new{number}", f"new {number}", "a", at=0)
    fading = opened(records, name="fading", per_class=10, half_life_days=1.0)
    plain = opened(records, name="plain", per_class=10)
    assert all(sample.text.startswith("new") for sample in fading.samples())
    assert {sample.text[:3] for sample in plain.samples()} == {"old", "new"}


@pytest.mark.parametrize("backwards", [False, True])
def test_with_a_half_life_the_latest_assertion_decides(world: Any, opened: Open, backwards: bool) -> None:
    day = 86_400.0
    said = [*world.labelled("1", "again", "a", at=-30 * day), *world.labelled("2", "again", "a", at=-day)]
    records: list[Record] = said[::-1] if backwards else said
    for number in range(20):
        records += world.labelled(f"other{number}", f"other {number}", "a", at=-15 * day)
    memory = opened(records[:2], per_class=2, half_life_days=0.5)
    memory.ingest(world.page(records[2:], start=2))
    assert memory.samples()[0].text == "again"
    assert memory.samples()[0].provenance == ("2",)
    memory.ingest(world.page([world.feedback("2", "b", at=0)], start=99))
    assert [sample.text for sample in memory.samples() if sample.label == "b"] == ["again"]
    assert memory.counts().tombstones == 1


def test_exact_duplicates_share_a_place(world: Any, opened: Open) -> None:
    records = [
        *world.labelled("1", "Card  lost", "a"),
        *world.labelled("2", "card LOST", "a", at=5),
        *world.labelled("3", "card lost", "b"),
    ]
    one, two = opened(records).samples()
    assert (one.label, two.label) == ("a", "b")
    assert set(one.provenance) == {"1", "2"}
    assert one.key == sample_key("a", "CARD LOST")
    assert one.time == world.now + 6
    assert one.weight == 1.0
    backwards = opened(records[::-1], name="backwards").samples()
    assert backwards[0].text == one.text


@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
def test_a_fixed_share_of_pairs_is_held_out_whatever_memory_holds(world: Any, opened: Open, share: float) -> None:
    records = [record for number in range(400) for record in world.labelled(f"{number}", f"text {number}", "a")]
    small = opened(records[:200], per_class=50, holdout_share=share, name="small")
    large = opened(records, per_class=400, holdout_share=share, name="large")
    flags = {sample.key: sample.held_out for sample in large.samples()}
    assert all(flags[sample.key] == sample.held_out for sample in small.samples())
    assert abs(sum(flags.values()) / 400 - share) < 0.07
    assert large.counts().held_out == sum(flags.values())


def test_a_corrected_sample_keeps_its_place_as_a_tombstone(world: Any, opened: Open) -> None:
    records = [record for number in range(6) for record in world.labelled(f"{number}", f"text {number}", "a")]
    memory = opened(records, per_class=3)
    first, second, third = memory.samples()
    memory.ingest(world.page([world.feedback(first.provenance[0], "b", at=50)]))
    assert [sample.text for sample in memory.samples()] == [second.text, third.text, first.text]
    assert [sample.label for sample in memory.samples()] == ["a", "a", "b"]
    assert memory.counts().tombstones == 1
    memory.ingest(world.page([world.feedback(first.provenance[0], "a", at=60)]))
    assert memory.samples()[0].text == first.text
    assert memory.counts().tombstones == 1  # now it is the place under b


def test_a_pair_lives_while_anybody_backs_it_even_beyond_the_kept_provenance(world: Any, opened: Open) -> None:
    many = [f"{number}" for number in range(40)]
    memory = opened([record for name in many for record in world.labelled(name, "hello", "a")])
    assert len(memory.samples()[0].provenance) == 16
    kept = set(memory.samples()[0].provenance)
    memory.ingest(world.page([world.feedback(name, "b", at=9) for name in many if name in kept]))
    assert [sample.label for sample in memory.samples()] == ["a", "b"]
    memory.ingest(world.page([world.feedback(name, "b", at=9) for name in many]))
    assert [sample.label for sample in memory.samples()] == ["b"]


def test_a_tighter_bound_holds_from_the_next_start(world: Any, opened: Open) -> None:
    records = [record for number in range(9) for record in world.labelled(f"{number}", f"text {number}", "a")]
    memory = opened(records, per_class=6)
    wide = memory.samples()
    memory.close()
    assert [sample.key for sample in opened(per_class=2).samples()] == [sample.key for sample in wide[:2]]


def test_a_changed_half_life_rescores_what_is_there(world: Any, opened: Open) -> None:
    records: list[Record] = []
    for number in range(10):
        records += world.labelled(f"{number}", f"text {number}", "a", at=-number * 86_400.0)
    opened(records, per_class=10).close()
    fading = opened(per_class=10, half_life_days=0.01)
    assert [sample.text for sample in fading.samples()] == [f"text {number}" for number in range(10)]


def test_the_key_is_made_once_from_the_seed(world: Any, opened: Open) -> None:
    records = [record for number in range(9) for record in world.labelled(f"{number}", f"text {number}", "a")]
    one = opened(records, name="one", seed=1)
    same = opened(records, name="same", seed=1)
    other = opened(records, name="other", seed=2)
    assert one.digest() == same.digest() != other.digest()
    expected = one.digest()
    one.close()
    assert opened(name="one", seed=2).digest() == expected
