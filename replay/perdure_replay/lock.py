"""The lock that makes one process the only writer of a memory."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from perdure.errors import StoreBusy


class WriterLock:
    """Held from construction to `close`; the system frees it at once when its process dies.

    Raises:
        StoreBusy: another process holds it; the message names it.
    """

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.read(self._file, 32).decode("ascii", "replace").strip() or "unknown"
            os.close(self._file)
            raise StoreBusy(
                f"the memory {path.parent} is being written by process {holder}: stop it, or wait until it ends"
            ) from error
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, f"{os.getpid()}\n".encode(), 0)

    def close(self) -> None:
        """Frees the lock. The file stays: removing it would let two processes lock two files of one name."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
