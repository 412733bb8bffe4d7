"""The trial of a candidate: written, read back, judged, and kept with everything that was said of it."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from perdure.artifact import Artifacts
from perdure.config import Settings
from perdure.judge.artifact import Artifact
from perdure.judge.comparison import compare
from perdure.judge.drift import DriftInput, DriftSummary, drift_report
from perdure.judge.report import write_report
from perdure.judge.shift import Shift, prediction_shift
from perdure.judge.threshold import threshold_of
from perdure.judge.turn import Judged, turn_page
from perdure.judge.verdict import Verdict, judge
from perdure.learn.candidate import Candidate
from perdure.learn.gate import Gated
from perdure.learn.material import Encodings, Material
from perdure.memory import Memory, Quarantined, TurnState
from perdure.model.base import Scores
from perdure.model.classifier import AnalyticClassifier
from perdure.registry import Card, Registry
from perdure.registry.card import EncoderCard

SHIFT_ROWS = 500
"""Most rows of traffic that predictions of champion and candidate are compared on."""

DRIFT_ROWS = 2000
"""Most rows on either side of a drift report."""

CANDIDATES = 3
"""Candidates that one turn may compare with the champion: bounds are corrected for all of them."""


class Trial:
    """Judges the candidates of one turn.

    Args:
        settings: of everything.
        registry: where candidates are written, whatever the verdict.
        memory: for counts, and for what goes into quarantine.
        state: the turn.
        artifacts: makes the files that are judged.
    """

    def __init__(
        self, settings: Settings, registry: Registry, memory: Memory, state: TurnState, artifacts: Artifacts
    ) -> None:
        self._settings = settings
        self._artifacts = artifacts
        self._registry = registry
        self._memory = memory
        self._state = state
        self._drift: DriftSummary | None = None
        self._drift_files: dict[str, bytes] = {}

    def drift(self, material: Material, champion: AnalyticClassifier | None) -> DriftSummary | None:
        """Compares this turn's traffic with what memory holds of earlier turns; None before there is a champion."""
        if champion is None or not material.rows:
            return None
        rng = np.random.default_rng(self._settings.seed + material.turn)
        past = _some(material.remembered().texts, rng)
        now = _some([row.text for row in material.rows], rng)
        with tempfile.TemporaryDirectory(prefix="perdure-drift-") as folder:
            self._drift = drift_report(
                _seen(past, material.encodings, champion),
                _seen(now, material.encodings, champion),
                self._settings.judge,
                Path(folder),
            )
            self._drift_files = {path.name: path.read_bytes() for path in Path(folder).iterdir()}
        return self._drift

    def quarantine(self, gated: Gated) -> None:
        """Puts doubtful rows where a person can look at them."""
        doubtful = [
            Quarantined(one.row.id, one.reason, one.row.text, one.row.label, one.row.time)
            for one in gated.of("quarantine")
        ]
        if doubtful:
            self._memory.quarantine(doubtful)

    def judge(self, candidate: Candidate, material: Material, champion: AnalyticClassifier | None, cache: Path) -> Card:
        """Judges the very files that would be served, and writes them with the verdict and the report.

        Args:
            candidate: what a learner made.
            material: this turn's rows.
            champion: what it is compared with.
            cache: a local folder for versions.
        """
        name = candidate.classifier.version
        made = self._artifacts.make(
            candidate,
            lambda texts: _answers(candidate, material, texts),
            (champion.version, self._registry.fetch(champion.version, cache)) if champion else None,
        )
        artifact = made.artifact
        unlearned = self._memory.counts().totals.unlearned
        known = self._registry.card(champion.version).unlearned if champion else None
        threshold = threshold_of(candidate.evidence, self._settings.judge)
        verdict = judge(
            candidate.evidence,
            kind=candidate.kind,
            settings=self._settings.judge,
            artifact=artifact,
            shift=_shift(candidate, material, champion),
            # The sum of 1 / (k·(k+1)) is 1: all turns that look at one challenger spend together what one turn may.
            candidates=CANDIDATES * (candidate.looks * (candidate.looks + 1) if candidate.kind == "lora" else 1),
            rolled_back=name in self._registry.rolled_back(),
            erasure=known is not None and known < unlearned,
        )
        card = Card(
            name=name,
            parent=champion.version if champion else None,
            kind=candidate.kind,
            encoder=EncoderCard(
                name=candidate.classifier.encoder.name, fingerprint=candidate.classifier.encoder.fingerprint
            ),
            labels=candidate.classifier.labels,
            offset=dict(self._memory.offset()),
            memory_digest=self._memory.digest(),
            # An adapter's version has the champion's frozen head, with all that it knows.
            unlearned=known if candidate.kind == "lora" and known is not None else unlearned,
            turn=self._state.number,
            seed=self._settings.seed,
            config=self._settings.model_dump(mode="json"),
            notes=(*candidate.notes, *made.notes),
            metrics={
                **candidate.metrics,
                "looks": float(candidate.looks),
                "agreement": artifact.agreement,
                **_accuracies(candidate),
                **(threshold.metrics() if threshold else {}),
                **_latencies(artifact),
            },
            verdict=verdict.to_json(),
        )
        files = {**made.files, **self._drift_files, **self._report(candidate, material, champion, verdict)}
        return self._registry.write(card, files, made.shared)

    def _report(
        self, candidate: Candidate, material: Material, champion: AnalyticClassifier | None, verdict: Verdict
    ) -> dict[str, bytes]:
        counts = self._memory.counts()
        name = candidate.classifier.version
        page = turn_page(
            number=self._state.number,
            champion=champion.version if champion else None,
            judged=[Judged(candidate.kind, name, verdict, candidate.evidence, candidate.notes)],
            promoted=name if verdict.outcome == "promote" else None,
            drift=self._drift,
            counts={
                "Gate": dict(material.gated.counts()),
                "Memory": {
                    "samples": counts.samples,
                    "held out": counts.held_out,
                    "classes": len(counts.labels),
                    "labels with too few examples": len(counts.pending),
                    "tombstones": counts.tombstones,
                    "feedback waiting": counts.waiting_feedback,
                    "in quarantine": counts.quarantined,
                    "bytes": counts.memory_bytes,
                },
                "Ingested so far": asdict(counts.totals),
                "Learning": {key: round(value, 4) for key, value in candidate.metrics.items()},
            },
            quarantined=self._memory.quarantined(),
        )
        with tempfile.TemporaryDirectory(prefix="perdure-report-") as folder:
            return {"report.html": write_report(Path(folder), page).read_bytes()}


def _some(texts: Sequence[str], rng: np.random.Generator) -> list[str]:
    if len(texts) <= DRIFT_ROWS:
        return list(texts)
    return [texts[row] for row in sorted(rng.choice(len(texts), DRIFT_ROWS, replace=False))]


def _seen(texts: Sequence[str], encodings: Encodings, champion: AnalyticClassifier) -> DriftInput:
    if not texts:
        return DriftInput((), (), (), None)
    encoded = encodings(texts)
    answers = champion.answer(encoded).predictions()
    return DriftInput(
        texts=tuple(texts),
        predicted=tuple(answer.label for answer in answers),
        confidence=tuple(answer.confidence for answer in answers),
        embeddings=encoded.last,
    )


def _shift(candidate: Candidate, material: Material, champion: AnalyticClassifier | None) -> Shift | None:
    """Over this turn's rows, labelled or not."""
    if champion is None or not material.rows:
        return None
    rows = material.rows[:SHIFT_ROWS]
    texts = [row.text for row in rows]
    before = champion.answer(material.encodings(texts))
    after = _answers(candidate, material, texts)
    return prediction_shift(before, after, [row.label for row in rows])


def _answers(candidate: Candidate, material: Material, texts: Sequence[str]) -> Scores:
    """What the candidate in memory says; no frozen features are computed twice."""
    return candidate.classifier.answer((candidate.encodings or material.encodings)(texts))


def _accuracies(candidate: Candidate) -> dict[str, float]:
    comparison = compare(candidate.evidence)
    paired = comparison.paired(np.ones(len(candidate.evidence), dtype=np.bool_))
    if not paired.rows:
        return {}
    found = {"evidence_rows": float(paired.rows), "accuracy": paired.candidate}
    return found if candidate.evidence.champion is None else {**found, "champion_accuracy": paired.champion}


def _latencies(artifact: Artifact) -> dict[str, float]:
    return {} if artifact.seconds_per_text is None else {"seconds_per_text": artifact.seconds_per_text}
