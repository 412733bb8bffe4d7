"""From the spool to a remote stream."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from perdure.errors import StreamError
from perdure.stream.base import Stream
from perdure.stream.payload import Payload
from perdure_services.serving.metrics import Metrics
from perdure_services.serving.spool.batch import Batch
from perdure_services.serving.spool.position import Cursor
from perdure_services.serving.spool.spool import Spool

UNDER_WAY = 2
"""Batches that are sent at once: while one waits for its acknowledgement, the other one fills the pipe."""

BATCH_RECORDS = 500
BATCH_BYTES = 2**20

LINGER_SECONDS = 0.5
"""How long a batch waits for company: each request to a broker costs both sides more than the records in it."""

FIRST_RETRY_SECONDS = 0.1
MAX_RETRY_SECONDS = 5.0

GRACE_SECONDS = 0.5
"""What the threads get to notice that their time is over."""

_log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Passage:
    """A batch on its way; it is released when it and all before it have arrived."""

    batch: Batch
    arrived: bool = False


class Forwarder:
    """Threads that send what is in `spool` to `stream`, and release it when the stream has it.

    Batches may arrive in another order than that of the spool, and after an outage some arrive twice; neither
    matters to a memory. Records that the stream refuses for good are kept in a file of the spool and counted as
    dropped.
    """

    def __init__(self, spool: Spool, stream: Stream, metrics: Metrics) -> None:
        self._spool = spool
        self._stream = stream
        self._metrics = metrics
        self._taking = threading.Lock()
        self._changed = threading.Condition()
        self._next = spool.start
        self._crowded = False
        self._passages: deque[_Passage] = deque()
        self._failing: set[int] = set()
        self._stopping = threading.Event()
        self._deadline = float("inf")
        self._ended = False
        self._threads = [
            threading.Thread(target=self._run, name=f"perdure-forwarder-{number}", daemon=True)
            for number in range(UNDER_WAY)
        ]
        metrics.watch(metrics.spooled, lambda: spool.records)
        metrics.watch(metrics.spooled_bytes, lambda: spool.bytes)
        metrics.watch(metrics.spooled_seconds, self._oldest_seconds)
        metrics.watch(metrics.spool_damaged, lambda: spool.damaged)

    def start(self) -> None:
        """Begins to send."""
        for thread in self._threads:
            thread.start()

    @property
    def alive(self) -> bool:
        """Whether all threads run, those of the spool included."""
        return self._spool.alive and all(thread.is_alive() for thread in self._threads)

    @property
    def failing(self) -> bool:
        """Whether the stream could not be written when last tried."""
        return bool(self._failing)

    def close(self, timeout: float) -> int:
        """Sends what is left, for up to `timeout` seconds; returns the number of records that stay in the spool."""
        with self._changed:
            self._deadline = time.monotonic() + timeout
            self._stopping.set()
            self._changed.notify_all()
        self._spool.wake()
        end = self._deadline + GRACE_SECONDS
        for thread in self._threads:
            if thread.is_alive():
                thread.join(max(end - time.monotonic(), 0.0))
        with self._changed:
            # A thread that hangs in the stream may come back any time, and must not touch the spool then.
            self._ended = True
        left = self._spool.records
        if left:
            _log.warning(
                "%d records stay in the spool %s: they are sent after the next start", left, self._spool.folder
            )
        return left

    def _run(self) -> None:
        while (passage := self._take()) is not None:
            end = self._deliver(passage.batch)
            if end is None:
                return
            self._arrive(passage, end)

    def _take(self) -> _Passage | None:
        """The next batch; None when it is time to end."""
        delay = FIRST_RETRY_SECONDS
        # Whoever holds the lock waits for records, the others wait for the lock: one is woken by an append, not all.
        with self._taking:
            while True:
                if not self._spool.wait(self._next, self._stopping):
                    return None
                if not self._crowded:
                    self._stopping.wait(LINGER_SECONDS)
                try:
                    batch = self._spool.read(self._next, max_records=BATCH_RECORDS, max_bytes=BATCH_BYTES)
                except OSError as error:
                    self._fail(f"the spool cannot be read: {error}")
                    if not self._pause(delay):
                        return None
                    delay = min(delay * 2, MAX_RETRY_SECONDS)
                    continue
                if batch.end > self._next:
                    break
            self._next = batch.end
            # Behind a full batch there is more, or its end: nothing to wait for.
            self._crowded = len(batch.payloads) >= BATCH_RECORDS
            passage = _Passage(batch)
            with self._changed:
                if time.monotonic() >= self._deadline:
                    return None
                self._passages.append(passage)
            return passage

    def _deliver(self, batch: Batch) -> Cursor | None:
        """Sends `batch` until the stream has it; where it ends, or None when the time to end came first."""
        waiting: list[Sequence[Payload]] = [batch.payloads]
        delay = FIRST_RETRY_SECONDS
        while waiting:
            run = waiting.pop()
            if not run:
                continue
            try:
                self._stream.append_payloads(run)
            except (StreamError, OSError) as error:
                self._fail(f"the stream cannot be written, records wait in the spool: {error}")
                if not self._pause(delay):
                    return None
                delay = min(delay * 2, MAX_RETRY_SECONDS)
                waiting.append(run)
                fresh = self._again(batch)
                if fresh is not batch:
                    # What was forgotten during the outage must not be sent after it.
                    batch, waiting = fresh, [fresh.payloads]
                self._metrics.stream_resent.inc(len(waiting[-1]))
            except Exception as error:  # noqa: BLE001
                middle = len(run) // 2
                if middle:
                    waiting += [run[middle:], run[:middle]]
                else:
                    self._refuse(run[0], batch.start.segment, error)
            else:
                self._heal()
                self._metrics.stream_acknowledged.inc(len(run))
                delay = FIRST_RETRY_SECONDS
        return batch.end

    def _oldest_seconds(self) -> float:
        try:
            return self._spool.oldest_seconds()
        except OSError as error:
            # The other series are worth most on such a day.
            _log.warning("the age of the oldest record in the spool cannot be read: %s", error)
            return float("nan")

    def _again(self, batch: Batch) -> Batch:
        try:
            return self._spool.again(batch)
        except OSError as error:
            _log.warning("the spool cannot be read again, what was read before is sent: %s", error)
            return batch

    def _refuse(self, payload: Payload, segment: int, error: Exception) -> None:
        kept = self._spool.refuse(payload, segment)
        _log.error(
            "the stream refuses a record of %s for good, it is dropped%s: %s: %s",
            payload.interaction,
            " and kept beside the spool" if kept else "",
            type(error).__name__,
            error,
        )
        self._metrics.records.labels("dropped").inc()

    def _arrive(self, passage: _Passage, end: Cursor) -> None:
        with self._changed:
            passage.arrived = True
            passage.batch = Batch((), passage.batch.start, end, passage.batch.erasures)
            through = None
            while self._passages and self._passages[0].arrived:
                through = self._passages.popleft().batch.end
            if through is not None and not self._ended:
                self._spool.release(through)

    def _fail(self, reason: str) -> None:
        with self._changed:
            if not self._failing:
                _log.error("%s", reason)
            self._failing.add(threading.get_ident())

    def _heal(self) -> None:
        with self._changed:
            if not self._failing:
                return
            self._failing.discard(threading.get_ident())
            if not self._failing:
                _log.info("the stream can be written again, %d records of the spool follow", self._spool.records)

    def _pause(self, delay: float) -> bool:
        """Waits before the next try; False when the time to end has come."""
        until = time.monotonic() + delay
        with self._changed:
            while (present := time.monotonic()) < until:
                if present >= self._deadline:
                    return False
                self._changed.wait(max(min(until, self._deadline) - present, 0.001))
            return present < self._deadline
