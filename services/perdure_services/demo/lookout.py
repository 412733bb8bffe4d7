"""What registry, stream and memory say while API and trainer work; nothing is changed by looking."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from perdure.config import Settings
from perdure.errors import StoreBusy, StreamError
from perdure.memory import Quarantined, open_memory
from perdure.registry import Promotion, Registry
from perdure.stream import open_stream
from perdure.turn import TurnResult

HISTORY = 200
"""Turns looked back at."""

DELTAS = 1000
"""Changes of labels that are counted at most."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Sight:
    """What is seen at one moment."""

    promotions: tuple[Promotion, ...]
    """All of them, newest last."""
    turns: tuple[TurnResult, ...]
    """The last turns, oldest first."""
    waiting: int
    """Labels that no turn has had."""
    learning: bool
    """A turn is under way, as far as memory knows."""
    settled: bool
    """Everything recorded has been read, and what waits is not enough for a turn before its time."""


class Lookout:
    """Looks at what the processes share.

    Args:
        settings: of the demo.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.registry = Registry(settings.registry.url)

    def look(self) -> Sight | None:
        """What is there now; None when it cannot be read at this moment.

        Raises:
            PerdureError: something is damaged.
        """
        try:
            with open_stream(self._settings.stream) as stream:
                end = dict(stream.end())
            with open_memory(self._settings, read_only=True) as memory:
                waiting = max(memory.counts().fresh, len(memory.deltas(DELTAS)))
                learning = memory.turn().stage == "frozen"
                read = dict(memory.offset()) == end
                turns = tuple(TurnResult.decode(text) for text in memory.history(HISTORY))
        except (StoreBusy, StreamError) as error:
            _log.debug("cannot look now: %s", error)
            return None
        enough = max(self._settings.trainer.min_new_labels, 1)
        return Sight(
            promotions=self.registry.promotions(),
            turns=turns,
            waiting=waiting,
            learning=learning,
            settled=read and waiting < enough and not learning,
        )

    def quarantined(self) -> tuple[Quarantined, ...]:
        """What is kept out of learning.

        Raises:
            PerdureError: the memory cannot be read.
        """
        with open_memory(self._settings, read_only=True) as memory:
            return memory.quarantined()
