"""A stream on this machine that several processes write, one after the other."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from perdure.stream.base import Entry, Offset, Page, Stream
from perdure.stream.payload import Payload


class TakingTurns(Stream):
    """`inner`, which those who hold `file` write by turns.

    SQLite lets one process write at a time, too, but has the others try again after ever longer pauses: whoever comes
    in between goes first, and some wait for seconds. The system's locks are given in the order in which they were asked
    for, and freed when their holder dies. Closing it closes `inner`.

    Raises:
        OSError: the file cannot be made.
    """

    def __init__(self, inner: Stream, file: Path) -> None:
        self._inner = inner
        self._file = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def end(self) -> Offset:
        return self._inner.end()

    def forget(self, subject: str, until: float) -> int:
        with self._turn():
            return self._inner.forget(subject, until)

    def reject(self, entries: Sequence[Entry], reasons: Sequence[str]) -> None:
        self._inner.reject(entries, reasons)

    def close(self) -> None:
        self._inner.close()
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _append(self, added: Sequence[Payload]) -> None:
        with self._turn():
            self._inner.append_payloads(added)

    def _read(self, offset: Offset, limit: int) -> Page:
        return self._inner.read(offset, limit)

    @contextmanager
    def _turn(self) -> Iterator[None]:
        fcntl.flock(self._file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)
