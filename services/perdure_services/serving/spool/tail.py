"""The file at the end of the spool, which is being written."""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path
from typing import Literal

from perdure_services.serving.spool.segment import Segment

Fsync = Literal["always", "interval", "never"]

_log = logging.getLogger(__name__)


class Tail:
    """A new file for `segment`, written by one thread at a time.

    Raises:
        OSError: it cannot be made; nothing is left behind.
    """

    def __init__(self, segment: Segment, fsync: Fsync) -> None:
        self.segment = segment
        self.broken = False
        """A write failed half-way and could not be cut off: no more may follow."""
        self._fsync = fsync
        self._dirty = False
        self._file = os.open(segment.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        if fsync == "never":
            return
        try:
            fsync_folder(segment.folder)
        except OSError:
            os.close(self._file)
            segment.path.unlink()
            raise

    def write(self, data: bytes) -> None:
        """Writes all of `data` behind the segment's end, forced to the disk where that is the policy; or nothing.

        Raises:
            OSError: the disk is full, or cannot be written.
        """
        at = self.segment.end
        try:
            written = os.pwrite(self._file, data, at)
            while written < len(data):
                written += os.pwrite(self._file, data[written:], at + written)
            if self._fsync == "always":
                os.fsync(self._file)
        except OSError:
            self._cut(at)
            raise
        self._dirty = True

    def copy(self) -> int | None:
        """A descriptor to force to the disk what was written since the last one was asked for; None for nothing."""
        if not self._dirty:
            return None
        self._dirty = False
        return os.dup(self._file)

    def written(self) -> None:
        """What `copy` was asked for could not be forced: ask again."""
        self._dirty = True

    def force(self) -> None:
        """Forces what was written to the disk, where that is the policy.

        Raises:
            OSError: the disk fails.
        """
        if self._fsync == "interval" and self._dirty:
            os.fsync(self._file)
            self._dirty = False

    def close(self) -> None:
        """Closes the file."""
        os.close(self._file)

    def _cut(self, at: int) -> None:
        try:
            os.ftruncate(self._file, at)
        except OSError as error:
            _log.error("%s ends in half a write that cannot be cut off: %s", self.segment.path, error)
            self.broken = True


class Syncer:
    """A thread that forces what was written to the disk every `seconds`, while appends go on."""

    def __init__(self, seconds: float, writing: threading.Lock) -> None:
        self.tail: Tail | None = None
        """What is being written; changed by whoever holds `writing`."""
        self._seconds = seconds
        self._writing = writing
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="perdure-spool", daemon=True)

    def start(self) -> None:
        """Begins."""
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """Ends the thread."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        failing = False
        while not self._stop.wait(self._seconds):
            with self._writing:
                tail = self.tail
                file = tail.copy() if tail is not None else None
            if tail is None or file is None:
                continue
            try:
                os.fsync(file)
                failing = False
            except OSError as error:
                tail.written()
                if not failing:
                    _log.error("what was spooled in %s cannot be forced to the disk: %s", tail.segment.path, error)
                failing = True
            finally:
                os.close(file)


def fsync_folder(folder: Path) -> None:
    """Forces names that were made or changed in `folder` to the disk.

    Raises:
        OSError: the disk fails.
    """
    file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
