"""The very files that would be served, made and tried."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from perdure.config import Settings
from perdure.engine.exporter import Exporter
from perdure.engine.load import load_version
from perdure.engine.served import Precision
from perdure.errors import ExportError
from perdure.judge.artifact import Artifact
from perdure.judge.check import percent
from perdure.judge.checks import AGREEMENT
from perdure.learn.candidate import Candidate
from perdure.model.base import Classifier, Scores

logger = logging.getLogger(__name__)

AGREEMENT_TEXTS = 500
"""Most texts that the artifact, read back, is asked about."""

LATENCY_TEXTS = 20
"""Single texts that latency is measured on; the median of them counts."""

PRECISIONS: Mapping[str, tuple[Precision, ...]] = {
    "auto": ("int8", "float32"),
    "int8": ("int8",),
    "float32": ("float32",),
    "none": (),
}
"""What `model.export` stands for, in the order in which it is tried."""


@dataclass(frozen=True, slots=True)
class Made:
    """A candidate's files, and what was found of them."""

    files: Mapping[str, bytes]
    shared: Mapping[str, bytes]
    """Files that other versions have too."""
    artifact: Artifact
    notes: tuple[str, ...]
    """What a person should know of how it was exported, a sentence each."""


class Artifacts:
    """Exports candidates and reads them back as serving will.

    Args:
        settings: of model and judge.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._exporter = Exporter()

    def make(
        self, candidate: Candidate, answers: Callable[[Sequence[str]], Scores], champion: tuple[str, Path] | None
    ) -> Made:
        """The candidate's files: exported with the first precision in which they answer as it does.

        Args:
            candidate: what a learner made.
            answers: what the candidate in memory says of texts.
            champion: name and folder of what is served now; its encoder, where it is the same, is not exported anew.

        Raises:
            ExportError: it cannot be exported, and `model.export` leaves no other way.
        """
        texts = candidate.evidence.texts[:AGREEMENT_TEXTS]
        wanted = answers(texts) if texts else None
        files, notes = candidate.files(), list[str]()
        for precision in PRECISIONS[self._settings.model.export]:
            try:
                export = self._exporter.export(candidate.classifier, precision, champion[1] if champion else None)
            except ExportError as error:
                if self._settings.model.export != "auto":
                    raise
                logger.warning("%s will be served by torch: %s", candidate.classifier.version, error)
                notes.append("It could not be exported: torch serves it.")
                break
            artifact = self._tried({**files, **export.files}, export.shared, candidate, wanted, champion)
            if artifact.agreement >= AGREEMENT or precision == PRECISIONS[self._settings.model.export][-1]:
                return Made({**files, **export.files}, export.shared, artifact, tuple(notes))
            notes.append(f"In {precision} it would agree with itself on {percent(artifact.agreement)} of rows only.")
        return Made(files, {}, self._tried(files, {}, candidate, wanted, champion), tuple(notes))

    def _tried(
        self,
        files: Mapping[str, bytes],
        shared: Mapping[str, bytes],
        candidate: Candidate,
        wanted: Scores | None,
        champion: tuple[str, Path] | None,
    ) -> Artifact:
        texts = candidate.evidence.texts[:AGREEMENT_TEXTS]
        timed = self._settings.judge.judge_latency and bool(texts)
        with tempfile.TemporaryDirectory(prefix="perdure-candidate-") as folder:
            for name, data in {**files, **shared}.items():
                (Path(folder) / name).write_bytes(data)
            read_back = self._served(candidate.classifier.version, Path(folder))
            agreement = 1.0
            if wanted is not None:
                agreement = float(np.mean(np.asarray(read_back.scores(texts).names()) == np.asarray(wanted.names())))
            seconds = _seconds(read_back, texts) if timed else None
        return Artifact(
            finite=candidate.classifier.finite() and read_back.finite(),
            agreement=agreement,
            seconds_per_text=seconds,
            champion_seconds_per_text=_seconds(self._served(*champion), texts) if timed and champion else None,
        )

    def _served(self, version: str, folder: Path) -> Classifier:
        model = self._settings.model
        return load_version(
            folder,
            version,
            batch=model.batch,
            threads=model.threads,
            graph_threads=model.threads,
            encoder=model.name,
        )


def _seconds(classifier: Classifier, texts: Sequence[str]) -> float:
    """Median seconds for one text alone."""
    classifier.scores(texts[:1])
    taken = []
    for text in texts[:LATENCY_TEXTS]:
        start = time.perf_counter()
        classifier.scores([text])
        taken.append(time.perf_counter() - start)
    return float(np.median(taken))
