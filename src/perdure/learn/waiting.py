"""A challenger on which the judge could not decide, and what has come since to decide by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from perdure.config import Settings
from perdure.judge.evidence import Source
from perdure.learn.blend import fit_blend
from perdure.learn.candidate import Candidate
from perdure.learn.leverage import Leverage
from perdure.learn.lora import Origin
from perdure.learn.material import Encodings, Labelled, Material
from perdure.learn.opponent import Opponent
from perdure.learn.seen import Seen
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
    """Its files that go on unchanged."""
    seen: Seen | None
    """What it was offered; None where nobody knows."""
    looks: int
    """Turns in which the judge has looked at it, or at what it came from."""
    asked: int = 0
    """Rows that had come since when it was last asked."""

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

        What has come since is the best evidence there is: the adapter has seen none of it, and the champion's head is
        asked as if it had not, where a candidate that is trained in this turn has a part of it at most. So its weight
        beside the champion's head is chosen anew, too: half of the rows by what the other half advises. While it is not
        trained on, it is asked again when as many rows once more have come: each look costs the next some evidence.

        Args:
            champion: what is served now; its frozen head is kept.
            leverage: of the champion's head.
            material: this turn's rows and samples.
            encodings: with the challenger's adapter.
            counts: rows that each label has had.
            settings: of everything.
            name: the version's name.
        """
        since, held_out = self._rows(champion, material, settings.memory.holdout_share)
        if len(since) < max(settings.judge.min_rows, 2 * self.asked):
            return None
        rows = since + held_out
        opponent = Opponent(champion, leverage, material.encodings, counts, settings.lora.shares)
        unseen = opponent.unseen(rows, encodings)
        adapted = fit_blend(champion, self.adapted, unseen, settings.lora.shares)
        fresh = frozenset(material.fresh().keys) & frozenset(since.keys)
        sources: list[Source] = ["fresh" if key in fresh else "held_out" for key in rows.keys]
        evidence = opponent.evidence(rows, sources, self.adapted, unseen)
        note = f"It is the adapter of {self.version}, whose verdict was inconclusive, asked about what has come since."
        return Candidate(
            "lora",
            champion.with_adapted(name, adapted),
            leverage,
            evidence,
            self.carried,
            {"share": adapted.share, "since": float(len(since))},
            (note,),
            encodings=encodings,
            looks=self.looks + 1,
        )

    def _rows(self, champion: AnalyticClassifier, material: Material, share: float) -> tuple[Labelled, Labelled]:
        """What has come since, in this turn or in others, and what was held out; of labels that the champion knows."""
        rows, known = material.fresh() + material.remembered(), frozenset(champion.labels)
        rows = rows.where([label in known for label in rows.labels])
        before = frozenset(rows.keys if self.seen is None else self.seen.keys)
        since = rows.where([key not in before for key in rows.keys])
        return since, rows.where([key in before and is_held_out(key, share) for key in rows.keys])
