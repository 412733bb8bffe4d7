"""What a learner hands to the judge."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from perdure.judge.evidence import Evidence
from perdure.judge.verdict import Kind
from perdure.learn.leverage import Leverage
from perdure.learn.material import Encodings
from perdure.model.classifier import AnalyticClassifier


@dataclass(frozen=True, slots=True)
class Candidate:
    """A version that might be promoted, with rows that it had not been trained on when it was asked."""

    kind: Kind
    classifier: AnalyticClassifier
    leverage: Leverage
    evidence: Evidence
    extra: Mapping[str, bytes]
    """Files beside the classifier's own: what the next update needs."""
    metrics: Mapping[str, float]
    notes: tuple[str, ...] = ()
    """What a person should know of how it was made, a sentence each."""
    encodings: Encodings | None = None
    """In its own space; None where that is the champion's."""
    looks: int = 1
    """Turns in which the judge looks at it or at what it came from, this one included."""

    def files(self) -> dict[str, bytes]:
        """All files of the version."""
        return {**self.classifier.files(), **self.leverage.files(), **self.extra}
