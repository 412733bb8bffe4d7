"""The second learner: a LoRA update with EWC and replay. Minutes, and only worth it when the judge says so."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from torch import Tensor

from perdure.config import Settings
from perdure.errors import TrainingDiverged
from perdure.judge.evidence import Evidence, Source
from perdure.learn.blend import fit_blend
from perdure.learn.candidate import Candidate
from perdure.learn.carried import EWC_FILE as EWC_FILE
from perdure.learn.carried import anchor_files
from perdure.learn.leverage import Leverage
from perdure.learn.lora import HEAD, HEAD_SCALE, LoraLearner, Origin, TrainingSet, Update
from perdure.learn.material import Labelled, Material
from perdure.learn.opponent import Opponent
from perdure.learn.seen import Seen
from perdure.model.adapter import Adapter, AdapterShape, linear_names
from perdure.model.classifier import AdaptedHead, AnalyticClassifier
from perdure.model.encoder import Encoder
from perdure.records import Sample, is_early, is_held_out

logger = logging.getLogger(__name__)


class Representatives(Protocol):
    """Picks k samples that stand for a label (memory's view)."""

    def __call__(self, label: str, k: int) -> tuple[Sample, ...]: ...


@dataclass(frozen=True, slots=True)
class InHalves:
    """An update, and what it went on from when it had learned from the first half of its rows."""

    halfway: Origin | None
    """None where it was trained on all rows at once."""
    update: Update
    steps: int
    """Of both halves."""


class Challenger:
    """Makes LoRA candidates.

    Args:
        encoder: the frozen encoder.
        settings: of LoRA, memory and model.
        progress: called with (step, steps) while training.
    """

    def __init__(
        self, encoder: Encoder, settings: Settings, progress: Callable[[int, int], None] | None = None
    ) -> None:
        self._encoder = encoder
        self._settings = settings
        self._progress = progress

    def candidate(
        self,
        material: Material,
        champion: AnalyticClassifier,
        leverage: Leverage,
        origin: Origin | None,
        seen: Seen | None,
        representatives: Representatives,
        counts: Mapping[str, int],
        name: str,
    ) -> Candidate | None:
        """A version with a new adapter beside the champion's head; None when there is too little to learn from, or
        training diverges.

        Args:
            material: this turn's rows and samples.
            champion: what is served now; its frozen head is kept.
            leverage: of the champion's head.
            origin: what the update goes on from; None to begin a new adapter.
            seen: what that was offered; None where nobody knows.
            representatives: memory's choice of samples to replay.
            counts: rows that each label has had.
            name: the version's name.
        """
        learned = self._fresh(material, champion)
        share = self._settings.memory.holdout_share
        train = learned.where([not is_held_out(key, share) for key in learned.keys])
        if len(train) < self._settings.lora.min_rows:
            logger.info("no LoRA update: %d rows to learn from, fewer than lora.min_rows", len(train))
            return None
        replay = self._replay(material, champion, representatives, frozenset(train.keys) | material.doubtful())
        try:
            trained = self._trained(train, replay, origin, material.turn, known=seen is not None)
        except TrainingDiverged as error:
            logger.warning("no LoRA candidate: %s", error)
            return None
        seen = seen or Seen()
        opponent = Opponent(champion, leverage, material.encodings, counts, self._settings.lora.shares)
        candidate = self._judged(trained, opponent, material, seen, name)
        metrics = {"trained_rows": float(len(train)), "replayed_rows": float(len(replay)), **candidate.metrics}
        offered = seen.beside(material.offered()).files()
        return replace(candidate, metrics=metrics, extra={**candidate.extra, **offered})

    def _trained(self, train: Labelled, replay: Labelled, origin: Origin | None, turn: int, *, known: bool) -> InHalves:
        """An update in two halves: about the second half's rows an adapter can be asked that knows the first alone.

        Where a half would have fewer rows than an update needs, all of them are trained on at once. So they are where
        nobody knows what the adapter has seen, and where a new one begins: half of its first rows teach it too little
        to be asked, and it begins better with them all.
        """
        early = [is_early(key) for key in train.keys]
        few = min(sum(early), len(early) - sum(early)) < self._settings.lora.min_rows
        if few or not known or origin is None or origin.shape != self._shape():
            update = self._learner(turn).update(_training_set(train, replay), origin)
            return InHalves(None, update, update.steps)
        (once, rows), (before, past) = (
            [side.where([is_early(key) == half for key in side.keys]) for half in (True, False)]
            for side in (train, replay)
        )
        trained = self._learner(turn, 0, 2).train(_training_set(once, before), origin)
        halfway, steps = trained.origin(), trained.steps
        # Layers and activations of the first half are let go of before the second has its own.
        del trained
        # A label of which nothing was left would only be pushed away.
        left, lacking = frozenset((*rows.labels, *past.labels)), once + before
        past += lacking.where([label not in left for label in lacking.labels])
        update = self._learner(turn, 1, 2).update(_training_set(rows, past), halfway)
        return InHalves(halfway, update, steps + update.steps)

    def _shape(self) -> AdapterShape:
        lora, encoder = self._settings.lora, self._encoder
        return AdapterShape(lora.rank, lora.alpha, encoder.adapted_layers, linear_names(encoder.top))

    def _learner(self, turn: int, part: int = 0, parts: int = 1) -> LoraLearner:
        progress = self._progress
        return LoraLearner(
            self._encoder,
            self._settings.lora,
            seed=self._settings.seed + turn,
            device=self._settings.device,
            progress=progress and (lambda step, steps: progress(part * steps + step, parts * steps)),
        )

    def _fresh(self, material: Material, champion: AnalyticClassifier) -> Labelled:
        """What the gate lets through, at most `lora.fresh_rows`, spread over the labels."""
        decisions = material.gated.of("learn", "pseudo")
        rows = Labelled.of(
            [(d.row.text, d.label) for d in decisions if d.label is not None and d.label in champion.labels]
        )
        limit = self._settings.lora.fresh_rows
        if len(rows) <= limit:
            return rows
        rank: dict[str, list[str]] = defaultdict(list)
        for key, label in sorted(zip(rows.keys, rows.labels, strict=True)):
            rank[label].append(key)
        order = sorted((place, key) for keys in rank.values() for place, key in enumerate(keys))
        kept = {key for _, key in order[:limit]}
        return rows.where([key in kept for key in rows.keys])

    def _replay(
        self, material: Material, champion: AnalyticClassifier, representatives: Representatives, barred: frozenset[str]
    ) -> Labelled:
        if not self._settings.lora.replay_rows:
            return Labelled.of([])
        counts = Counter(sample.label for sample in material.samples if not sample.held_out)
        labels = [label for label in champion.labels if counts.get(label)]
        each = max(1, self._settings.lora.replay_rows // max(1, len(labels)))
        chosen = [sample for label in labels for sample in representatives(label, each)]
        return Labelled.of([(sample.text, sample.label) for sample in chosen if sample.key not in barred])

    def _judged(self, trained: InHalves, opponent: Opponent, material: Material, seen: Seen, name: str) -> Candidate:
        champion, update = opponent.champion, trained.update
        held_out = self._known(material.fresh() + material.remembered(), champion, held_out=True)
        head = self._adapted(update.shape, update.weights, update.labels)
        encodings = material.encodings.beside(head.adapter)
        unseen = opponent.unseen(held_out, encodings)
        adapted = fit_blend(champion, head, unseen, opponent.shares)
        fresh = frozenset(material.fresh().keys)
        sources: list[Source] = ["fresh" if key in fresh else "held_out" for key in held_out.keys]
        evidence = opponent.evidence(held_out, sources, head, unseen)
        if trained.halfway is not None:
            evidence += self._halfway(trained.halfway, held_out, opponent, material, seen)
        metrics = {
            "steps": float(trained.steps),
            "loss": update.loss,
            "ewc_penalty": update.penalty,
            "fisher_samples": float(update.anchor.samples),
            "share": adapted.share,
        }
        dropped = update.dropped
        notes = (f"The earlier adapter and EWC anchor were not used: {dropped}.",) if dropped else ()
        anchor = anchor_files(update.anchor)
        classifier = champion.with_adapted(name, adapted)
        return Candidate("lora", classifier, opponent.leverage, evidence, anchor, metrics, notes, encodings=encodings)

    def _halfway(
        self, half: Origin, held_out: Labelled, opponent: Opponent, material: Material, seen: Seen
    ) -> Evidence:
        """This turn's rows of the second half, asked of the adapter when it has learned from the first alone.

        How it is blended is advised by what is held out, too, as for the finished one.
        """
        before = frozenset(seen.keys)
        late = self._known(material.fresh(), opponent.champion, held_out=False)
        late = late.where([not is_early(key) and key not in before for key in late.keys])
        # By key, which is a hash: at most as many as an update learns from.
        asked = frozenset(sorted(late.keys)[: self._settings.lora.fresh_rows])
        late = late.where([key in asked for key in late.keys])
        rows = late + held_out
        head = self._adapted(half.shape, half.weights, half.labels)
        unseen = opponent.unseen(rows, material.encodings.beside(head.adapter))
        evidence = opponent.evidence(rows, ["halfway"] * len(rows), head, unseen)
        return evidence.where([place < len(late) for place in range(len(rows))])

    def _known(self, rows: Labelled, champion: AnalyticClassifier, *, held_out: bool) -> Labelled:
        """Those of `rows` with labels that the champion knows that are held out, or those that are not."""
        share, known = self._settings.memory.holdout_share, frozenset(champion.labels)
        return rows.where(
            [
                label in known and is_held_out(key, share) == held_out
                for key, label in zip(rows.keys, rows.labels, strict=True)
            ]
        )

    def _adapted(self, shape: AdapterShape, weights: Mapping[str, Tensor], labels: tuple[str, ...]) -> AdaptedHead:
        return AdaptedHead(
            adapter=Adapter(self._encoder, shape, weights),
            labels=labels,
            weights=weights[HEAD].float().numpy(),
            temperature=HEAD_SCALE,
            share=self._settings.lora.shares[0],
        )


def _training_set(fresh: Labelled, replay: Labelled) -> TrainingSet:
    rows = fresh + replay
    return TrainingSet(rows.texts, rows.labels, fresh=len(fresh))
