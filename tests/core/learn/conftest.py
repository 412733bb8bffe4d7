from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from perdure.config import Settings
from perdure.learn.gate import Action, Decision, Gated
from perdure.learn.imprint import grown_head
from perdure.learn.material import Encodings, Material
from perdure.memory import Row
from perdure.model.encoder import Encoder
from perdure.records import Sample, is_held_out, sample_key

WORDS = {
    "card": ("card", "stolen", "limit", "broken"),
    "login": ("password", "login", "reset", "account"),
    "parcel": ("parcel", "late", "lost", "delete"),
    "refund": ("refund", "money", "back", "invoice"),
}
FILLERS = ("where is my", "please", "i want to", "can you", "the", "help", "not work", "do")

Pairs = Sequence[tuple[str, str | None]]
Requests = Callable[..., list[tuple[str, str]]]
MaterialOf = Callable[..., Material]


@pytest.fixture
def settings(tiny_encoder: Path) -> Settings:
    return Settings().with_values(
        {
            "model.name": str(tiny_encoder),
            "model.max_tokens": 32,
            "model.features": 128,
            "model.bandwidth": 0.4,
            "model.batch": 16,
            "lora.layers": 2,
            "lora.rank": 2,
            "lora.alpha": 4,
            "lora.epochs": 2,
            "lora.batch": 8,
            "lora.learning_rate": 5e-3,
            "lora.fisher_samples": 32,
            "lora.min_rows": 4,
        }
    )


@pytest.fixture(scope="session")
def requests() -> Requests:
    """Different (text, label) pairs: `each` of every label, none of them among the first `skip` of its label."""

    def make(labels: Sequence[str], each: int, skip: int = 0) -> list[tuple[str, str]]:
        pairs = []
        for label in labels:
            texts = [
                f"{filler} {first} {second}" for filler in FILLERS for first, second in combinations(WORDS[label], 2)
            ]
            order = np.random.default_rng(len(label)).permutation(len(texts))
            pairs += [(texts[row], label) for row in order[skip : skip + each]]
        return pairs

    return make


@pytest.fixture
def material_of(encoder: Encoder, settings: Settings) -> MaterialOf:
    """One turn's material from pairs of this turn, with what the gate did to each, and pairs of earlier turns."""

    def make(
        now: Pairs,
        past: Pairs = (),
        *,
        actions: Sequence[Action] = (),
        encodings: Encodings | None = None,
        turn: int = 1,
    ) -> Material:
        rows = tuple(
            Row(f"row-{index:04d}", text, label, None, 0.0, None, float(index))
            for index, (text, label) in enumerate(now)
        )
        fates: Sequence[Action] = actions or ["learn"] * len(rows)
        decisions = [
            Decision(row, action, row.label if action in ("learn", "pseudo") else None, "as told")
            for row, action in zip(rows, fates, strict=True)
        ]
        samples = {sample_key(label, text): (text, label) for text, label in [*past, *now] if label is not None}
        return Material(
            turn,
            rows,
            tuple(
                Sample(key, text, label, 1.0, is_held_out(key, settings.memory.holdout_share), 0.0)
                for key, (text, label) in samples.items()
            ),
            Gated(tuple(decisions)),
            encodings or Encodings(encoder, None, settings.model.batch),
        )

    return make


@pytest.fixture
def imprints(monkeypatch: pytest.MonkeyPatch) -> None:
    """New labels are imprinted, whether unseen rows gain by it or not."""
    monkeypatch.setattr(
        "perdure.learn.analytic.spoken",
        lambda head, _frozen, rows, embeddings, imprint: grown_head(head, rows, embeddings, imprint),
    )
