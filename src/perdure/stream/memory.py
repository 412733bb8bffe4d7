"""A stream in a list: the double that ships, for tests of whatever stands around a stream."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Sequence
from operator import itemgetter

from perdure.errors import StreamError
from perdure.stream.base import Offset, Page, Stream
from perdure.stream.partition import FIRST, PARTITION, page, start_of
from perdure.stream.payload import Payload


class MemoryStream(Stream):
    """Keeps entries for as long as the object lives; may be used from several threads.

    `fail_with` makes appends fail as they would on a bad day, until `heal`.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: list[tuple[int, Payload]] = []
        self._next = FIRST
        self._failure: StreamError | None = None
        self._closed = False

    def fail_with(self, failure: StreamError) -> None:
        """Every append raises `failure` from now on, and adds nothing."""
        with self._lock:
            self._failure = failure

    def heal(self) -> None:
        """Appends work again."""
        with self._lock:
            self._failure = None

    def append_payload(self, body: bytes) -> None:
        """Adds bytes as another program might have written them, readable or not."""
        with self._lock:
            self._add([Payload(body, time=0.0, interaction=None, subject=None)])

    def end(self) -> Offset:
        with self._lock:
            self._check_open()
            return {PARTITION: self._next}

    def forget(self, subject: str, until: float) -> int:
        with self._lock:
            self._check_open()
            theirs = {
                position: payload.interaction
                for position, payload in self._entries
                if payload.subject == subject and payload.time <= until
            }
            ids = set(theirs.values())
            kept = [
                (position, payload)
                for position, payload in self._entries
                if position not in theirs and (payload.subject is not None or payload.interaction not in ids)
            ]
            removed = len(self._entries) - len(kept)
            self._entries = kept
            return removed

    def close(self) -> None:
        with self._lock:
            self._closed = True

    def _append(self, added: Sequence[Payload]) -> None:
        with self._lock:
            self._check_open()
            if self._failure is not None:
                raise self._failure
            self._add(added)

    def _add(self, added: Sequence[Payload]) -> None:
        self._entries.extend((self._next + place, payload) for place, payload in enumerate(added))
        self._next += len(added)

    def _read(self, offset: Offset, limit: int) -> Page:
        start = start_of(offset)
        with self._lock:
            self._check_open()
            end = self._next
            first = bisect_left(self._entries, start, key=itemgetter(0))
            found = self._entries[first : first + limit]
        entries = [(position, payload.body) for position, payload in found]
        return page(entries, start=start, limit=limit, end=end, stream="the stream in memory")

    def _check_open(self) -> None:
        if self._closed:
            raise StreamError("the stream in memory is closed: open another one")
