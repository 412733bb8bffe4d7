"""Records as they are read from the spool."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from perdure.errors import StoreCorrupt
from perdure.stream.payload import Payload
from perdure_services.serving.spool.frame import HEADER, decode_frame, needed, walk
from perdure_services.serving.spool.position import Cursor


@dataclass(frozen=True, slots=True)
class Batch:
    """Records that were read, in the order in which they were appended."""

    payloads: tuple[Payload, ...]
    start: Cursor
    end: Cursor
    """What to read from next, and to release when the stream has these. It may be behind `start` though there are no
    records: all of them were forgotten."""
    erasures: int
    """Rewritten files when this was read: a batch that is older than an erasure must be read again."""


@dataclass(frozen=True, slots=True)
class Excerpt:
    """Whole frames of a file."""

    payloads: tuple[Payload, ...]
    length: int
    """Bytes of the frames; 0 when not even the first one can be read."""
    frames: int
    """Holes included."""
    trouble: str
    """Why there are no frames, if there are none."""


def read_excerpt(path: Path, position: int, end: int, *, max_records: int, max_bytes: int) -> Excerpt:
    """Frames from `position` on, up to `end`: at most `max_records`, and `max_bytes` unless the first one is longer.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb", buffering=0) as file:
        data = _read_at(file.fileno(), position, min(end - position, max(max_bytes, HEADER.size)))
        if len(data) >= HEADER.size and (most := min(needed(data), end - position)) > len(data):
            data = _read_at(file.fileno(), position, most)
    payloads, length, frames = [], 0, 0
    trouble = "it is shorter than what was written"
    try:
        for start, length in walk(data):
            frames += 1
            if (payload := decode_frame(data, start, length)) is not None:
                payloads.append(payload)
                if len(payloads) >= max_records:
                    break
    except StoreCorrupt as error:
        trouble = str(error)
    return Excerpt(tuple(payloads), length, frames, trouble)


def _read_at(file: int, position: int, length: int) -> bytes:
    data = os.pread(file, length, position)
    while data and len(data) < length and (more := os.pread(file, length - len(data), position + len(data))):
        data += more
    return data
