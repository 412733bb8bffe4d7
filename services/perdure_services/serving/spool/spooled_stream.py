"""A remote stream with a spool before it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from perdure.config import SpoolSettings
from perdure.stream.base import Offset, Page, Stream
from perdure.stream.payload import Payload
from perdure_services.serving.spool.adoption import adopt, folder_of
from perdure_services.serving.spool.spool import Spool


class SpooledStream(Stream):
    """Appends go to `spool`, everything else to `beyond`; a `Forwarder` carries on from one to the other.

    An append returns when the records would survive a crash of this process, whether `beyond` can be reached or not.
    """

    def __init__(self, beyond: Stream, spool: Spool) -> None:
        self.beyond = beyond
        self.spool = spool

    def end(self) -> Offset:
        return self.beyond.end()

    def forget(self, subject: str, until: float) -> int:
        """Forgets in the spool, and as far as it can in the stream beyond.

        Raises:
            StoreFull: the spool cannot be rewritten.
            StreamError: the stream beyond cannot remove; the spool has forgotten.
        """
        return self.spool.forget(subject, until) + self.beyond.forget(subject, until)

    def close(self) -> None:
        """Closes the spool, then the stream beyond."""
        try:
            self.spool.close()
        finally:
            self.beyond.close()

    def _append(self, added: Sequence[Payload]) -> None:
        self.spool.append(added)

    def _read(self, offset: Offset, limit: int) -> Page:
        return self.beyond.read(offset, limit)


def with_spool(stream: Stream, settings: SpoolSettings, *, place: int = 0, processes: int = 1) -> Stream:
    """`stream` itself where it is on this machine; otherwise with a spool before it.

    Each of several processes has a folder of its own, and its share of the bytes. The first one takes over what is in
    the folders of places that there are no more.

    Args:
        stream: where records are to go.
        settings: of the spool.
        place: which one of the processes this is, from 0.
        processes: how many there are.

    Raises:
        StoreBusy: another process has the spool's folder.
        StoreFull: the folder cannot be made or written.
    """
    if not stream.remote:
        return stream
    folder = Path(settings.path)
    if place == 0:
        adopt(folder, processes)
    spool = Spool(
        folder_of(folder, place),
        max_bytes=max(settings.max_bytes // processes, 1),
        fsync=settings.fsync,
        fsync_seconds=settings.fsync_seconds,
    )
    return SpooledStream(stream, spool)
