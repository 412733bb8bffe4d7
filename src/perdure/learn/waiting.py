"""A challenger on which the judge could not decide, and what has come since to decide by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from perdure.config import Settings
from perdure.judge.evidence import Evidence, Source
from perdure.learn.blend import Unseen, fit_blend, unseen_blend, unseen_sharpened
from perdure.learn.candidate import Candidate
from perdure.learn.leverage import Leverage, unseen_scores
from perdure.learn.lora import Origin
from perdure.learn.material import Encodings, Labelled, Material
from perdure.learn.temperature import traffic_weights
from perdure.model.classifier import AdaptedHead, AnalyticClassifier
from perdure.records import is_held_out


@dataclass(frozen=True, slots=True)
class Waiting:
    """A challenger that waits for evidence."""

    version: str
    adapted: AdaptedHead
    origin: Origin | None
    """What an update goes on from."""
    carried: Mapping[str, bytes]
    """Its files that go on unchanged: the EWC anchor."""
    looks: int
    """How often the judge has looked at it, or at what it came from."""

    def candidate(
        self,
        champion: AnalyticClassifier,
        leverage: Leverage,
        material: Material,
        encodings: Encodings,
        counts: Mapping[str, int],
        settings: Settings,
        name: str,
    ) -> Candidate | None:
        """The challenger once more, before anything is learned in this turn; None where too little has come.

        What has come since is the best evidence there is: neither the champion nor the adapter has been trained on any
        of it, where a candidate that is trained in this turn has only what is held out. So its weight beside the
        champion's head is chosen anew, too: half of the rows by what the other half advises.

        Args:
            champion: what is served now; its frozen head is kept.
            leverage: of the champion's head.
            material: this turn's rows and samples.
            encodings: with the challenger's adapter.
            counts: rows that each label has had.
            settings: of everything.
            name: the version's name.
        """
        since, held_out = self._rows(champion, leverage, material, settings.memory.holdout_share)
        if len(since) < settings.judge.min_rows:
            return None
        rows = since + held_out
        encoded = encodings(rows.texts)
        assert encoded.adapted is not None
        scores = unseen_scores(champion, leverage, encoded.features, rows.keys, rows.labels)
        unseen = Unseen(scores, encoded.adapted, rows.labels, traffic_weights(rows.labels, counts))
        shares = settings.lora.shares
        adapted = fit_blend(champion, self.adapted, unseen, shares)
        sources: list[Source] = ["fresh"] * len(since)
        sources += ["held_out"] * len(held_out)
        before = material.encodings(rows.texts).adapted if champion.adapted is not None else None
        evidence = Evidence(
            texts=rows.texts,
            truth=rows.labels,
            source=tuple(sources),
            champion=unseen_sharpened(champion, before, unseen),
            candidate=unseen_blend(champion, self.adapted, unseen, shares),
        )
        note = f"It is the adapter of {self.version}, whose verdict was inconclusive, asked about what has come since."
        return Candidate(
            "lora",
            champion.with_adapted(name, adapted),
            leverage,
            evidence,
            self.carried,
            {"share": adapted.share},
            (note,),
            looks=self.looks + 1,
        )

    def _rows(
        self, champion: AnalyticClassifier, leverage: Leverage, material: Material, share: float
    ) -> tuple[Labelled, Labelled]:
        """What has come since, and what was held out; of labels that the champion knows."""
        fresh, known = material.fresh(), frozenset(champion.labels)
        # What has a leverage came before, and the adapter may have been trained on it.
        since = fresh.where(
            [label in known and key not in leverage.of for label, key in zip(fresh.labels, fresh.keys, strict=True)]
        )
        new, others = frozenset(since.keys), fresh + material.remembered()
        held_out = others.where(
            [
                label in known and key not in new and is_held_out(key, share)
                for label, key in zip(others.labels, others.keys, strict=True)
            ]
        )
        return since, held_out
