"""Records what was served, without ever keeping a request from its answer."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from contextvars import Context, copy_context
from dataclasses import dataclass, field

from perdure.errors import StoreBusy, StoreFull, StreamError
from perdure.records import Interaction, Record
from perdure.stream.base import Stream
from perdure_services.serving.metrics import Metrics

MAX_QUEUE_CHARS = 64_000_000
"""Characters of text that wait for the stream at most, however many records they belong to."""

MAX_COMMIT = 500
"""Most records in one append; a request's records always go together."""

FIRST_RETRY_SECONDS = 0.1
MAX_RETRY_SECONDS = 5.0

GRACE_SECONDS = 0.5
"""What the thread gets to notice that its time is over."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Group:
    records: tuple[Record, ...]
    chars: int
    since: float
    done: Future[bool] = field(default_factory=Future)
    context: Context = field(default_factory=copy_context)


class Recorder:
    """A bounded queue, and one thread that appends what waits in it to the stream, all at once.

    Groups are appended in the order in which they came. While the stream fails they are kept and tried again; when
    the queue is full, new ones are dropped and counted. A stream that is full (the spool before a remote one) is not
    waited for: its groups are dropped and counted at once, and the next ones tried as they come.
    """

    def __init__(self, stream: Stream, *, max_records: int, metrics: Metrics) -> None:
        self._stream = stream
        self._max_records = max_records
        self._metrics = metrics
        self._waiting: deque[_Group] = deque()
        self._writing: list[_Group] = []
        self._records = 0
        self._chars = 0
        self._changed = threading.Condition()
        self._outage = False
        self._full = False
        self._deadline: float | None = None
        self._thread = threading.Thread(target=self._run, name="perdure-recorder", daemon=True)
        metrics.watch(metrics.unsent, lambda: self._records)
        metrics.watch(metrics.unsent_seconds, self.oldest_seconds)

    def start(self) -> None:
        """Begins to write."""
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the thread that writes is running."""
        return self._thread.is_alive()

    @property
    def failing(self) -> bool:
        """Whether the stream could not be written when last tried."""
        return self._outage

    @property
    def unsent(self) -> int:
        """Records that wait for the stream."""
        return self._records

    def oldest_seconds(self) -> float:
        """Age of the oldest record that waits; 0 when none does."""
        with self._changed:
            first = self._writing[0] if self._writing else self._waiting[0] if self._waiting else None
        return time.monotonic() - first.since if first else 0.0

    def submit(self, records: Sequence[Record]) -> Future[bool] | None:
        """Queues `records`, to be appended together; None when there is no room, or the recorder is closed.

        The future's result is True once they would survive a crash of this process, and False when they were given
        up. Cancelling it withdraws them, if they are not being written yet.
        """
        chars = sum(len(record.text) for record in records if isinstance(record, Interaction))
        with self._changed:
            crowded = self._records + len(records) > self._max_records or self._chars + chars > MAX_QUEUE_CHARS
            if self._deadline is not None or crowded:
                self._metrics.records.labels("dropped").inc(len(records))
                return None
            group = _Group(tuple(records), chars, time.monotonic())
            self._waiting.append(group)
            self._records += len(records)
            self._chars += chars
            self._changed.notify_all()
        return group.done

    def close(self, timeout: float) -> int:
        """Writes what waits, for up to `timeout` seconds; returns the number of records given up."""
        with self._changed:
            self._deadline = time.monotonic() + timeout
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join(timeout + GRACE_SECONDS)
        with self._changed:
            left = [group for group in (*self._writing, *self._waiting) if not group.done.done()]
            self._waiting.clear()
            self._writing.clear()
        lost = sum(len(group.records) for group in left)
        if lost:
            _log.error("%d records could not be written before the end and are lost; none was acknowledged", lost)
            self._metrics.records.labels("dropped").inc(lost)
        return lost

    def _run(self) -> None:
        while groups := self._next():
            kept = [group for group in groups if group.done.set_running_or_notify_cancel()]
            self._metrics.records.labels("withdrawn").inc(_size(groups) - _size(kept))
            if kept and not self._write(kept):
                return
            self._leave(groups)

    def _next(self) -> list[_Group]:
        with self._changed:
            while not self._waiting and self._deadline is None:
                self._changed.wait()
            size = 0
            while self._waiting and (not self._writing or size + len(self._waiting[0].records) <= MAX_COMMIT):
                group = self._waiting.popleft()
                size += len(group.records)
                self._writing.append(group)
            return list(self._writing)

    def _leave(self, groups: list[_Group]) -> None:
        with self._changed:
            self._writing.clear()
            self._records -= _size(groups)
            self._chars -= sum(group.chars for group in groups)

    def _write(self, groups: list[_Group]) -> bool:
        """Appends `groups`; False when the time to close came first."""
        delay = FIRST_RETRY_SECONDS
        while True:
            try:
                self._stream.append([record for group in groups for record in group.records])
            except (StreamError, StoreBusy, OSError) as error:
                self._metrics.record_retries.inc()
                if not self._outage:
                    _log.error("the stream cannot be written, records wait: %s", error)
                self._outage = True
                if not self._pause(delay):
                    return False
                delay = min(delay * 2, MAX_RETRY_SECONDS)
            except StoreFull as error:
                if len(groups) > 1:
                    # There may be room for some of them.
                    return all(self._write([group]) for group in groups)
                if not self._full:
                    _log.error("there is no room to record, records are dropped: %s", error)
                self._full = True
                self._drop(groups[0])
                return True
            except Exception:  # noqa: BLE001
                if len(groups) > 1:
                    # A record that cannot be encoded must not hold up the others for ever.
                    return all(self._write([group]) for group in groups)
                said = "%d records cannot be written and are dropped"
                groups[0].context.run(_log.exception, said, len(groups[0].records))
                self._drop(groups[0])
                return True
            else:
                break
        if self._full:
            _log.info("there is room to record again")
            self._full = False
        if self._outage:
            _log.info("the stream can be written again")
            self._outage = False
        self._metrics.records.labels("recorded").inc(_size(groups))
        for group in groups:
            group.done.set_result(True)
        return True

    def _drop(self, group: _Group) -> None:
        self._metrics.records.labels("dropped").inc(len(group.records))
        group.done.set_result(False)

    def _pause(self, delay: float) -> bool:
        """Waits before the next try; False when the time to close has come."""
        until = time.monotonic() + delay
        with self._changed:
            while True:
                present = time.monotonic()
                if self._deadline is not None and present >= self._deadline:
                    return False
                end = until if self._deadline is None else min(until, self._deadline)
                if present >= until:
                    return True
                self._changed.wait(max(end - present, 0.001))


def _size(groups: Sequence[_Group]) -> int:
    return sum(len(group.records) for group in groups)
