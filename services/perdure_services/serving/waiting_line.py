"""Requests that wait for the model, and which of them make the next batch."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from concurrent.futures import Future
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from itertools import islice
from typing import Generic, TypeVar

from perdure_services.serving.pace import Pace, TextSize

WINDOW = 256
"""Oldest requests that a batch is chosen from."""

FIXED_SHARE = 8.0
"""A batch may always take this many times its fixed cost: made smaller, it would only waste it."""

WASTE = 0.25
"""Share of a batch that may be padding whatever it costs: without it a batch would hold texts of one length alone."""

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class WaitingRequest(Generic[T]):
    """Texts that are to be answered together, by `deadline` (monotonic seconds) if at all."""

    texts: tuple[str, ...]
    size: TextSize
    chars: int
    deadline: float = math.inf
    future: Future[T] = field(default_factory=Future)
    context: Context = field(default_factory=copy_context)
    """Of who asked, for what is logged."""
    since: float = field(default_factory=time.perf_counter)
    """When it came, in seconds."""


class WaitingLine(Generic[T]):
    """Takes requests in, and gives batches out. Not safe for threads.

    A batch begins with the oldest request, so that none is overtaken for longer than it takes those before it to
    leave. It is filled with those that are nearest to it in length, as long as each costs less in it, padding
    included, than in a batch of its own, or little is padding; and as long as it is not expected to take longer than
    `batch_seconds`.
    """

    def __init__(self, pace: Pace, *, max_batch: int, batch_seconds: float) -> None:
        self._pace = pace
        self._max_batch = max_batch
        self._batch_seconds = batch_seconds
        self._requests: OrderedDict[int, WaitingRequest[T]] = OrderedDict()
        self.texts = 0
        """Texts that wait."""
        self.work = 0
        """What they cost, without padding."""
        self.chars = 0
        """Characters that they hold."""

    def __len__(self) -> int:
        return len(self._requests)

    def put(self, request: WaitingRequest[T]) -> None:
        """`request` waits behind all others."""
        self._requests[id(request)] = request
        self.texts += request.size.texts
        self.work += request.size.own
        self.chars += request.chars

    def remove(self, request: WaitingRequest[T]) -> bool:
        """Frees the place of `request`; whether it had one."""
        if self._requests.pop(id(request), None) is None:
            return False
        self.texts -= request.size.texts
        self.work -= request.size.own
        self.chars -= request.chars
        return True

    def take(self, now: float) -> tuple[list[WaitingRequest[T]], list[WaitingRequest[T]]]:
        """The next batch (empty when nothing waits), and requests met on the way that are too late; all leave."""
        late: list[WaitingRequest[T]] = []
        window: list[WaitingRequest[T]] = []
        for request in islice(self._requests.values(), WINDOW):
            (late if request.deadline <= now else window).append(request)
        for request in late:
            self.remove(request)
        batch = self._fill(window)
        for request in batch:
            self.remove(request)
        return batch, late

    def pieces(self, sizes: list[TextSize]) -> list[list[int]]:
        """Places of one batch's texts, short ones first, in parts that are run one after the other."""
        order = sorted(range(len(sizes)), key=lambda place: sizes[place].seen)
        parts: list[list[int]] = []
        size: TextSize | None = None
        for place in order:
            if size is not None and self._joins(size, sizes[place]):
                parts[-1].append(place)
                size += sizes[place]
            else:
                parts.append([place])
                size = sizes[place]
        return parts

    def _fill(self, window: list[WaitingRequest[T]]) -> list[WaitingRequest[T]]:
        if not window:
            return []
        oldest = window[0]
        batch, size = [oldest], oldest.size
        near = oldest.size.seen
        for request in sorted(window[1:], key=lambda other: abs(other.size.seen - near)):
            if size.texts >= self._max_batch:
                break
            if self._joins(size, request.size):
                batch.append(request)
                size += request.size
        return batch

    def _joins(self, size: TextSize, other: TextSize) -> bool:
        together = size + other
        if together.texts > self._max_batch:
            return False
        pace = self._pace
        if pace.seconds(together.padded) > max(self._batch_seconds, FIXED_SHARE * pace.fixed):
            return False
        padding = together.padded - size.padded - other.padded
        return pace.per_work * padding <= pace.fixed or together.padded - together.own <= WASTE * together.padded
