"""A challenger on which the judge could not decide, and what has come since to decide by."""

from __future__ import annotations

from dataclasses import dataclass

from perdure.judge.evidence import Evidence, Source
from perdure.learn.leverage import Leverage, unseen_scores
from perdure.learn.lora import Origin
from perdure.learn.material import Encodings, Material
from perdure.model.classifier import AnalyticClassifier
from perdure.records import is_held_out


@dataclass(frozen=True, slots=True)
class Waiting:
    """A challenger that waits for evidence.

    Rows that come after it was made are the best there is: neither it nor the champion has been trained on them, so all
    of them count, where a candidate of the same turn has only those that are held out.
    """

    classifier: AnalyticClassifier
    parent: str | None
    """The champion that it was made beside, and whose frozen head it has."""
    agreement: float
    """Share of rows on which its exported files answered as it does."""
    origin: Origin | None
    """What an update goes on from."""
    looks: int
    """How often the judge has looked at it, or at what it came from."""

    def evidence(
        self, champion: AnalyticClassifier, leverage: Leverage, material: Material, encodings: Encodings, share: float
    ) -> Evidence | None:
        """What both say of rows that came since, and of held-out memory; None where too little came to ask again.

        Args:
            champion: that it was made beside.
            leverage: of the champion's head.
            material: this turn's rows and samples, before anything is learned from them.
            encodings: of the challenger.
            share: of all pairs that are held out.
        """
        fresh, known = material.fresh(), frozenset(champion.labels)
        # What has a leverage came before, and the adapter may have been trained on it.
        since = fresh.where(
            [label in known and key not in leverage.of for label, key in zip(fresh.labels, fresh.keys, strict=True)]
        )
        if not len(since):
            return None
        kept, others = frozenset(since.keys), fresh + material.remembered()
        rows = since + others.where(
            [
                label in known and key not in kept and is_held_out(key, share)
                for label, key in zip(others.labels, others.keys, strict=True)
            ]
        )
        encoded = encodings(rows.texts)
        scores = unseen_scores(champion, leverage, encoded.features, rows.keys, rows.labels)
        sources: list[Source] = ["fresh"] * len(since)
        sources += ["held_out"] * (len(rows) - len(since))
        before = material.encodings(rows.texts).adapted if champion.adapted is not None else None
        return Evidence(
            texts=rows.texts,
            truth=rows.labels,
            source=tuple(sources),
            champion=champion.combine(scores, before),
            candidate=self.classifier.combine(scores, encoded.adapted),
        )
