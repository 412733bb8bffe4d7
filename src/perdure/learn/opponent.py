"""The champion as a challenger's adapter meets it: on rows that neither of them has seen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from perdure.judge.evidence import Evidence, Source, traffic_weights
from perdure.learn.blend import Unseen, unseen_blend, unseen_sharpened
from perdure.learn.leverage import Leverage, unseen_scores
from perdure.learn.material import Encodings, Labelled
from perdure.model.classifier import AdaptedHead, AnalyticClassifier


@dataclass(frozen=True, slots=True)
class Opponent:
    """What is served now, and what it takes to ask it about rows as if its head had not seen them."""

    champion: AnalyticClassifier
    leverage: Leverage
    """Of the champion's head."""
    encodings: Encodings
    """In the champion's space."""
    counts: Mapping[str, int]
    """Rows that each label has had."""
    shares: Sequence[float]
    """Weights that an adapted head may get beside the champion's frozen one."""

    def unseen(self, rows: Labelled, encodings: Encodings) -> Unseen:
        """`rows`, of which the adapter in whose space `encodings` are has seen none."""
        # First: what the champion's space holds, the challenger's takes from there.
        features = self.encodings(rows.texts).features
        adapted = encodings(rows.texts).adapted
        assert adapted is not None
        scores = unseen_scores(self.champion, self.leverage, features, rows.keys, rows.labels)
        return Unseen(scores, adapted, rows.labels, traffic_weights(rows.labels, self.counts))

    def evidence(self, rows: Labelled, sources: Iterable[Source], adapted: AdaptedHead, unseen: Unseen) -> Evidence:
        """What the champion says of `rows`, and what its head says in a blend with `adapted`; by label as they come.

        This turn's labels are asked about with many rows, of each older one memory holds out a few: counted by the row,
        what the new ones gain would hide what the old ones lose.

        Args:
            rows: what both are asked about.
            sources: of each row.
            adapted: the challenger's head.
            unseen: the same rows, in the challenger's space.
        """
        return Evidence(
            texts=rows.texts,
            truth=rows.labels,
            source=tuple(sources),
            champion=unseen_sharpened(self.champion, self.encodings(rows.texts).adapted, unseen),
            candidate=unseen_blend(self.champion, adapted, unseen, self.shares),
            counts=self.counts,
        )
