from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from perdure.judge.artifact import Artifact
from perdure.judge.evidence import Evidence, Source
from perdure.model.base import Scores

Answers = Sequence[tuple[str, float]]


def answer(labels: tuple[str, ...], answers: Answers) -> Scores:
    """Scores that answer these labels with these confidences."""
    probabilities = np.zeros((len(answers), len(labels)), dtype=np.float32)
    for row, (label, confidence) in enumerate(answers):
        probabilities[row] = (1 - confidence) / max(len(labels) - 1, 1)
        probabilities[row, labels.index(label)] = confidence
    return Scores(labels, probabilities)


@pytest.fixture
def scores() -> Callable[[tuple[str, ...], Answers], Scores]:
    return answer


@pytest.fixture
def evidence() -> Callable[..., Evidence]:
    """Evidence from groups of equal rows: (truth, champion's answer, candidate's answer, how many)."""

    def make(
        groups: Sequence[tuple[str, str, str, int]],
        *,
        old: tuple[str, ...] | None = ("a", "b"),
        new: tuple[str, ...] = ("a", "b"),
        confidence: tuple[float, float] = (0.9, 0.9),
        source: Source = "fresh",
    ) -> Evidence:
        rows = [group[:3] for group in groups for _ in range(group[3])]
        return Evidence(
            texts=tuple(f"text {row}" for row in range(len(rows))),
            truth=tuple(row[0] for row in rows),
            source=(source,) * len(rows),
            champion=None if old is None else answer(old, [(row[1], confidence[0]) for row in rows]),
            candidate=answer(new, [(row[2], confidence[1]) for row in rows]),
        )

    return make


@pytest.fixture
def sound() -> Artifact:
    return Artifact(finite=True, agreement=1.0, seconds_per_text=0.002, champion_seconds_per_text=0.002)
