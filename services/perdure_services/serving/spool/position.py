"""How far a spool has been sent, kept so that a restart resends little."""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass, field
from pathlib import Path

from crc32c import crc32c

_FORM = struct.Struct("<QQI")


@dataclass(frozen=True, order=True, slots=True)
class Cursor:
    """The beginning of a frame, or the end of the last one."""

    segment: int = 0
    position: int = 0
    """Bytes of the segment before it."""
    index: int = field(default=0, compare=False)
    """Frames of the segment before it."""


class Position:
    """A file of twenty bytes, written in place: that needs no room on a full disk, and no forced write.

    An older position than the true one is harmless: what was sent already is sent again.
    """

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def load(self) -> Cursor:
        """What was saved last; the beginning where that cannot be read. Its index is not known."""
        saved = os.pread(self._file, _FORM.size, 0)
        if len(saved) < _FORM.size:
            return Cursor()
        segment, position, total = _FORM.unpack(saved)
        return Cursor(segment, position) if crc32c(saved[:-4]) == total else Cursor()

    def save(self, cursor: Cursor) -> None:
        """Keeps `cursor`.

        Raises:
            OSError: it cannot be written.
        """
        saved = _FORM.pack(cursor.segment, cursor.position, 0)[:-4]
        os.pwrite(self._file, saved + crc32c(saved).to_bytes(4, "little"), 0)

    def close(self) -> None:
        """Closes the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
