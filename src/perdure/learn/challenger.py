"""The second learner: a LoRA update with EWC and replay. Minutes, and only worth it when the judge says so."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from perdure.config import Settings
from perdure.errors import TrainingDiverged, VersionDamaged
from perdure.judge.evidence import Evidence, Source
from perdure.learn.blend import Unseen, fit_blend, unseen_blend, unseen_sharpened
from perdure.learn.candidate import Candidate
from perdure.learn.ewc import Anchor
from perdure.learn.leverage import Leverage, unseen_scores
from perdure.learn.lora import HEAD, HEAD_SCALE, LoraLearner, Origin, TrainingSet, Update
from perdure.learn.material import Labelled, Material
from perdure.learn.seen import SEEN_FILE, Seen
from perdure.learn.temperature import traffic_weights
from perdure.model.adapter import Adapter
from perdure.model.classifier import AdaptedHead, AnalyticClassifier
from perdure.model.encoder import Encoder
from perdure.records import Sample, is_held_out

logger = logging.getLogger(__name__)

EWC_FILE = "ewc.safetensors"


class Representatives(Protocol):
    """Picks k samples that stand for a label (memory's view)."""

    def __call__(self, label: str, k: int) -> tuple[Sample, ...]: ...


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
        seen: Seen,
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
            seen: what that was offered.
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
        rows = train + replay
        data = TrainingSet(rows.texts, rows.labels, fresh=len(train))
        learner = LoraLearner(
            self._encoder,
            self._settings.lora,
            seed=self._settings.seed + material.turn,
            device=self._settings.device,
            progress=self._progress,
        )
        try:
            update = learner.update(data, origin)
        except TrainingDiverged as error:
            logger.warning("no LoRA candidate: %s", error)
            return None
        candidate = self._judged(update, data, champion, leverage, material, counts, name)
        return replace(candidate, extra={**candidate.extra, **seen.beside(material.offered()).files()})

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

    def _judged(
        self,
        update: Update,
        data: TrainingSet,
        champion: AnalyticClassifier,
        leverage: Leverage,
        material: Material,
        counts: Mapping[str, int],
        name: str,
    ) -> Candidate:
        shares = self._settings.lora.shares
        rows = _evidence(material, champion, self._settings.memory.holdout_share)
        adapter = Adapter(self._encoder, update.shape, update.weights)
        encodings = material.encodings.beside(adapter)
        before, after = material.encodings(rows.texts), encodings(rows.texts).adapted
        assert after is not None
        trained_head = AdaptedHead(
            adapter=adapter,
            labels=update.labels,
            weights=update.weights[HEAD].float().numpy(),
            temperature=HEAD_SCALE,
            share=shares[0],
        )
        scores = unseen_scores(champion, leverage, before.features, rows.keys, rows.labels)
        unseen = Unseen(scores, after, rows.labels, traffic_weights(rows.labels, counts))
        adapted = fit_blend(champion, trained_head, unseen, shares)
        classifier = champion.with_adapted(name, adapted)
        fresh = frozenset(material.fresh().keys)
        sources: list[Source] = ["fresh" if key in fresh else "held_out" for key in rows.keys]
        evidence = Evidence(
            texts=rows.texts,
            truth=rows.labels,
            source=tuple(sources),
            champion=unseen_sharpened(champion, before.adapted, unseen),
            candidate=unseen_blend(champion, trained_head, unseen, shares),
        )
        metrics = {
            "steps": float(update.steps),
            "loss": update.loss,
            "ewc_penalty": update.penalty,
            "fisher_samples": float(update.anchor.samples),
            "trained_rows": float(data.fresh),
            "replayed_rows": float(len(data.texts) - data.fresh),
            "share": adapted.share,
        }
        notes = (f"The earlier adapter and EWC anchor were not used: {update.dropped}.",) if update.dropped else ()
        anchor = _anchor_file(update.anchor)
        return Candidate("lora", classifier, leverage, evidence, anchor, metrics, notes, encodings=encodings)


def _evidence(material: Material, champion: AnalyticClassifier, share: float) -> Labelled:
    """Held-out pairs of labels that the champion knows: of this turn, and of memory."""
    rows = material.fresh() + material.remembered()
    known = frozenset(champion.labels)
    return rows.where(
        [label in known and is_held_out(key, share) for key, label in zip(rows.keys, rows.labels, strict=True)]
    )


def origin_of(classifier: AnalyticClassifier, folder: Path) -> Origin | None:
    """The adapter and anchor of a version that an update may go on from; None when it has no adapter.

    Args:
        classifier: the version.
        folder: its files.

    Raises:
        VersionDamaged: the anchor cannot be read.
    """
    if classifier.adapted is None:
        return None
    adapted = classifier.adapted
    weights = {**adapted.adapter.weights, HEAD: torch.from_numpy(adapted.weights)}
    return Origin(adapted.adapter.shape, weights, adapted.labels, load_anchor(folder))


def load_anchor(folder: Path) -> Anchor | None:
    """The EWC anchor of the version in `folder`; None when it has none.

    Raises:
        VersionDamaged: it cannot be read.
    """
    path = folder / EWC_FILE
    if not path.exists():
        return None
    parts: dict[str, dict[str, torch.Tensor]] = {"theta": {}, "fisher": {}}
    try:
        tensors = load_file(path)
        samples = int(tensors.pop("samples"))
        for name, tensor in tensors.items():
            kind, _, key = name.partition("/")
            parts[kind][key] = tensor.float()
        whole = HEAD in parts["fisher"] and all(
            parts["theta"][key].shape == fisher.shape for key, fisher in parts["fisher"].items()
        )
    except (OSError, KeyError, ValueError, SafetensorError) as error:
        raise VersionDamaged(f"the EWC anchor {path} cannot be read: {error!r}") from error
    if not whole:
        raise VersionDamaged(f"the Fisher information in {path} does not fit the parameters beside it")
    return Anchor(parts["theta"], parts["fisher"], samples)


def _anchor_file(anchor: Anchor) -> dict[str, bytes]:
    # bfloat16 has float32's range, which Fisher information needs, and half its size.
    tensors = {f"theta/{name}": value.float().contiguous() for name, value in anchor.theta.items() if name == HEAD}
    tensors |= {f"theta/{name}": value.bfloat16().contiguous() for name, value in anchor.theta.items() if name != HEAD}
    tensors |= {f"fisher/{name}": value.bfloat16().contiguous() for name, value in anchor.fisher.items()}
    tensors["samples"] = torch.tensor(anchor.samples)
    return {EWC_FILE: save(tensors)}


def carried_files(folder: Path) -> Mapping[str, bytes]:
    """Files of a version that a head update passes on unchanged."""
    return {name: (folder / name).read_bytes() for name in (EWC_FILE, SEEN_FILE) if (folder / name).exists()}
