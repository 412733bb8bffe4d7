"""A corner of CLINC150 with the real encoder: the loop learns new intents and keeps the old ones."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import pytest

from perdure.backtest import run_backtest
from perdure.config import Settings

pytestmark = pytest.mark.model

SESSIONS = 2
EACH = 12
"""Rows of an intent that are used, of the 100 that there are."""


@pytest.fixture
def clinc() -> Path:
    places = [Path(__file__).resolve().parents[3] / "shared" / "data"]
    if given := os.environ.get("PERDURE_DATA"):
        places.insert(0, Path(given))
    for place in places:
        if (place / "clinc150" / "stream_10x15.jsonl").is_file():
            return place / "clinc150"
    told = f"no CLINC150 in {', '.join(map(str, places))}: set PERDURE_DATA to the folder that holds clinc150/"
    if os.environ.get("CI") == "true":
        pytest.fail(told)
    pytest.skip(told)


def some(source: Path, target: Path, each: int) -> Path:
    """The first rows of each intent of the first sessions."""
    taken: Counter[str] = Counter()
    with source.open(encoding="utf-8") as lines, target.open("w", encoding="utf-8") as file:
        for line in lines:
            row = json.loads(line)
            if row["session"] < SESSIONS and taken[row["label"]] < each:
                taken[row["label"]] += 1
                file.write(line)
    return target


def test_new_intents_are_learned_and_old_ones_kept(clinc, tmp_path):
    settings = Settings().with_values(
        {
            "model.features": 1024,
            "model.export": "none",
            "lora.enabled": False,
            "memory.per_class": 10,
            "judge.drift_min_rows": 100_000,
        }
    )
    result = run_backtest(
        some(clinc / "stream_10x15.jsonl", tmp_path / "stream.jsonl", EACH),
        some(clinc / "val.jsonl", tmp_path / "eval.jsonl", 8),
        tmp_path / "out",
        settings,
    )
    metrics = result.metrics()
    assert [one.version for one in result.sessions] == ["v000001-head", "v000002-head"]
    assert metrics["acc"] > 0.9
    assert metrics["forgetting"] < 0.06
    assert metrics["parts"]["frozen_first_version"] < 0.55
    assert metrics["memory_samples"] <= 30 * 10
