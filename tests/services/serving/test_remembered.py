"""Looks into a memory that others change, or that fails; and vectors that are none."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from perdure.config import Settings
from perdure.errors import StoreCorrupt
from perdure.memory import Neighbours
from perdure_services.serving.embedder import Embedded, Embedder
from perdure_services.serving.refusal import Refusal
from perdure_services.serving.remembered import Remembered


class Changing:
    """A memory whose space another process may change, and that may fail."""

    def __init__(self, spaces, error=None):
        self.spaces, self.error, self.closed = list(spaces), error, False

    def embedding_space(self):
        return self.spaces.pop(0)

    def neighbours(self, vectors, k):
        if self.error is not None:
            raise self.error
        return Neighbours(samples=((),), similarities=((),))

    def close(self):
        self.closed = True


@pytest.fixture
def opened(tmp_path):
    """A look into memories that are opened one after the other."""

    def make(*memories):
        left = list(memories)
        settings = Settings().with_values({"memory.path": str(tmp_path)})
        return Remembered(settings, opening=lambda *given, **named: left.pop(0))

    return make


EMBEDDED = Embedded("v1", "here", np.ones((1, 2), dtype=np.float32))


def test_what_was_embedded_anew_while_it_was_searched_is_no_answer(opened):
    with pytest.raises(Refusal) as refusal:
        opened(Changing(["here", "there"])).near(EMBEDDED, 1)
    assert refusal.value.status_code == 409
    assert "'there'" in refusal.value.what
    assert opened(Changing(["here", "here"])).near(EMBEDDED, 1) == ((),)


def test_a_memory_that_failed_is_opened_again(opened):
    broken, sound = Changing(["here"], StoreCorrupt("it cannot be read")), Changing(["here"] * 2)
    remembered = opened(broken, sound)
    with pytest.raises(StoreCorrupt):
        remembered.near(EMBEDDED, 1)
    assert broken.closed
    assert remembered.near(EMBEDDED, 1) == ((),)
    assert not sound.closed


@pytest.mark.parametrize("vectors", [[[1.0, np.nan]], [[1.0, 0.0]] * 2])
def test_vectors_that_are_none_are_no_answer(vectors):
    champion = SimpleNamespace(
        version="v1", classifier=SimpleNamespace(space="here", embeddings=lambda texts: np.asarray(vectors))
    )
    embedder = Embedder(lambda: champion, Settings().serving, piece=8)
    with pytest.raises(ArithmeticError, match="version v1 embedded 1 texts"):
        embedder.embedded(["order"])
