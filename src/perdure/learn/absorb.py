"""Brings the head's statistics up to date with memory."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from pathlib import Path

from perdure.config import Settings
from perdure.errors import StoreCorrupt
from perdure.learn.analytic import HeadLearner
from perdure.learn.material import Encodings
from perdure.memory import Memory
from perdure.model.encoder import Encoder
from perdure.model.features import KIND
from perdure.model.head import Statistics

logger = logging.getLogger(__name__)

DELTA_PAGE = 100_000
"""Label changes that one pass over the head's statistics takes in."""

KEPT_ROWS = 20_000
"""Texts whose features are kept for the rest of a turn; for MiniLM that is 200 MB."""


class Absorber:
    """Takes every label that was joined into the head's statistics once, whatever becomes of it afterwards.

    Args:
        encoder: the frozen encoder.
        head: adds rows to statistics.
        settings: of everything.
        stage: called with a name when a file of statistics is written and memory does not point to it yet.
    """

    def __init__(
        self,
        encoder: Encoder,
        head: HeadLearner,
        settings: Settings,
        stage: Callable[[str], None] = lambda _name: None,
    ) -> None:
        self._encoder = encoder
        self._head = head
        self._settings = settings
        self._stage = stage
        self._kept: tuple[Path, Statistics] | None = None
        """What the last turn of this process left behind, and the file that says the same."""

    def absorb(self, memory: Memory, encodings: Encodings | None = None) -> Statistics:
        """The statistics of all labels that memory has ever joined; memory points to a file with them.

        Args:
            memory: open for writing.
            encodings: of a turn that goes on with the same texts: what they hold is not encoded anew. A page of more
                than `KEPT_ROWS` is not put there.
        """
        if memory.rebuild_due:
            logger.warning("a person's data was in the head only as sums: the head is rebuilt from memory")
            memory.rebuild_statistics()
        folder, space = Path(memory.folder), self._space()
        statistics = self._load(memory, folder, space)
        while deltas := memory.deltas(DELTA_PAGE):
            texts = list(dict.fromkeys(delta.text for delta in deltas))
            place = {text: row for row, text in enumerate(texts)}
            if encodings is not None and len(texts) <= KEPT_ROWS:
                features = encodings(texts).features
            else:
                features = self._encoder.features(texts, self._settings.model.batch)
            self._head.absorb(statistics, deltas, features[[place[delta.text] for delta in deltas]])
            through = deltas[-1].sequence
            new = f"head-{through:012d}-{space}"
            statistics.save(folder / new)
            self._stage("statistics written")
            memory.set_statistics(new, through=through)
        if name := memory.statistics():
            self._kept = folder / name, statistics
        return statistics

    def _load(self, memory: Memory, folder: Path, space: str) -> Statistics:
        name = memory.statistics()
        # Let go of at once: it is changed from here on, and an error on the way would leave it half changed.
        kept, self._kept = self._kept, None
        if name and kept and kept[0] == folder / name:
            return kept[1]
        names = [name] if name else list(memory.statistics_parts())
        if not all(each.endswith(space) for each in names):
            logger.warning("the encoder, its features or the seed changed: the head is rebuilt from memory")
            memory.rebuild_statistics()
            names = []
        try:
            statistics = Statistics.load(folder / names[0]) if names else Statistics(self._settings.model.features)
            for each in names[1:]:
                statistics.add(Statistics.load(folder / each))
        except StoreCorrupt as error:
            logger.warning("the head is rebuilt from memory: %s", error)
            memory.rebuild_statistics()
            return Statistics(self._settings.model.features)
        return statistics

    def _space(self) -> str:
        """The end of a statistics file's name: sums of other features than these must not be added to."""
        model = self._settings.model
        drawn = (
            self._encoder.fingerprint,
            model.max_tokens,
            KIND,
            model.features,
            model.bandwidth,
            self._settings.seed,
        )
        return f"{hashlib.sha256(repr(drawn).encode()).hexdigest()[:12]}.safetensors"
