"""The exported model, run as Perdure runs it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from threadpoolctl import threadpool_limits

from perdure.engine.served import load_served

BATCH = 32


class Exported:
    """Texts in, labels and their probabilities out.

    Args:
        folder: of an exported version.
        threads: of one pass of the encoder.
    """

    def __init__(self, folder: Path, threads: int) -> None:
        # As `perdure serve` does: the head's products are small.
        threadpool_limits(1, user_api="blas")
        self._version = load_served(folder, folder.name, batch=BATCH, threads=threads)

    def __call__(self, texts: Sequence[str]) -> list[tuple[str, float]]:
        """The most probable label of each text, and its probability."""
        return [(one.label, one.confidence) for one in self._version.scores(texts).predictions()]
