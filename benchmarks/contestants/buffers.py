"""What contestants keep of the past."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from perdure.errors import UsageError

Item = TypeVar("Item")


class Reservoir(Generic[Item]):
    """A uniform sample of at most k of all items offered.

    Vitter, "Random Sampling with a Reservoir", 1985, algorithm R: the n-th item enters with probability k/n.
    """

    def __init__(self, size: int, rng: np.random.Generator) -> None:
        self._size = size
        self._rng = rng
        self._offered = 0
        self.items: list[Item] = []

    def offer(self, item: Item) -> None:
        """Takes the item in, perhaps."""
        self._offered += 1
        if len(self.items) < self._size:
            self.items.append(item)
            return
        place = int(self._rng.integers(0, self._offered))
        if place < self._size:
            self.items[place] = item


class ClassReservoirs(Generic[Item]):
    """One reservoir for each class.

    Args:
        per_class: most items of a class.
        rng: where chance comes from.

    Raises:
        UsageError: `per_class` is below 1.
    """

    def __init__(self, per_class: int, rng: np.random.Generator) -> None:
        if per_class < 1:
            raise UsageError(f"a memory needs at least 1 sample per class, got {per_class}")
        self._per_class = per_class
        self._rng = rng
        self._classes: dict[str, Reservoir[Item]] = {}

    @property
    def labels(self) -> tuple[str, ...]:
        """In the order in which they came."""
        return tuple(self._classes)

    def offer(self, label: str, item: Item) -> None:
        """Takes the item in, perhaps."""
        if label not in self._classes:
            self._classes[label] = Reservoir(self._per_class, self._rng)
        self._classes[label].offer(item)

    def items(self) -> tuple[tuple[str, ...], tuple[Item, ...]]:
        """Labels and items, class by class."""
        pairs = [(label, item) for label, reservoir in self._classes.items() for item in reservoir.items]
        return tuple(label for label, _ in pairs), tuple(item for _, item in pairs)

    def replace(self, changed: Callable[[Item], Item]) -> None:
        """Puts `changed(item)` in the place of every item."""
        for reservoir in self._classes.values():
            reservoir.items = [changed(item) for item in reservoir.items]

    def counts(self) -> dict[str, int]:
        return {label: len(reservoir.items) for label, reservoir in self._classes.items()}


class GreedyBalanced(Generic[Item]):
    """A memory of fixed capacity that stays balanced over classes whatever comes.

    Prabhu, Torr and Dokania, "GDumb", ECCV 2020, algorithm 1: an item enters while its class has less than its share;
    when the memory is full, a random item of the largest class goes.
    """

    def __init__(self, capacity: int, per_class: int, rng: np.random.Generator) -> None:
        self._capacity = capacity
        self._per_class = per_class
        self._rng = rng
        self._classes: dict[str, list[Item]] = {}

    def grow(self, capacity: int) -> None:
        """Makes room for more; what is kept stays."""
        self._capacity = max(capacity, self._capacity)

    def offer(self, label: str, item: Item) -> None:
        """Takes the item in, perhaps."""
        mine = self._classes.setdefault(label, [])
        if len(mine) >= min(self._capacity / len(self._classes), self._per_class):
            return
        if sum(map(len, self._classes.values())) >= self._capacity:
            largest = max(self._classes.values(), key=len)
            largest.pop(int(self._rng.integers(len(largest))))
        mine.append(item)

    def items(self) -> tuple[tuple[str, ...], tuple[Item, ...]]:
        """Labels and items, class by class."""
        pairs = [(label, item) for label, items in self._classes.items() for item in items]
        return tuple(label for label, _ in pairs), tuple(item for _, item in pairs)

    def counts(self) -> dict[str, int]:
        return {label: len(items) for label, items in self._classes.items()}


def herding(vectors: NDArray[np.floating], count: int) -> list[int]:
    """Rows whose running mean stays closest to the mean of all n vectors (n × d), in the order of choice.

    Rebuffi et al., "iCaRL: Incremental Classifier and Representation Learning", CVPR 2017, algorithm 4.
    """
    centre = vectors.mean(axis=0)
    total = np.zeros_like(centre)
    chosen: list[int] = []
    left = list(range(len(vectors)))
    while left and len(chosen) < count:
        means = (total + vectors[left]) / (len(chosen) + 1)
        best = left[int(np.argmin(((means - centre) ** 2).sum(axis=1)))]
        total = total + vectors[best]
        chosen.append(best)
        left.remove(best)
    return chosen
