"""Whether a file is the one that was looked at before."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class FileIdentity:
    """Stays the same as long as nobody writes to a file, under whichever of its names it is asked for."""

    device: int
    inode: int
    size: int
    modified: int
    """Nanoseconds since the epoch."""

    @classmethod
    def of(cls, file: Path) -> FileIdentity:
        """That of `file`.

        Raises:
            OSError: it is not there, or cannot be looked at.
        """
        found = file.stat()
        return cls(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
