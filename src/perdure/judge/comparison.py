"""Champion and candidate, row by row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from perdure.judge.evidence import Evidence, traffic_weights
from perdure.judge.interval import Interval, mean, paired_difference, worth
from perdure.model.base import Scores

LEAST_PROBABILITY = 1e-6
"""Log scores are clipped here, so that one row cannot decide alone."""

Rows = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Paired:
    """Counts on rows that both were asked. Of weighted rows, all but `rows` are shares of what the rows are worth."""

    rows: int
    worth: float
    """The number of equal rows that would say as much, at least; where all rows count alike as many as there are."""
    champion_right: float
    candidate_right: float
    gains: float
    """Rows that only the candidate has right."""
    losses: float
    """Rows that only the champion has right: negative flips."""

    @property
    def champion(self) -> float:
        """Accuracy of the champion; 0 without rows."""
        return self.champion_right / self.worth if self.rows else 0.0

    @property
    def candidate(self) -> float:
        """Accuracy of the candidate; 0 without rows."""
        return self.candidate_right / self.worth if self.rows else 0.0

    def difference(self, alpha: float) -> Interval:
        """Candidate minus champion, with bounds of error probability `alpha` each.

        Raises:
            ValueError: no rows.
        """
        return paired_difference(self.gains, self.losses, self.worth, alpha)

    def count(self) -> str:
        """How many rows, and what they are worth where that is fewer: `n=20`, `n=1,200, worth 330`."""
        told = f"n={self.rows:,}"
        return told if round(self.worth) >= self.rows else f"{told}, worth {round(self.worth):,}"


@dataclass(frozen=True, slots=True)
class LabelRecall:
    """Recall of one label, before and after."""

    label: str
    paired: Paired
    known: bool
    """The champion has this label."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """The rows of some evidence, sorted by who knows their label, and who has them right (n booleans each)."""

    evidence: Evidence
    known: Rows
    """The champion knows the true label. Only these rows say whether something was forgotten."""
    new: Rows
    """Only the candidate knows it."""
    both: Rows
    """Both know it, and so have a probability for it."""
    champion_right: Rows
    candidate_right: Rows

    def paired(self, rows: Rows) -> Paired:
        """Counts over the rows that are true in `rows`."""
        champion, candidate = self.champion_right[rows], self.candidate_right[rows]
        weights = self.weights(rows)
        count = worth(weights)
        shares = weights * (count / weights.sum()) if weights.size else weights
        return Paired(
            rows=int(rows.sum()),
            worth=count,
            champion_right=float(shares[champion].sum()),
            candidate_right=float(shares[candidate].sum()),
            gains=float(shares[candidate & ~champion].sum()),
            losses=float(shares[champion & ~candidate].sum()),
        )

    def weights(self, rows: Rows) -> NDArray[np.float64]:
        """How much each of the rows that are true in `rows` counts among them."""
        counts = self.evidence.counts
        if counts is None:
            return np.ones(int(rows.sum()))
        return traffic_weights([label for label, asked in zip(self.evidence.truth, rows, strict=True) if asked], counts)

    def labels(self) -> tuple[LabelRecall, ...]:
        """Recall of every label that occurs and that at least one of the two knows, sorted by label."""
        truth = np.array(self.evidence.truth, dtype=object)
        found = sorted({label for label, counts in zip(truth, self.known | self.new, strict=True) if counts})
        champion = self.evidence.champion
        labels = () if champion is None else champion.labels
        return tuple(LabelRecall(label, self.paired(truth == label), label in labels) for label in found)

    def log_score_gain(self, rows: Rows) -> NDArray[np.float64]:
        """log p(truth) of the candidate minus the champion's, in nats, for each true row in `rows` that both know."""
        champion = self.evidence.champion
        if champion is None:
            raise ValueError("there is no champion: a first version gains nothing over it")
        at = np.flatnonzero(rows & self.both)
        return _log_scores(self.evidence.candidate, self.evidence.truth, at) - _log_scores(
            champion, self.evidence.truth, at
        )

    def mean_log_score_gain(self, rows: Rows, alpha: float) -> Interval:
        """The mean of `log_score_gain`, with bounds of error probability `alpha` each.

        Raises:
            ValueError: there is no such row, or no champion.
        """
        return mean(self.log_score_gain(rows), alpha, self.weights(rows & self.both))


def compare(evidence: Evidence) -> Comparison:
    """Sorts the rows of `evidence`. Without a champion all of them are new."""
    champion = frozenset(() if evidence.champion is None else evidence.champion.labels)
    candidate = frozenset(evidence.candidate.labels)
    known = np.array([label in champion for label in evidence.truth], dtype=np.bool_)
    answered = np.array([label in candidate for label in evidence.truth], dtype=np.bool_)
    return Comparison(
        evidence=evidence,
        known=known,
        new=answered & ~known,
        both=answered & known,
        champion_right=_right(evidence.champion, evidence.truth),
        candidate_right=_right(evidence.candidate, evidence.truth),
    )


def confidences(scores: Scores) -> NDArray[np.float32]:
    """Probability of the answer, for each of n rows."""
    best: NDArray[np.float32] = scores.probabilities.max(axis=1, initial=0.0)
    return best


def _right(scores: Scores | None, truth: Sequence[str]) -> Rows:
    if scores is None or not scores.labels:
        return np.zeros(len(truth), dtype=np.bool_)
    same = [name == label for name, label in zip(scores.names(), truth, strict=True)]
    # A model that has gone to NaN answers its first label; that must not count as knowing it.
    return np.array(same, dtype=np.bool_) & np.isfinite(scores.probabilities).all(axis=1)


def _log_scores(scores: Scores, truth: Sequence[str], at: NDArray[np.intp]) -> NDArray[np.float64]:
    column = {label: index for index, label in enumerate(scores.labels)}
    probabilities = scores.probabilities[at, [column[truth[row]] for row in at]].astype(np.float64)
    usable = np.nan_to_num(probabilities, nan=0.0, posinf=0.0, neginf=0.0)
    return np.log(np.clip(usable, LEAST_PROBABILITY, 1.0))
