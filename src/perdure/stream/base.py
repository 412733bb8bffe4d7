"""What every stream does."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import ClassVar, Self

from perdure.errors import RecordError
from perdure.records import Record, decode
from perdure.stream.payload import Payload, payloads

Offset = Mapping[str, int]
"""For each partition, the position of the first entry not yet read. An empty mapping is the beginning."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One recorded payload and where it stands."""

    partition: str
    position: int
    payload: bytes

    def record(self) -> Record:
        """The decoded payload.

        Raises:
            RecordError: it cannot be read.
        """
        return decode(self.payload)

    def reason(self) -> str | None:
        """Why the payload cannot be read; None when it can."""
        try:
            self.record()
        except RecordError as error:
            return str(error)
        return None


@dataclass(frozen=True, slots=True)
class Page:
    """Entries in order, and the offset behind the last of them."""

    entries: tuple[Entry, ...]
    next: Offset
    lost: int = 0
    """Entries that the store removed before they were read; the page begins behind them."""


class Stream(ABC):
    """An ordered, durable log of records whose readers keep their own offsets.

    `append` returns when the records would survive a crash of this process. Entries of one partition are read in the
    order in which they were appended; the same entry may be read again, and a reader must not mind.
    """

    remote: ClassVar[bool] = False
    """An append goes over a network, and may take as long as that does: a service keeps a spool before it."""

    def append(self, records: Sequence[Record]) -> None:
        """Adds `records`.

        Raises:
            RecordError: one cannot be encoded; nothing was added.
            StreamError: the stream cannot be reached or written. A stream on this machine has added nothing then; a
                remote one may have added some. Appending all of them again is always safe.
        """
        self.append_payloads(payloads(records))

    def append_payloads(self, added: Sequence[Payload]) -> None:
        """Adds records that are encoded already; as `append` otherwise."""
        if added:
            self._append(added)

    def read(self, offset: Offset, limit: int) -> Page:
        """Up to `limit` entries from `offset` on; an empty page when there is nothing new.

        Raises:
            StreamError: the stream cannot be reached or read.
        """
        if limit < 1:
            raise ValueError(f"limit must be at least 1, got {limit}")
        return self._read(offset, limit)

    @abstractmethod
    def end(self) -> Offset:
        """The offset behind the last entry: what a reader that is up to date holds."""

    @abstractmethod
    def forget(self, subject: str, until: float) -> int:
        """Removes what was recorded of `subject` with an event time up to `until`, as far as this store can.

        Positions of other entries do not change. Feedback on the subject's interactions goes with them. Returns the
        number of entries removed; 0 where the store cannot remove (it then expires by the store's own retention).
        """

    def reject(self, entries: Sequence[Entry], reasons: Sequence[str]) -> None:  # noqa: B027 (most streams do nothing)
        """Tells the stream that `entries` cannot be read, and why: one that has a place for such keeps a copy there.

        Raises:
            StreamError: no copy could be made.
        """

    @abstractmethod
    def close(self) -> None:
        """Gives everything back; a closed stream cannot be used again."""

    @abstractmethod
    def _append(self, added: Sequence[Payload]) -> None: ...

    @abstractmethod
    def _read(self, offset: Offset, limit: int) -> Page: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
