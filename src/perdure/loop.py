"""One turn of the loop.

    ingest   read the stream, join feedback to predictions, remember
    gate     decide, row by row, what is worth learning from
    learn    make candidates from the champion: the analytic head (seconds), then LoRA with EWC and replay (minutes)
    judge    compare each candidate with the champion on rows it was not trained on
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

from perdure.config import Settings
from perdure.errors import StalePromotion, VersionNotFound
from perdure.judge.drift import DriftSummary
from perdure.learn.analytic import HeadLearner
from perdure.learn.candidate import Candidate
from perdure.learn.challenger import Challenger, carried_files
from perdure.learn.gate import Gated, gate
from perdure.learn.leverage import Leverage
from perdure.learn.material import Encodings, Material
from perdure.memory import IngestCounts, Memory, TurnState
from perdure.model.classifier import AnalyticClassifier, load_classifier, shared_encoder
from perdure.model.head import Statistics
from perdure.registry import JUDGE, Card, Registry
from perdure.stream import Stream
from perdure.trial import Trial
from perdure.turn import CandidateResult, TurnResult

logger = logging.getLogger(__name__)

PAGE = 1000
"""Stream entries in one transaction."""

DELTA_PAGE = 100_000
"""Label changes that one pass over the head's statistics takes in."""


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
        self._stream = stream
        self._memory = memory
        self._registry = registry
        self._cache = cache
        self._stage = stage or (lambda _name: None)
        self._encoder = shared_encoder(settings.model.name, settings.model.max_tokens, settings.lora.layers)
        self._head = HeadLearner(self._encoder, settings)
        self._challenger = Challenger(self._encoder, settings, progress)

    def turn(self) -> TurnResult:
        """Runs one turn; an unfinished one goes on where it was.

        Raises:
            PerdureError: something that a person must look at; nothing was promoted by it.
        """
        wall, cpu = time.perf_counter(), time.process_time()
        ingested = self.ingest() if self._memory.turn().stage == "open" else IngestCounts()
        if not self._anything_new():
            number, serving = self._memory.turn().number, self._champion_name()
            return TurnResult(number, serving, serving, note="nothing new", ingested=asdict(ingested))
        state = self._freeze()
        self._stage("statistics")
        statistics = self._absorb()
        champion = self._load(state.champion)
        self._stage("gate")
        material, drift, trial = self._gate(state, champion)
        judged: list[CandidateResult] = []
        promotion = state.promotion
        for learn in (self._update_head, self._update_lora):
            served = champion
            champion, result = self._try(learn, state, champion, material, statistics, trial, promotion)
            promotion += champion is not served
            if result is not None:
                judged.append(result)
        self._stage("remember")
        self._remember(champion)
        summary = TurnResult(
            number=state.number,
            champion_before=state.champion,
            champion=champion.version if champion else None,
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
        self._registry.collect(self._settings.registry.retain)
        logger.info("%s", summary.line())
        return summary

    # ── ingest ──
    def ingest(self) -> IngestCounts:
        """Reads the stream to its end, page by page; each page is one transaction."""
        total = IngestCounts()
        while True:
            self._stage("ingest")
            page = self._stream.read(self._memory.offset(), PAGE)
            if not page.entries:
                return total
            counts = self._memory.ingest(page)
            total = IngestCounts(**{name: getattr(total, name) + value for name, value in asdict(counts).items()})

    def _anything_new(self) -> bool:
        if self._memory.turn().stage == "frozen" or self._memory.deltas(1) or self._memory.rebuild_due:
            return True
        return self._memory.counts().fresh > 0

    def _freeze(self) -> TurnState:
        """Fixes this turn's rows, its champion and the number that its first promotion will have."""
        self._stage("freeze")
        last = self._registry.champion()
        return self._memory.freeze(champion=last.version if last else None, promotion=last.number + 1 if last else 1)

    def _absorb(self) -> Statistics:
        """Brings the head's statistics up to date: every joined label once, whatever becomes of it afterwards."""
        if self._memory.rebuild_due:
            logger.warning("a person's data was in the head only as sums: the head is rebuilt from memory")
            self._memory.rebuild_statistics()
        folder = Path(self._memory.folder)
        name = self._memory.statistics()
        statistics = Statistics.load(folder / name) if name else Statistics(self._settings.model.features)
        if statistics.features != self._settings.model.features:
            logger.warning("model.features changed from %d: the head is rebuilt from memory", statistics.features)
            self._memory.rebuild_statistics()
            statistics = Statistics(self._settings.model.features)
        while deltas := self._memory.deltas(DELTA_PAGE):
            texts = list(dict.fromkeys(delta.text for delta in deltas))
            place = {text: row for row, text in enumerate(texts)}
            features = self._encoder.features(texts, self._settings.model.batch)
            self._head.absorb(statistics, deltas, features[[place[delta.text] for delta in deltas]])
            through = deltas[-1].sequence
            new = f"head-{through:012d}.safetensors"
            statistics.save(folder / new)
            self._stage("statistics written")
            self._memory.set_statistics(new, through=through)
        return statistics

    # ── gate ──
    def _gate(
        self, state: TurnState, champion: AnalyticClassifier | None
    ) -> tuple[Material, DriftSummary | None, Trial]:
        rows, samples = self._memory.rows(), self._memory.samples()
        adapter = champion.adapted.adapter if champion and champion.adapted else None
        encodings = Encodings(self._encoder, adapter, self._settings.model.batch)
        material = Material(state.number, rows, samples, Gated(()), encodings)
        trial = Trial(self._settings, self._registry, self._memory, state)
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

    # ── learn, judge, promote ──
    def _try(
        self,
        learn: Callable[..., Candidate | None],
        state: TurnState,
        champion: AnalyticClassifier | None,
        material: Material,
        statistics: Statistics,
        trial: Trial,
        promotion: int,
    ) -> tuple[AnalyticClassifier | None, CandidateResult | None]:
        """Makes one candidate, judges it, and promotes it or not; the champion afterwards, and the candidate's fate."""
        wall, cpu = time.perf_counter(), time.process_time()
        kind = learn.__name__.removeprefix("_update_")
        self._stage(f"learn {kind}")
        name, card = self._finished(f"v{state.number:06d}-{kind}")
        if card is None:
            candidate = learn(name, champion, material, statistics)
            if candidate is None:
                return champion, None
            self._stage(f"judge {kind}")
            card = trial.judge(candidate, material, champion, self._cache)
        verdict = card.verdict or {}
        outcome, sentence = str(verdict.get("outcome")), str(verdict.get("sentence"))
        if outcome == "promote":
            self._stage(f"promote {kind}")
            try:
                self._registry.promote(name, number=promotion, reason=sentence, by=JUDGE)
                champion = self._load(name)
            except StalePromotion as error:
                outcome, sentence = "stale", str(error)
        return champion, CandidateResult(
            name, card.kind, outcome, sentence, time.perf_counter() - wall, time.process_time() - cpu
        )

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

    def _update_head(
        self, name: str, champion: AnalyticClassifier | None, material: Material, statistics: Statistics
    ) -> Candidate | None:
        folder = self._folder(champion)
        return self._head.candidate(
            statistics,
            self._memory.classes(),
            material,
            champion,
            Leverage.load(folder) if folder else None,
            carried_files(folder) if folder else {},
            name,
        )

    def _update_lora(
        self, name: str, champion: AnalyticClassifier | None, material: Material, statistics: Statistics
    ) -> Candidate | None:
        folder = self._folder(champion)
        if champion is None or folder is None or not self._settings.lora.enabled:
            return None
        return self._challenger.candidate(
            material, champion, Leverage.load(folder), folder, self._memory.representatives, name
        )

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

    def _remember(self, champion: AnalyticClassifier | None) -> None:
        """Embeds what memory has no embedding of in the champion's space, for the views of the next turn."""
        if champion is None:
            return
        samples = self._memory.samples()
        done = self._memory.embedded(champion.space)
        missing = [sample for sample in samples if sample.key not in done]
        if missing:
            vectors = champion.encode([sample.text for sample in missing]).last
            self._memory.embed(champion.space, [sample.key for sample in missing], vectors)
