"""What waits for the next turn: reads the stream into memory."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from perdure.config import Settings
from perdure.errors import StreamError
from perdure.inflow import Inflow, inflow_of
from perdure.memory import Memory, open_memory
from perdure.oblivion import reconcile
from perdure.registry import Registry
from perdure.stream import Stream, open_stream
from perdure.stream.base import Offset


@dataclass(frozen=True, slots=True)
class Waiting:
    """What a turn would find."""

    labels: int
    """Labelled rows, or changes of labels, that no turn has had; of the latter no more than were asked for."""
    interrupted: bool
    """A turn was begun and not finished."""

    @property
    def anything(self) -> bool:
        return self.labels > 0 or self.interrupted


@dataclass(frozen=True, slots=True)
class Kept:
    """What memory held when it was last looked at."""

    samples: int = 0
    quarantined: int = 0


class Inbox:
    """Brings the stream into memory, and says what waits there.

    Memory is opened only when the stream has something new, and closed at once: it has one writer, and that may be a
    turn, or a person who forgets a subject.

    Args:
        settings: of everything.
        stop: once set, no further page is begun.
    """

    def __init__(self, settings: Settings, stop: threading.Event) -> None:
        self._settings = settings
        self._stop = stop
        self._stream: Stream | None = None
        self._offset: Offset | None = None
        self._waiting = Waiting(0, False)
        self._read_to: Offset = {}
        self._use = threading.Lock()
        self.kept = Kept()

    def read(self) -> Waiting:
        """Ingests what is new in the stream.

        Raises:
            StoreBusy: another process writes the memory.
            PerdureError: the stream or the memory cannot be read.
        """
        with self._use:
            return self._bring()

    def behind(self) -> int:
        """Records that are there and that memory had not when it was last looked at.

        Raises:
            PerdureError: the stream cannot be read.
        """
        with self._use:
            try:
                end = self._inflow().end()
            except StreamError:
                self._give_back()
                raise
            return sum(max(there - self._read_to.get(name, 0), 0) for name, there in end.items())

    def _bring(self) -> Waiting:
        try:
            inflow = self._inflow()
            if self._offset is not None and dict(inflow.end()) == dict(self._offset):
                return self._waiting
            with open_memory(self._settings) as memory:
                if inflow.bring(memory, lambda: not self._stop.is_set()).erasures:
                    # Not every erasure leads to a turn.
                    reconcile(memory, Registry(self._settings.registry.url))
                self._waiting = self._count(memory)
                self._offset = self._read_to = dict(memory.offset())
        except StreamError:
            # A new connection may fare better than this one.
            self._give_back()
            raise
        return self._waiting

    def _inflow(self) -> Inflow:
        if self._stream is None:
            self._stream = open_stream(self._settings.stream)
        return inflow_of(self._settings, self._stream)

    def changed(self) -> None:
        """Somebody else has written the memory: it is looked at again the next time."""
        self._offset = None

    def close(self) -> None:
        """Gives the stream back; reading opens it again. A look that hangs keeps it, and is not waited for."""
        if self._use.acquire(timeout=1.0):
            try:
                self._give_back()
            finally:
                self._use.release()

    def _give_back(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None
        self._offset = None

    def _count(self, memory: Memory) -> Waiting:
        enough = max(self._settings.trainer.min_new_labels, 1)
        # Where somebody was forgotten there is no fresh row, but the head has yet to hear of it.
        counts = memory.counts()
        self.kept = Kept(counts.samples, counts.quarantined)
        labels = max(counts.fresh, len(memory.deltas(enough)))
        return Waiting(labels, memory.turn().stage == "frozen")
