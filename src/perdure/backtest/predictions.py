"""What the champion answered to each evaluation row after each session: a file of JSON Lines."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Sequence
from pathlib import Path

from perdure.model.base import Scores

PREDICTIONS_FILE = "predictions.jsonl"
DIGITS = 6
"""Of a confidence; float32 has no more to say."""


class PredictionLog:
    """Lines `{"session": …, "row": …, "answer": …, "confidence": …}`.

    `row` counts the rows of the evaluation file from 0. Before there is a champion, `answer` is null and `confidence`
    is 0.

    Args:
        folder: where the file lies.
        sessions: those that are finished; what a killed process wrote of others is let go of.
    """

    def __init__(self, folder: Path, sessions: Collection[int]) -> None:
        self._path = folder / PREDICTIONS_FILE
        if self._path.exists():
            self._keep(frozenset(sessions))

    def append(self, session: int, rows: Sequence[int], scores: Scores | None) -> None:
        """Adds the answers to n evaluation rows after `session`.

        Args:
            session: that has just been learned.
            rows: n places in the evaluation file.
            scores: the champion's, n × C; None where there is no champion.
        """
        answers = scores.predictions() if scores is not None else (None,) * len(rows)
        lines = [
            {
                "session": session,
                "row": row,
                "answer": answer.label if answer else None,
                "confidence": round(answer.confidence, DIGITS) if answer else 0.0,
            }
            for row, answer in zip(rows, answers, strict=True)
        ]
        with self._path.open("ab") as file:
            file.writelines(
                json.dumps(line, ensure_ascii=False, separators=(",", ":")).encode() + b"\n" for line in lines
            )
            file.flush()
            os.fsync(file.fileno())

    def _keep(self, sessions: frozenset[int]) -> None:
        kept = []
        for line in self._path.read_bytes().splitlines(keepends=True):
            # Only the last line can be half-written, and its session is not finished.
            if line.endswith(b"}\n") and json.loads(line)["session"] in sessions:
                kept.append(line)
        part = self._path.with_suffix(".part")
        part.write_bytes(b"".join(kept))
        part.replace(self._path)
