"""One turn of the loop.

    ingest   read the stream, join feedback to predictions, remember
    gate     decide, row by row, what is worth learning from
    learn    make candidates from the champion: the analytic head (seconds), then LoRA with EWC and replay (minutes)
    judge    compare each candidate with the champion on rows that it had not learned from when it was asked; first of
             all an earlier challenger that is undecided, on what has come since
    promote  or keep the champion, and say why

The scheduler, one update by hand and the backtest all run this turn. Each stage commits what it did before the next one
begins, and does the same again when it is repeated: a process killed anywhere is started again and goes on.
"""

from __future__ import annotations

import itertools
import json
import logging
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import torch

from perdure.artifact import Artifacts
from perdure.config import Settings
from perdure.errors import StalePromotion, TooFewLabels, VersionDamaged, VersionNotFound
from perdure.inflow import inflow_of
from perdure.judge.drift import DriftSummary
from perdure.learn.absorb import Absorber
from perdure.learn.analytic import HeadLearner
from perdure.learn.candidate import Candidate
from perdure.learn.carried import carried_files, origin_of
from perdure.learn.challenger import Challenger
from perdure.learn.gate import Gated, gate
from perdure.learn.leverage import Leverage
from perdure.learn.material import Encodings, Material
from perdure.learn.seen import Seen
from perdure.learn.waiting import Waiting
from perdure.lineage import Undecided, owes_erasure, undecided_in
from perdure.memory import IngestCounts, Memory, TurnState
from perdure.model.classifier import AdaptedHead, AnalyticClassifier, load_classifier, shared_encoder
from perdure.model.head import Statistics
from perdure.oblivion import reconcile
from perdure.registry import JUDGE, Card, Registry
from perdure.stream import Stream
from perdure.trial import Trial
from perdure.turn import CandidateResult, TurnResult

logger = logging.getLogger(__name__)

LOOK_BACK = 20
"""Turns in which an undecided challenger is looked for."""


class Loop:
    """Turns live events into better versions.

    Args:
        settings: of everything.
        stream: where live events come from.
        memory: open for writing.
        registry: where versions and promotions go.
        cache: a local folder for versions.
        stage: called with the name of each stage as it begins; a display, or a test that kills the process there.
        progress: called with (step, steps) while LoRA trains.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        stream: Stream,
        memory: Memory,
        registry: Registry,
        cache: Path,
        stage: Callable[[str], None] | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self._settings = settings
        self._inflow = inflow_of(settings, stream)
        self._memory = memory
        self._registry = registry
        self._cache = cache
        self._stage = stage or (lambda _name: None)
        if settings.model.threads:
            torch.set_num_threads(settings.model.threads)
        self._encoder = shared_encoder(settings.model.name, settings.model.max_tokens, settings.lora.layers)
        self._head = HeadLearner(self._encoder, settings)
        self._absorber = Absorber(self._encoder, self._head, settings, self._stage)
        self._artifacts = Artifacts(settings)
        self._challenger = Challenger(self._encoder, settings, progress)

    def turn(self) -> TurnResult:
        """Runs one turn; an unfinished one goes on where it was.

        Raises:
            PerdureError: something that a person must look at. What was committed before stays, a promotion included;
                the next turn goes on from there.
        """
        wall, cpu = time.perf_counter(), time.process_time()
        ingested = IngestCounts()
        if self._memory.turn().stage == "open":
            ingested = self.ingest()
            reconcile(self._memory, self._registry)
            if not self._anything_new():
                number, serving = self._memory.turn().number, self._champion_name()
                return TurnResult(number, serving, serving, note="nothing new", ingested=asdict(ingested))
        else:
            logger.warning(
                "turn %d was interrupted and goes on: what has come since, erasures included, waits for the next turn",
                self._memory.turn().number,
            )
        state, champion = self._freeze()
        self._stage("statistics")
        encodings = self._encodings(champion.adapted if champion else None)
        statistics = self._absorber.absorb(self._memory, encodings)
        material, drift, trial = self._gate(state, champion, encodings)
        judged = self._judged(state, champion, material, statistics, trial)
        summary = TurnResult(
            number=state.number,
            champion_before=state.champion,
            champion=self._champion_name(),
            promotion=state.promotion,
            candidates=tuple(judged),
            gate=dict(material.gated.counts()),
            ingested=asdict(ingested),
            drifted=drift.drifted if drift else False,
            drift=drift.sentence if drift else "",
            note="" if judged else "too little to learn from",
            wall_seconds=time.perf_counter() - wall,
            cpu_seconds=time.process_time() - cpu,
        )
        self._stage("finish")
        self._memory.finish(json.dumps(summary.to_json()))
        undecided = self._undecided()
        self._registry.collect(self._settings.registry.retain, keep=[undecided.version] if undecided else [])
        logger.info("%s", summary.line())
        return summary

    # ── ingest ──
    def ingest(self) -> IngestCounts:
        """Reads the stream to its end, page by page; each page is one transaction."""

        def next_page() -> bool:
            self._stage("ingest")
            return True

        return self._inflow.bring(self._memory, next_page)

    def _anything_new(self) -> bool:
        counts = self._memory.counts()
        if self._memory.deltas(1) or self._memory.rebuild_due or counts.fresh > 0:
            return True
        return owes_erasure(self._memory.history(1), self._registry, unlearned=counts.totals.unlearned)

    def _freeze(self) -> tuple[TurnState, AnalyticClassifier | None]:
        """Fixes this turn's rows, its champion and the number that its first promotion will have."""
        self._stage("freeze")
        state, last = self._memory.turn(), self._registry.champion()
        if state.stage == "open":
            # First of all: a turn that began on a champion that cannot be read could never end.
            champion = self._load(last.version if last else None)
            if champion is None:
                self._check_labels()
            state = self._memory.freeze(
                champion=last.version if last else None, promotion=last.number + 1 if last else 1
            )
            return state, champion
        try:
            return state, self._load(state.champion)
        except (VersionDamaged, VersionNotFound) as error:
            if last is None or last.version == state.champion:
                raise
            logger.warning("turn %d goes on from %s, which was promoted since: %s", state.number, last.version, error)
            return replace(state, champion=last.version, promotion=last.number + 1), self._load(last.version)

    def _check_labels(self) -> None:
        counts = self._memory.counts()
        if len(counts.labels) < 2:
            few = ", ".join(f"{label!r} ({count})" for label, count in {**counts.labels, **counts.pending}.items())
            raise TooFewLabels(
                f"a first version needs at least two labels with {self._settings.memory.class_rows} examples "
                f"each, but there are {few or 'none'}: add rows, or lower memory.pending_labels_below"
            )

    # ── gate ──
    def _gate(
        self, state: TurnState, champion: AnalyticClassifier | None, encodings: Encodings
    ) -> tuple[Material, DriftSummary | None, Trial]:
        rows, samples = self._memory.rows(), self._memory.samples()
        material = Material(state.number, rows, samples, Gated(()), encodings)
        self._stage("remember")
        if champion is not None:
            self._remember(champion, material)
        self._stage("gate")
        trial = Trial(self._settings, self._registry, self._memory, state, self._artifacts)
        drift = trial.drift(material, champion)
        scores = neighbours = None
        if champion is not None and rows:
            encoded = encodings([row.text for row in rows])
            scores = champion.answer(encoded)
            # A few more than are asked: the row's own text may be among them, and has no vote.
            neighbours = self._memory.neighbours(encoded.last, self._settings.gate.neighbours + 2)
        gated = gate(
            rows,
            scores,
            neighbours,
            classes=self._memory.classes(),
            turn=state.number,
            drifting=drift.drifted if drift else False,
            settings=self._settings.gate,
        )
        trial.quarantine(gated)
        return replace(material, gated=gated), drift, trial

    def _remember(self, champion: AnalyticClassifier, material: Material) -> None:
        """Embeds, in the champion's space, what memory has no embedding of there, for its views.

        Without what this turn's rows say: they must not vouch for themselves, however often the turn is started again.
        After a promotion or a rollback that is all of memory, as neighbours in another space would mean nothing.
        """
        done, past = self._memory.embedded(champion.space), material.remembered()
        missing = past.where([key not in done for key in past.keys])
        if missing or not done:
            self._memory.embed(champion.space, missing.keys, material.encodings(missing.texts).last)

    # ── learn, judge, promote ──
    def _judged(
        self,
        state: TurnState,
        champion: AnalyticClassifier | None,
        material: Material,
        statistics: Statistics,
        trial: Trial,
    ) -> list[CandidateResult]:
        """What became of each candidate; the ones after a promotion are compared with what it promoted."""
        judged: list[CandidateResult] = []
        promotion, waiting = state.promotion, self._waiting()
        encodings = material.encodings.beside(waiting.adapted.adapter) if waiting else material.encodings
        # Each sees what waits when its time comes: of a challenger that was decided on nothing is left to go on from.
        learners: dict[str, Callable[..., Candidate | None]] = {
            "challenger": lambda *given: self._ask_again(waiting, encodings, *given),
            "head": self._update_head,
            "lora": lambda *given: self._update_lora(waiting, *given),
        }
        for kind, learn in learners.items():
            if kind == "challenger" and waiting is None:
                continue
            result = self._try(kind, learn, state, champion, material, statistics, trial, promotion)
            if result is None:
                continue
            judged.append(result)
            if result.outcome == "stale":
                # Nothing that was compared with the old champion can be promoted any more.
                break
            if kind == "challenger" and result.outcome != "inconclusive":
                waiting = None
            if result.outcome == "promote":
                champion = self._load(result.version)
                promotion += 1
                if kind == "challenger":
                    material = replace(material, encodings=encodings)
        return judged

    def _try(
        self,
        kind: str,
        learn: Callable[..., Candidate | None],
        state: TurnState,
        champion: AnalyticClassifier | None,
        material: Material,
        statistics: Statistics,
        trial: Trial,
        promotion: int,
    ) -> CandidateResult | None:
        """Makes one candidate, judges it, and promotes it or not; None where there is nothing to make one from."""
        wall, cpu = time.perf_counter(), time.process_time()
        self._stage(f"learn {kind}")
        name, card = self._finished(f"v{state.number:06d}-{kind}")
        if card is None:
            candidate = learn(name, champion, material, statistics)
            if candidate is None:
                return None
            self._stage(f"judge {kind}")
            card = trial.judge(candidate, material, champion, self._cache)
        verdict = card.verdict or {}
        outcome, sentence = str(verdict.get("outcome")), str(verdict.get("sentence"))
        if outcome == "promote":
            self._stage(f"promote {kind}")
            try:
                self._registry.promote(name, number=promotion, reason=sentence, by=JUDGE)
            except StalePromotion as error:
                outcome, sentence = "stale", str(error)
        told = kind if kind == "challenger" else card.kind
        return CandidateResult(name, told, outcome, sentence, time.perf_counter() - wall, time.process_time() - cpu)

    def _finished(self, name: str) -> tuple[str, Card | None]:
        """The name that a candidate gets, and its card if a process that was killed afterwards has finished it.

        A version of that name from another memory (one that was deleted, say) is left alone; a suffix is added.
        """
        mine = self._memory.digest()
        for candidate in itertools.chain([name], (f"{name}.{suffix}" for suffix in itertools.count(2))):
            try:
                card = self._registry.card(candidate)
            except VersionNotFound:
                break
            if card.memory_digest == mine and dict(card.offset) == dict(self._memory.offset()):
                return candidate, card
        return candidate, None

    def _ask_again(
        self,
        waiting: Waiting | None,
        encodings: Encodings,
        name: str,
        champion: AnalyticClassifier | None,
        material: Material,
        statistics: Statistics,
    ) -> Candidate | None:
        folder = self._folder(champion)
        if champion is None or folder is None or waiting is None:
            return None
        return waiting.candidate(
            champion,
            Leverage.load(folder),
            material,
            encodings,
            statistics.counts,
            self._settings,
            name,
        )

    def _update_head(
        self, name: str, champion: AnalyticClassifier | None, material: Material, statistics: Statistics
    ) -> Candidate | None:
        folder, classes = self._folder(champion), self._memory.classes()
        if sum(statistics.counts.get(label, 0) > 0 for label in classes) < 2:
            # Erasures may take a label's last example.
            return None
        return self._head.candidate(
            statistics,
            classes,
            material,
            champion,
            Leverage.load(folder) if folder else None,
            carried_files(folder) if folder else {},
            name,
        )

    def _update_lora(
        self,
        waiting: Waiting | None,
        name: str,
        champion: AnalyticClassifier | None,
        material: Material,
        statistics: Statistics,
    ) -> Candidate | None:
        folder = self._folder(champion)
        if champion is None or folder is None or not self._settings.lora.enabled:
            return None
        origin = waiting.origin if waiting else origin_of(champion, folder)
        seen = waiting.seen if waiting else Seen.load(folder)
        candidate = self._challenger.candidate(
            material,
            champion,
            Leverage.load(folder),
            origin,
            seen,
            self._memory.representatives,
            statistics.counts,
            name,
        )
        if candidate is None or waiting is None:
            return candidate
        note = f"It was to go on from {waiting.version}, whose verdict was inconclusive."
        return replace(candidate, looks=waiting.looks + 1, notes=(note, *candidate.notes))

    def _waiting(self) -> Waiting | None:
        """The challenger on which the judge could not decide in the last turns."""
        found = self._undecided() if self._settings.lora.enabled else None
        if found is None:
            return None
        try:
            folder = self._registry.fetch(found.version, self._cache)
            classifier = self._load(found.version)
            if classifier is None or classifier.adapted is None:
                return None
            origin, seen = origin_of(classifier, folder), Seen.load(folder)
        except (VersionDamaged, VersionNotFound) as error:
            logger.warning("the LoRA update goes on from the champion: %s", error)
            return None
        return Waiting(found.version, classifier.adapted, origin, carried_files(folder), seen, found.looks, found.asked)

    def _undecided(self) -> Undecided | None:
        unlearned = self._memory.counts().totals.unlearned
        return undecided_in(self._memory.history(LOOK_BACK), self._registry, unlearned=unlearned)

    # ── champions ──
    def _champion_name(self) -> str | None:
        last = self._registry.champion()
        return last.version if last else None

    def _folder(self, champion: AnalyticClassifier | None) -> Path | None:
        return self._registry.fetch(champion.version, self._cache) if champion else None

    def _load(self, version: str | None) -> AnalyticClassifier | None:
        if version is None:
            return None
        folder = self._registry.fetch(version, self._cache)
        return load_classifier(folder, version, batch=self._settings.model.batch, encoder=self._settings.model.name)

    def _encodings(self, adapted: AdaptedHead | None) -> Encodings:
        return Encodings(self._encoder, adapted.adapter if adapted else None, self._settings.model.batch)
