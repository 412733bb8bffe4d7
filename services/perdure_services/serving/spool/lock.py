"""The lock that gives a spool to one process."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from perdure.errors import StoreBusy


class SpoolLock:
    """Held from construction to `close`; the system frees it at once when its process dies.

    Raises:
        StoreBusy: another process, or another spool of this one, holds it; the message names the process.
        OSError: the file cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        self._file = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.read(self._file, 32).decode("ascii", "replace").strip() or "unknown"
            os.close(self._file)
            raise StoreBusy(
                f"the spool {folder} belongs to process {holder}: stop it, or give this one a folder of its own with "
                "spool.path"
            ) from error
        # Written over, not cut first: a full disk has no room for new bytes, but these are there already.
        os.pwrite(self._file, f"{os.getpid():<15}\n".encode(), 0)

    def close(self) -> None:
        """Frees the lock. The file stays: removing it would let two processes lock two files of one name."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
