"""Forgetting a subject in the files of a spool."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from perdure.errors import StoreCorrupt
from perdure.stream.payload import Payload
from perdure_services.serving.spool.frame import decode_frame, walk
from perdure_services.serving.spool.segment import DAMAGED, REFUSED, Segment, rewrite

_log = logging.getLogger(__name__)

Replace = Callable[[Segment, Path, Sequence[int]], int]
"""Puts the rewritten file of a segment in place, which has lost the frames that begin there; what that removed."""


def erase(folder: Path, segments: Sequence[Segment], subject: str, until: float, *, replace: Replace) -> int:
    """Makes holes of the frames of `subject` up to `until`, and of feedback on its interactions, wherever that stands.

    Only one file at a time is in memory. Returns the number of frames removed, as `replace` counts them, and those of
    refused records.

    Raises:
        OSError: a file cannot be read, or there is no room to rewrite it.
    """
    ids: set[str] = set()
    name = subject.encode("utf-8", "surrogatepass")

    def theirs(payload: Payload) -> bool:
        return payload.subject == subject and payload.time <= until

    def forgotten(payload: Payload) -> bool:
        return theirs(payload) or (
            payload.subject is None and payload.interaction is not None and payload.interaction in ids
        )

    refused = sorted(folder.glob(f"*{REFUSED}"))
    for path in (*(segment.path for segment in segments), *refused):
        data = _read(path)
        # Most files have nothing of the subject; looking for its name is much faster than looking at every frame.
        if name in data:
            ids.update(
                payload.interaction for _, _, payload in _frames(data) if theirs(payload) and payload.interaction
            )
    removed = 0
    if not ids:
        _warn_of_damaged(folder)
        return removed
    for segment in segments:
        data = _read(segment.path)
        gone = [(start, stop) for start, stop, payload in _frames(data[: segment.end]) if forgotten(payload)]
        if gone:
            removed += replace(segment, rewrite(segment.path, data, gone), [start for start, _ in gone])
    for path in refused:
        data = _read(path)
        gone = [(start, stop) for start, stop, payload in _frames(data) if forgotten(payload)]
        if gone:
            rewrite(path, data, gone).replace(path)
            removed += len(gone)
    _warn_of_damaged(folder)
    return removed


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        # Sent, and removed, since the files were listed.
        return b""


def _frames(data: bytes) -> Iterator[tuple[int, int, Payload]]:
    try:
        for start, stop in walk(data):
            payload = decode_frame(data, start, stop)
            if payload is not None:
                yield start, stop, payload
    except StoreCorrupt:
        # Found, logged and counted by whoever reads this file to send it; what stands before was given.
        return


def _warn_of_damaged(folder: Path) -> None:
    for path in sorted(folder.glob(f"*{DAMAGED}")):
        _log.warning("%s cannot be searched for a subject that is to be forgotten: look at it, and remove it", path)
