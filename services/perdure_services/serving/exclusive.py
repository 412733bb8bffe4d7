"""A version that several threads may ask: each waits until the one before is done."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import cached_property

from perdure.model.base import Classifier, Scores
from perdure.records import Float


def shared(classifier: Classifier) -> Classifier:
    """`classifier`, as several threads may ask it."""
    return classifier if classifier.concurrent else Exclusive(classifier)


class Exclusive(Classifier):
    """Asks `inner`, which only one thread at a time may ask. Answers and embeddings come from threads of their own."""

    def __init__(self, inner: Classifier) -> None:
        self.version = inner.version
        self.labels = inner.labels
        self._inner = inner
        self._lock = threading.Lock()

    def scores(self, texts: Sequence[str]) -> Scores:
        with self._lock:
            return self._inner.scores(texts)

    def embeddings(self, texts: Sequence[str]) -> Float:
        with self._lock:
            return self._inner.embeddings(texts)

    @cached_property
    def space(self) -> str | None:
        # A hash over all weights, some of the time; a version does not change.
        return self._inner.space
