"""Rows on which a candidate and the champion are compared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from perdure.model.base import Scores

Source = Literal["held_out", "fresh", "halfway", "leave_one_out"]


@dataclass(frozen=True, slots=True)
class Evidence:
    """n rows that the candidate was not trained on, with the answers of both.

    Raises:
        ValueError: the parts do not have n rows each.
    """

    texts: tuple[str, ...]
    truth: tuple[str, ...]
    """What the labels really are."""
    source: tuple[Source, ...]
    """`held_out`: of memory, never trained on; `fresh`: judged before it was learned from; `halfway`: judged when the
    adapter had learned from the other half of this turn's rows, and not from this row; `leave_one_out`: scored by the
    closed-form head without this row."""
    champion: Scores | None
    """n rows over the champion's labels; None where there is no champion yet."""
    candidate: Scores
    """n rows over the candidate's labels."""
    weights: NDArray[np.float64] | None = None
    """How much each of the n rows counts where accuracies and log scores are compared; None where all count alike."""

    def __post_init__(self) -> None:
        rows = len(self.texts)
        found = {
            "truth": len(self.truth),
            "source": len(self.source),
            "candidate": len(self.candidate.probabilities),
            "champion": rows if self.champion is None else len(self.champion.probabilities),
            "weights": rows if self.weights is None else len(self.weights),
        }
        for part, count in found.items():
            if count != rows:
                raise ValueError(f"evidence has {rows} texts but {count} rows of {part}: give one for each text")

    def __len__(self) -> int:
        return len(self.texts)

    def __add__(self, other: Evidence) -> Evidence:
        """The rows of both, without weights; they are over the same labels, and either both have a champion or none."""
        assert (self.champion is None) == (other.champion is None)
        return Evidence(
            texts=self.texts + other.texts,
            truth=self.truth + other.truth,
            source=self.source + other.source,
            champion=self.champion + other.champion if self.champion and other.champion else None,
            candidate=self.candidate + other.candidate,
        )
