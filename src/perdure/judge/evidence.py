"""Rows on which a candidate and the champion are compared."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from perdure.model.base import Scores

Source = Literal["held_out", "fresh", "halfway", "leave_one_out"]


@dataclass(frozen=True, slots=True)
class Evidence:
    """n rows with the answers of both; when the candidate was asked, it had not been trained on them.

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
    counts: Mapping[str, int] | None = None
    """Rows that each label has had: where accuracies and log scores are compared, each label counts as often as it has
    come, however many of its rows are here. None where all rows count alike."""

    def __post_init__(self) -> None:
        rows = len(self.texts)
        found = {
            "truth": len(self.truth),
            "source": len(self.source),
            "candidate": len(self.candidate.probabilities),
            "champion": rows if self.champion is None else len(self.champion.probabilities),
        }
        for part, count in found.items():
            if count != rows:
                raise ValueError(f"evidence has {rows} texts but {count} rows of {part}: give one for each text")

    def __len__(self) -> int:
        return len(self.texts)

    def __add__(self, other: Evidence) -> Evidence:
        """The rows of both, which are over the same labels; either both have a champion or none."""
        assert (self.champion is None) == (other.champion is None)
        return Evidence(
            texts=self.texts + other.texts,
            truth=self.truth + other.truth,
            source=self.source + other.source,
            champion=self.champion + other.champion if self.champion and other.champion else None,
            candidate=self.candidate + other.candidate,
            counts=self.counts,
        )

    def where(self, keep: Sequence[bool]) -> Evidence:
        """The rows for which `keep` is true."""
        rows = [row for row, kept in enumerate(keep) if kept]
        return replace(
            self,
            texts=tuple(self.texts[row] for row in rows),
            truth=tuple(self.truth[row] for row in rows),
            source=tuple(self.source[row] for row in rows),
            champion=self.champion and Scores(self.champion.labels, self.champion.probabilities[rows]),
            candidate=Scores(self.candidate.labels, self.candidate.probabilities[rows]),
        )

    def finished(self) -> Evidence:
        """What was asked of the candidate as it would be served, not of its adapter halfway."""
        return self.where([source != "halfway" for source in self.source])


def traffic_weights(truth: Sequence[str], counts: Mapping[str, int]) -> NDArray[np.float64]:
    """Weights of n rows with which each label counts as often as it has come, however many of its rows are here.

    What is at hand is not what comes: of an old label memory keeps a few rows, of this turn's labels all are there.

    Args:
        truth: n labels.
        counts: rows that each label has had; one that is missing counts as 1.
    """
    here = Counter(truth)
    return np.asarray([max(counts.get(label, 0), 1) / here[label] for label in truth], dtype=np.float64)
