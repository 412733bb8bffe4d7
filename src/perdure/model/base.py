"""What serving and the judge know of a model: texts in, probabilities out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from perdure.errors import UsageError
from perdure.records import Float


@dataclass(frozen=True, slots=True)
class Prediction:
    """One answer."""

    label: str
    confidence: float
    """Calibrated probability of `label`."""
    top: tuple[tuple[str, float], ...]
    """Most probable labels, best first."""


@dataclass(frozen=True, slots=True)
class Scores:
    """Probabilities of n texts over C labels."""

    labels: tuple[str, ...]
    """C labels, in the order of the columns."""
    probabilities: Float
    """n × C; rows sum to 1."""

    def __add__(self, other: Scores) -> Scores:
        """The rows of both.

        Raises:
            ValueError: they are over other labels.
        """
        if self.labels != other.labels:
            raise ValueError(f"scores over {len(self.labels)} labels cannot go on with scores over other labels")
        return Scores(self.labels, np.concatenate([self.probabilities, other.probabilities]))

    def predictions(self, top: int = 1) -> tuple[Prediction, ...]:
        """One answer for each row, with its `top` most probable labels."""
        top = min(max(top, 1), len(self.labels))
        ranks = self.best()[:, None] if top == 1 else np.argsort(-self.probabilities, axis=1, kind="stable")[:, :top]
        ranked = np.take_along_axis(self.probabilities, ranks, axis=1).tolist()
        answers = []
        for columns, confidences in zip(ranks.tolist(), ranked, strict=True):
            best = tuple(zip((self.labels[column] for column in columns), confidences, strict=True))
            answers.append(Prediction(label=best[0][0], confidence=best[0][1], top=best))
        return tuple(answers)

    def best(self) -> NDArray[np.intp]:
        """Column of the most probable label, for each row."""
        best: NDArray[np.intp] = self.probabilities.argmax(axis=1)
        return best

    def names(self) -> tuple[str, ...]:
        """The most probable label of each row."""
        return tuple(self.labels[column] for column in self.best())


class Classifier(ABC):
    """A version that can be served: it does not change once made, and may be called from any one thread at a time."""

    version: str
    labels: tuple[str, ...]
    concurrent: bool = False
    """Whether it may be called from several threads at once."""

    @abstractmethod
    def scores(self, texts: Sequence[str]) -> Scores:
        """Probabilities for `texts` (at least one). The answer for a text depends on that text alone."""

    def finite(self) -> bool:
        """Whether all weights are finite numbers; so they are where there are none to look at."""
        return True

    @property
    def space(self) -> str | None:
        """Names the space of `embeddings`, which versions may share; None where there are none."""
        return None

    def embeddings(self, texts: Sequence[str]) -> Float:
        """Where `texts` (n, at least one) lie in the space that memory's views go by: n × d, each row of length 1.

        Raises:
            UsageError: this version has none.
        """
        raise UsageError(f"version {self.version} has no embeddings: ask a version whose `space` is not None")
