from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

if TYPE_CHECKING:
    from contestants.backbone import Backbone
    from contestants.base import Context, Order

WORDS = {
    "card": ("card", "stolen"),
    "login": ("password", "login"),
    "parcel": ("parcel", "late"),
    "refund": ("refund", "money"),
}
FILLERS = ("where is my", "please", "i want to", "can you", "the", "help", "not work", "do")
SESSIONS = (("card", "login"), ("parcel", "refund"))
TRAINED, EVALUATED = 16, 12
"""Rows of each label."""

MakeContext = Callable[..., "Context"]


def rows() -> tuple[list[dict[str, object]], list[dict[str, object]]]:
    """Rows of four labels in two sessions, to learn from and to be evaluated on; no text is in both."""
    stream: list[dict[str, object]] = []
    evaluation: list[dict[str, object]] = []
    for number, labels in enumerate(SESSIONS):
        for label in labels:
            pairs = [f"{first} {second}" for first, second in product(WORDS[label], repeat=2)]
            texts = [text for pair in pairs for filler in FILLERS for text in (f"{filler} {pair}", f"{pair} {filler}")]
            order = np.random.default_rng(len(label)).permutation(len(texts))
            made = [{"text": texts[row], "label": label, "session": number} for row in order]
            stream += made[:TRAINED]
            evaluation += made[TRAINED : TRAINED + EVALUATED]
    return stream, evaluation


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like that of CLINC150, with four labels in two sessions."""
    folder = tmp_path_factory.mktemp("data")
    stream, evaluation = rows()
    for name, content in (("stream_10x15", stream), ("val", evaluation), ("test", evaluation)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def two_sessions(data: Path) -> Order:
    from contestants.orders import load_order

    return load_order("10x15", 0, data, "val")


@pytest.fixture(scope="session")
def backbone(tiny_encoder: Path) -> Backbone:
    from contestants.backbone import Backbone

    return Backbone(str(tiny_encoder), max_tokens=32)


@pytest.fixture(scope="session")
def feature_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("features")


@pytest.fixture
def context(backbone: Backbone, two_sessions: Order, feature_folder: Path) -> MakeContext:
    """What a contestant is given, with the embeddings of both sessions; keywords change the recipe."""
    from contestants.base import Context
    from contestants.features import FrozenFeatures
    from contestants.recipe import Recipe

    def make(*, memory: int = 4, seed: int = 0, **changes: float) -> Context:
        features = FrozenFeatures(backbone, feature_folder)
        features.prepare(text for session in two_sessions.sessions for text in session.rows.texts)
        features.prepare(text for part in two_sessions.evaluation for text in part.texts)
        small = {"batch": 8, "rank": 4, "learning_rate": 1e-2, "random_features": 64, "fisher_rows": 16}
        return Context(backbone, features, memory, seed, Recipe(**{**small, **changes}))  # type: ignore[arg-type]

    return make


@pytest.fixture
def watched() -> Callable[[Any], tuple[Any, set[str]]]:
    """A copy of a recipe, and the names of its parts that are looked at from then on."""
    from contestants.recipe import Recipe

    def watch(recipe: Recipe) -> tuple[Recipe, set[str]]:
        seen: set[str] = set()

        class Watched(Recipe):
            def __getattribute__(self, name: str) -> Any:
                if name in Recipe.__dataclass_fields__:
                    seen.add(name)
                return super().__getattribute__(name)

        return Watched(**asdict(recipe)), seen

    return watch
