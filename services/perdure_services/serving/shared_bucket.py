"""The buckets of API keys where several processes answer: in a file that all of them read and write."""

from __future__ import annotations

import fcntl
import os
import struct
from pathlib import Path

from perdure_services.serving.token_bucket import taken

_ENTRY = struct.Struct("<12sdd")
"""Id of the key, tokens, and when it had them, in seconds of the system's monotonic clock."""


class SharedBuckets:
    """Buckets by the ids of keys, in the file `path`, which is made where it is missing.

    Whoever takes a token locks the file for some microseconds; the system frees the lock of a process that dies. For
    one thread in each process.

    Raises:
        OSError: the file cannot be made.
    """

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._places: dict[bytes, int] = {}

    def take(self, id: bytes, *, rate: float, burst: float, now: float) -> float:
        """As `Bucket.take`, for the bucket of `id`, which is full when it is first asked for.

        Raises:
            OSError: the file cannot be read or written.
        """
        fcntl.flock(self._file, fcntl.LOCK_EX)
        try:
            place = self._places.get(id)
            if place is None:
                place = self._place(id)
            found = os.pread(self._file, _ENTRY.size, place)
            tokens, since = _ENTRY.unpack(found)[1:] if found else (burst, now)
            tokens, seconds = taken(tokens, max(now - since, 0.0), rate=rate, burst=burst)
            os.pwrite(self._file, _ENTRY.pack(id, tokens, max(now, since)), place)
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)
        return seconds

    def close(self) -> None:
        """Closes the file."""
        os.close(self._file)

    def _place(self, id: bytes) -> int:
        """Where the entry of `id` is, or is to be: the others may have made some since this was last asked."""
        size = os.fstat(self._file).st_size
        entries = os.pread(self._file, size, 0)
        self._places = {entry[0]: at * _ENTRY.size for at, entry in enumerate(_ENTRY.iter_unpack(entries))}
        return self._places.setdefault(id, size)


class SharedBucket:
    """One of them."""

    __slots__ = ("_buckets", "_id", "burst", "rate")

    def __init__(self, buckets: SharedBuckets, id: bytes, rate: float, burst: float) -> None:
        self.rate = rate
        self.burst = burst
        self._buckets = buckets
        self._id = id

    def take(self, now: float) -> float:
        """As `Bucket`."""
        return self._buckets.take(self._id, rate=self.rate, burst=self.burst, now=now)
