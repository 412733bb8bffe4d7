from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from scipy.stats import chisquare

from contestants.buffers import ClassReservoirs, GreedyBalanced, Reservoir, herding
from perdure.errors import UsageError


def test_every_position_has_the_same_chance_to_stay_in_a_reservoir() -> None:
    rng = np.random.default_rng(0)
    stayed: Counter[int] = Counter()
    for _ in range(6000):
        reservoir: Reservoir[int] = Reservoir(2, rng)
        for position in range(6):
            reservoir.offer(position)
        stayed.update(reservoir.items)
    assert chisquare([stayed[position] for position in range(6)]).pvalue > 0.01


def test_each_class_has_a_reservoir_of_its_own() -> None:
    memory: ClassReservoirs[int] = ClassReservoirs(3, np.random.default_rng(0))
    for number in range(100):
        memory.offer("many", number)
    memory.offer("few", 1)
    assert memory.counts() == {"many": 3, "few": 1}
    memory.replace(lambda item: -item)
    labels, items = memory.items()
    assert labels == ("many", "many", "many", "few")
    assert all(item <= 0 for item in items)


def test_a_memory_without_room_is_refused() -> None:
    with pytest.raises(UsageError, match="at least 1 sample per class, got 0"):
        ClassReservoirs(0, np.random.default_rng(0))


def test_a_greedy_balanced_memory_keeps_counts_within_one() -> None:
    memory: GreedyBalanced[int] = GreedyBalanced(7, 100, np.random.default_rng(0))
    for label, count in (("a", 50), ("b", 30), ("c", 9)):
        for number in range(count):
            memory.offer(label, number)
        held = memory.counts().values()
        assert sum(held) == 7
        assert max(held) - min(held) <= 1


def test_a_greedy_balanced_memory_grows_but_never_past_its_share_of_a_class() -> None:
    memory: GreedyBalanced[int] = GreedyBalanced(0, 2, np.random.default_rng(0))
    memory.grow(4)
    for number in range(9):
        memory.offer("a", number)
    assert memory.counts() == {"a": 2}
    for number in range(9):
        memory.offer("b", number)
    memory.grow(2)
    assert memory.counts() == {"a": 2, "b": 2}


def test_herding_follows_the_mean_and_not_the_nearest() -> None:
    features = np.asarray([[0.0], [4.0], [5.0]])
    assert herding(features, 3) == [1, 0, 2]
    assert herding(features, 2) == [1, 0]
    assert np.argsort(abs(features - features.mean()).ravel()).tolist() == [1, 2, 0]
