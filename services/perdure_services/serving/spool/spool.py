"""Records on this machine's disk until a remote stream has them: an append-only log in files of a few megabytes."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from perdure.errors import SpoolFull, StoreFull, StreamError
from perdure.records import now
from perdure.stream.payload import Payload
from perdure_services.serving.spool.batch import Batch, read_excerpt
from perdure_services.serving.spool.erasure import erase
from perdure_services.serving.spool.frame import encode_frame
from perdure_services.serving.spool.lock import SpoolLock
from perdure_services.serving.spool.position import Cursor, Position
from perdure_services.serving.spool.recovery import recover
from perdure_services.serving.spool.refused import Refused
from perdure_services.serving.spool.segment import (
    Segment,
    say_damaged,
)
from perdure_services.serving.spool.tail import Fsync, Syncer, Tail, fsync_folder

SEGMENT_BYTES = 4 * 2**20
"""A segment takes no more frames from this size on."""

LOOK_BYTES = 4096
"""Read to look at one frame; a longer one is read again."""

Data = bytes
"""Another name for it, because a spool has a property `bytes`."""

_log = logging.getLogger(__name__)


class Spool:
    """An append-only log of frames, owned by one process; may be used from several threads.

    One write, and with `fsync="always"` one forced write, makes a whole group of records durable. What has been
    released is unlinked file by file. The bound is on what is not released yet; on the disk lies up to one segment
    more, and beside it what was damaged or refused.

    Args:
        folder: made where it is missing; no other spool may use it.
        max_bytes: most bytes that wait.
        fsync: when written bytes are forced to the disk.
        fsync_seconds: how often, with `interval`.
        segment_bytes: size from which a new file is begun.

    Raises:
        StoreBusy: another process has this folder.
        StoreFull: the folder cannot be made or written.
    """

    def __init__(
        self,
        folder: Path | str,
        *,
        max_bytes: int,
        fsync: Fsync,
        fsync_seconds: float,
        segment_bytes: int = SEGMENT_BYTES,
    ) -> None:
        self.folder = Path(folder)
        self.damaged = 0
        """Segments found damaged since this was opened."""
        self._max_bytes = max_bytes
        self._fsync = fsync
        self._segment_bytes = min(segment_bytes, max_bytes)
        # Whoever holds both locks took `_writing` first. `_changed` is never held during a write.
        self._writing = threading.Lock()
        self._changed = threading.Condition()
        self._segments: deque[Segment] = deque()
        self._tail: Tail | None = None
        self._next = 1
        self._released = Cursor()
        self._kept = 0
        self._erasures = 0
        self._closed = False
        self._refused = Refused(self.folder)
        self._syncer = Syncer(fsync_seconds, self._writing) if fsync == "interval" else None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = SpoolLock(self.folder)
            try:
                self._position = Position(self.folder / "position")
                self._recover()
            except BaseException:
                self._lock.close()
                raise
        except OSError as error:
            raise StoreFull(
                f"the spool {self.folder} cannot be opened: {error}. Make room or give the process access, or choose "
                "another spool.path"
            ) from error
        if self._syncer is not None:
            self._syncer.start()

    @property
    def start(self) -> Cursor:
        """Where the first record stands that is not released."""
        with self._changed:
            return self._released

    @property
    def records(self) -> int:
        """Records that are not released."""
        with self._changed:
            released = self._released
            return sum(
                segment.records(released.position, released.index)
                if segment.number == released.segment
                else segment.records()
                for segment in self._segments
            )

    @property
    def bytes(self) -> int:
        """Bytes that are not released."""
        with self._changed:
            return self._unreleased()

    @property
    def alive(self) -> bool:
        """Whether the thread that forces writes runs, where there is one."""
        return self._syncer is None or self._syncer.alive

    def oldest_seconds(self) -> float:
        """Time since the oldest record that is not released was made; 0 when there is none.

        Raises:
            OSError: the disk cannot be read.
        """
        batch = self.read(self.start, max_records=1, max_bytes=LOOK_BYTES)
        while not batch.payloads and batch.end > batch.start:
            batch = self.read(batch.end, max_records=1, max_bytes=LOOK_BYTES)
        return max(now() - batch.payloads[0].time, 0.0) if batch.payloads else 0.0

    def append(self, added: Sequence[Payload]) -> None:
        """Adds all of `added`, durable as the policy says when this returns; or none of them.

        Raises:
            SpoolFull: the bound is reached.
            StoreFull: the disk is full, or cannot be written.
            StreamError: the spool is closed.
        """
        if not added:
            return
        data = b"".join([encode_frame(payload) for payload in added])
        with self._writing:
            self._check_open()
            waiting = self.bytes
            if waiting + len(data) > self._max_bytes:
                raise SpoolFull(
                    f"the spool {self.folder} holds {waiting} bytes that wait for the stream, and {len(data)} more "
                    f"would be over the {self._max_bytes} of spool.max_bytes: bring the stream back, or raise the bound"
                )
            try:
                self._write(data, len(added))
            except StoreFull:
                # A file whose records are all sent may be what fills the disk.
                if not self._drop_sent():
                    raise
                self._write(data, len(added))

    def read(self, start: Cursor, *, max_records: int = 500, max_bytes: int = 2**20) -> Batch:
        """Up to `max_records` from `start` on, at most `max_bytes` of them unless the first one alone is longer.

        A batch ends with its segment. It is empty at the end.

        Raises:
            OSError: the disk cannot be read.
        """
        while True:
            with self._changed:
                segment = self._segment_at(start)
                if segment is None:
                    return Batch((), start, start, self._erasures)
                if segment.number != start.segment:
                    start = Cursor(segment.number)
                limit, erasures = segment.end, self._erasures
            try:
                found = read_excerpt(segment.path, start.position, limit, max_records=max_records, max_bytes=max_bytes)
            except FileNotFoundError:
                with self._changed:
                    sent = segment not in self._segments
                if not sent:
                    self._set_damaged(segment, start, "its file was removed")
                continue
            if found.length:
                end = Cursor(segment.number, start.position + found.length, start.index + found.frames)
                return Batch(found.payloads, start, end, erasures)
            self._set_damaged(segment, start, found.trouble)

    def again(self, batch: Batch) -> Batch:
        """`batch` as it is now: without what was forgotten since it was read.

        Raises:
            OSError: the disk cannot be read.
        """
        with self._changed:
            if batch.erasures == self._erasures:
                return batch
        length = batch.end.position - batch.start.position
        fresh = self.read(batch.start, max_records=batch.end.index - batch.start.index, max_bytes=length)
        # Damaged since, and so read from the next segment: that is another batch's.
        return fresh if fresh.start == batch.start else Batch((), batch.start, batch.end, fresh.erasures)

    def release(self, through: Cursor) -> None:
        """Drops everything before `through`: the stream has it. After `close` this does nothing."""
        with self._changed:
            if self._closed or through <= self._released:
                return
            self._released = through
            self._unlink_released()
            try:
                self._position.save(through)
            except OSError as error:
                _log.warning("how far %s was sent cannot be noted, a restart sends it again: %s", self.folder, error)

    def refuse(self, payload: Payload, segment: int) -> bool:
        """Keeps a record of `segment` that the stream does not take, in a file beside it; False when that fails."""
        return self._refused.keep(payload, segment)

    def forget(self, subject: str, until: float) -> int:
        """Removes what waits of `subject` with an event time up to `until`, and feedback on it; the records removed.

        What is sent at this moment is out of reach; files set aside as damaged are too, and the log names them.

        Raises:
            StoreFull: there is no room to rewrite a file; forgetting again goes on from there.
            StreamError: the spool is closed.
        """
        with self._refused.lock:
            try:
                with self._writing:
                    self._check_open()
                    self._seal()
                with self._changed:
                    segments = tuple(self._segments)
                return erase(self.folder, segments, subject, until, replace=self._replace)
            except OSError as error:
                raise StoreFull(
                    f"the spool {self.folder} cannot be rewritten to forget a subject: {error}. Make room on its disk "
                    "and forget again"
                ) from error

    def wait(self, start: Cursor, stop: threading.Event) -> bool:
        """Waits until there is something to read from `start` on, or until `wake` after `stop`; whether there is."""
        with self._changed:
            self._changed.wait_for(lambda: stop.is_set() or self._segment_at(start) is not None)
            return self._segment_at(start) is not None

    def wake(self) -> None:
        """Lets those who wait look at their `stop`."""
        with self._changed:
            self._changed.notify_all()

    def close(self) -> None:
        """Frees the folder; what is in it waits for the next process."""
        with self._writing:
            if self._closed:
                return
            try:
                self._seal()
            finally:
                with self._changed:
                    self._closed = True
                    self._position.close()
                self._lock.close()
        if self._syncer is not None:
            self._syncer.stop()

    def _recover(self) -> None:
        found = recover(self.folder, self._position.load())
        self._segments.extend(found.segments)
        self._kept = sum(segment.end for segment in found.segments)
        self.damaged = sum(segment.damaged for segment in found.segments)
        self._next, self._released = found.next, found.released
        self._unlink_released()

    def _unlink_released(self) -> None:
        while self._segments:
            first = self._segments[0]
            end = Cursor(first.number, first.end)
            if self._released < end or (self._tail is not None and first is self._tail.segment):
                return
            self._segments.popleft()
            self._kept -= first.end
            first.remove()

    def _segment_at(self, start: Cursor) -> Segment | None:
        for segment in self._segments:
            if Cursor(segment.number, segment.end) > start and segment.end:
                return segment
        return None

    def _unreleased(self) -> int:
        inside = self._segments and self._segments[0].number == self._released.segment
        return self._kept - (self._released.position if inside else 0)

    def _set_damaged(self, segment: Segment, at: Cursor, reason: str) -> None:
        with self._writing:
            if self._tail is not None and self._tail.segment is segment:
                self._seal()
            with self._changed:
                if segment.damaged and segment.end <= at.position:
                    return
                self._kept -= segment.end - at.position
                segment.end, segment.frames, segment.damaged = at.position, at.index, True
                segment.holes = [hole for hole in segment.holes if hole < at.position]
                self.damaged += 1
                say_damaged(segment, reason)
                self._unlink_released()

    def _write(self, data: Data, count: int) -> None:
        try:
            tail = self._tail
            if tail is None or tail.broken or tail.segment.end >= self._segment_bytes:
                tail = self._begin()
            tail.write(data)
        except OSError as error:
            raise StoreFull(
                f"the spool {self.folder} cannot be written: {error}. Nothing of the group was kept; make room on its "
                "disk, or bring the stream back"
            ) from error
        with self._changed:
            tail.segment.end += len(data)
            tail.segment.frames += count
            self._kept += len(data)
            self._changed.notify_all()

    def _begin(self) -> Tail:
        self._seal()
        tail = Tail(Segment(self.folder, self._next), self._fsync)
        self._next += 1
        with self._changed:
            self._segments.append(tail.segment)
        self._set_tail(tail)
        return tail

    def _seal(self) -> None:
        """The next append begins a new segment."""
        if self._tail is not None:
            self._tail.force()
            self._tail.close()
            self._set_tail(None)

    def _drop_sent(self) -> bool:
        """Makes room by removing the segment that is being written, where all of it was sent."""
        tail = self._tail
        if tail is None or not tail.segment.end or self.start < Cursor(tail.segment.number, tail.segment.end):
            return False
        self._seal()
        return True

    def _set_tail(self, tail: Tail | None) -> None:
        with self._changed:
            self._tail = tail
            self._unlink_released()
        if self._syncer is not None:
            self._syncer.tail = tail

    def _replace(self, segment: Segment, temporary: Path, gone: Sequence[int]) -> int:
        """Puts a rewritten file in place; the number of records in it that were not released."""
        with self._changed:
            if segment not in self._segments:
                temporary.unlink()
                return 0
            temporary.replace(segment.path)
            segment.holes = sorted([*segment.holes, *gone])
            self._erasures += 1
            unsent = sum(Cursor(segment.number, start) >= self._released for start in gone)
        fsync_folder(self.folder)
        return unsent

    def _check_open(self) -> None:
        if self._closed:
            raise StreamError(f"the spool {self.folder} is closed: open another one")
