"""Ctrl-C, taken where it does no harm."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Self

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interruption:
    """Notes signals inside the block; `check` raises KeyboardInterrupt when one came.

    A signal can come between any two steps, also while a line of the journal is half-written: so it only leaves a
    note, and whoever waits looks at that note often.
    """

    def __init__(self) -> None:
        self.stop = threading.Event()
        """Set when the demo stops, so that its threads end too."""
        self._came = False
        self._before: dict[signal.Signals, Any] = {}

    def check(self) -> None:
        """Goes on, or does not.

        Raises:
            KeyboardInterrupt: a signal came.
        """
        if self._came:
            raise KeyboardInterrupt

    @contextmanager
    def stopping(self) -> Iterator[None]:
        """Sets `stop` as soon as the block ends, before anything else is put away."""
        try:
            yield
        finally:
            self.stop.set()

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        # Not the event: setting it takes a lock, which this very thread may hold.
        self._came = True
