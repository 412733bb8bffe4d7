"""What a session brought: the champion of then, and what else there was, on the evaluation rows that have come."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perdure.config import Settings
from perdure.dataset import DataRow
from perdure.learn.material import Encodings
from perdure.model.base import Scores
from perdure.model.classifier import AnalyticClassifier, Encoded, load_classifier
from perdure.registry import Registry
from perdure.registry.card import CARD
from perdure.turn import TurnResult

KEPT_ROWS = 20_000
"""Evaluation rows whose features are kept from session to session; for MiniLM that is 200 MB."""


@dataclass(frozen=True, slots=True)
class SessionResult:
    """What one session brought. Accuracies are fractions."""

    session: int
    acc_seen: float
    accuracies: tuple[float, ...]
    """Of each session so far that has evaluation rows."""
    acc_head: float
    """As `acc_seen`, of the champion without its adapter."""
    acc_lora: float | None
    """As `acc_seen`, of this session's LoRA candidate, whatever the judge said of it; None where there was none."""
    acc_first: float
    """As `acc_seen`, of the first version, which never learned again."""
    verdict: str
    version: str | None
    turn: Mapping[str, Any]
    cpu_seconds: float
    """Of all that the session took, predictions on arrival and evaluation included; so is `wall_seconds`."""
    learn_cpu_seconds: float
    """Of its turn alone."""
    wall_seconds: float
    learned: int
    skipped: int
    quarantined: int


class Evaluation:
    """Evaluates versions on rows that the loop never sees.

    Args:
        rows: all evaluation rows.
        registry: where versions are.
        cache: a local folder for versions.
        settings: of the model.
    """

    def __init__(self, rows: Sequence[DataRow], registry: Registry, cache: Path, settings: Settings) -> None:
        self._rows = rows
        self._registry = registry
        self._cache = cache
        self._settings = settings
        self._frozen: Encodings | None = None
        self._kept: AnalyticClassifier | None = None

    def champion(self) -> AnalyticClassifier | None:
        """What is served now."""
        last = self._registry.champion()
        return self._load(last.version) if last else None

    def after(self, session: int, places: Sequence[int], result: TurnResult) -> tuple[SessionResult, Scores | None]:
        """What there is after `session`, but for the time that it took, and the champion's answers.

        Args:
            session: that has just been learned.
            places: of the rows to evaluate on, in the file of evaluation rows.
            result: of the session's turn.
        """
        seen = [self._rows[place] for place in places]
        texts, truth = [row.text for row in seen], [row.label for row in seen]
        right = head = first = np.zeros(len(seen), dtype=bool)
        lora = served = None
        champion = self.champion()
        if champion is not None and seen:
            encoded = self._encoded(champion, texts)
            served = champion.answer(encoded)
            right = _right(served, truth)
            head = _right(champion.answer(encoded.frozen()), truth)
            first = _right(self._first().answer(encoded.frozen()), truth)
            for one in result.candidates:
                if one.kind == "lora":
                    challenger = self._load(one.version)
                    lora = _right(challenger.answer(self._encoded(challenger, texts)), truth)
        of = np.asarray([row.session for row in seen])
        gate = result.gate
        found = SessionResult(
            session=session,
            acc_seen=_mean(right),
            accuracies=tuple(_mean(right[of == group]) for group in sorted(set(of.tolist()))),
            acc_head=_mean(head),
            acc_lora=None if lora is None else _mean(lora),
            acc_first=_mean(first),
            verdict="; ".join(f"{one.kind}: {one.outcome}" for one in result.candidates) or result.note,
            version=champion.version if champion else None,
            # How much one process read depends on how often it was killed.
            turn={name: value for name, value in result.to_json().items() if name != "ingested"},
            cpu_seconds=0.0,
            learn_cpu_seconds=result.cpu_seconds,
            wall_seconds=0.0,
            learned=gate.get("learn", 0) + gate.get("pseudo", 0),
            skipped=gate.get("skip", 0),
            quarantined=gate.get("quarantine", 0),
        )
        return found, served

    def _encoded(self, classifier: AnalyticClassifier, texts: Sequence[str]) -> Encoded:
        """As `classifier.encode`; features of the frozen encoder, which all versions share, are computed once."""
        if len(self._rows) > KEPT_ROWS:
            return classifier.encode(texts)
        if self._frozen is None:
            self._frozen = Encodings(classifier.encoder, None, self._settings.model.batch)
        frozen = self._frozen(texts)
        if classifier.adapted is None:
            return frozen
        adapted = classifier.adapted.adapter.embeddings(texts, self._settings.model.batch)
        return Encoded(frozen.features, adapted, adapted)

    def _first(self) -> AnalyticClassifier:
        """The version that was served first; the registry lets go of it while the backtest goes on."""
        if self._kept is None:
            version = self._registry.promotions()[0].version
            folder = self._cache / version
            if not (folder / CARD).is_file():
                folder = self._registry.fetch(version, self._cache)
            self._kept = self._read(folder, version)
        return self._kept

    def _load(self, version: str) -> AnalyticClassifier:
        return self._read(self._registry.fetch(version, self._cache), version)

    def _read(self, folder: Path, version: str) -> AnalyticClassifier:
        model = self._settings.model
        return load_classifier(folder, version, batch=model.batch, encoder=model.name)


def _right(scores: Scores, truth: Sequence[str]) -> NDArray[np.bool_]:
    return np.asarray([name == label for name, label in zip(scores.names(), truth, strict=True)], dtype=bool)


def _mean(values: NDArray[np.bool_]) -> float:
    return float(values.mean()) if len(values) else 0.0
