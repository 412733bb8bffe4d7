"""Rows on which a candidate and the champion are compared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from perdure.model.base import Scores

Source = Literal["held_out", "fresh", "leave_one_out"]


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
    """`held_out`: of memory, never trained on; `fresh`: judged before it was learned from; `leave_one_out`: scored by
    the closed-form head without this row."""
    champion: Scores | None
    """n rows over the champion's labels; None where there is no champion yet."""
    candidate: Scores
    """n rows over the candidate's labels."""

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
