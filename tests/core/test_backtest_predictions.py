from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from perdure.backtest.predictions import PredictionLog
from perdure.model.base import Scores


def scores(*confidences: float) -> Scores:
    rows = [[1 - one, one] for one in confidences]
    return Scores(("kärte", "login"), np.asarray(rows, dtype=np.float32))


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]


def test_each_line_is_an_answer_to_one_row_after_one_session(tmp_path: Path) -> None:
    log = PredictionLog(tmp_path, ())
    log.append(0, [0, 3], None)
    log.append(2, [0, 3, 4], scores(0.75, 0.123456789, 0.5))
    assert lines(tmp_path) == [
        {"session": 0, "row": 0, "answer": None, "confidence": 0.0},
        {"session": 0, "row": 3, "answer": None, "confidence": 0.0},
        {"session": 2, "row": 0, "answer": "login", "confidence": 0.75},
        {"session": 2, "row": 3, "answer": "kärte", "confidence": 0.876543},
        {"session": 2, "row": 4, "answer": "kärte", "confidence": 0.5},
    ]
    assert "kärte" in (tmp_path / "predictions.jsonl").read_text(encoding="utf-8")


def test_what_belongs_to_a_session_that_is_not_finished_is_let_go_of(tmp_path: Path) -> None:
    log = PredictionLog(tmp_path, ())
    log.append(0, [0, 1], scores(0.75, 0.75))
    log.append(1, [0, 1], scores(0.25, 0.25))
    whole = (tmp_path / "predictions.jsonl").read_bytes()
    PredictionLog(tmp_path, [0, 1])
    assert (tmp_path / "predictions.jsonl").read_bytes() == whole
    (tmp_path / "predictions.jsonl").write_bytes(whole[:-7])
    log = PredictionLog(tmp_path, {0: "finished"})
    assert [one["session"] for one in lines(tmp_path)] == [0, 0]
    log.append(1, [0, 1], scores(0.25, 0.25))
    assert (tmp_path / "predictions.jsonl").read_bytes() == whole
