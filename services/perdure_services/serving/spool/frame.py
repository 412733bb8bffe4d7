"""How one record lies in the spool: a header that checks itself, and a content that is checked by its sum.

    length    4 bytes   of the content, little-endian as everything here
    ~length   4 bytes   its complement, so that a damaged length is not taken for a frame that was cut off
    sum       4 bytes   CRC-32C of the content
    content             time (8), length of the interaction's id (4, −1: none), of the subject (4, −1: none),
                        id, subject, body

A frame that was forgotten stays as a hole of the same length, so that positions behind it do not change.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from crc32c import crc32c

from perdure.errors import StoreCorrupt
from perdure.stream.payload import Payload

HEADER = struct.Struct("<III")
CONTENT = struct.Struct("<dii")

_MASK = 0xFFFFFFFF
_NONE = -1
_HOLE = -2


def encode_frame(payload: Payload) -> bytes:
    """The frame of `payload`."""
    who = b"" if payload.interaction is None else payload.interaction.encode("utf-8", "surrogatepass")
    whose = b"" if payload.subject is None else payload.subject.encode("utf-8", "surrogatepass")
    meta = CONTENT.pack(
        payload.time,
        _NONE if payload.interaction is None else len(who),
        _NONE if payload.subject is None else len(whose),
    )
    content = b"".join((meta, who, whose, payload.body))
    return _header(content) + content


def hole(length: int) -> bytes:
    """A frame of `length` bytes, header included, that holds nothing."""
    content = CONTENT.pack(0.0, _HOLE, _NONE) + bytes(length - HEADER.size - CONTENT.size)
    return _header(content) + content


def walk(data: bytes) -> Iterator[tuple[int, int]]:
    """Start and end of each whole frame in `data`, which begins with one; stops before a frame that is cut off.

    Raises:
        StoreCorrupt: what follows the last frame given is neither a frame nor the beginning of one.
    """
    position, size = 0, len(data)
    while size - position >= HEADER.size:
        length, check, total = HEADER.unpack_from(data, position)
        if length ^ check != _MASK or length < CONTENT.size:
            raise StoreCorrupt(f"no frame begins at byte {position}")
        content = position + HEADER.size
        end = content + length
        if end > size:
            return
        if crc32c(data[content:end]) != total:
            raise StoreCorrupt(f"the frame at byte {position} does not have the sum that was written with it")
        yield position, end
        position = end


def needed(data: bytes) -> int:
    """Bytes of the frame that `data` begins with, which may be cut off anywhere behind its header."""
    length: int = HEADER.unpack_from(data)[0]
    return HEADER.size + length


def is_hole(data: bytes, start: int) -> bool:
    """Whether the frame at `start` was forgotten."""
    return bool(CONTENT.unpack_from(data, start + HEADER.size)[1] == _HOLE)


def decode_frame(data: bytes, start: int, end: int) -> Payload | None:
    """The record in the frame that `walk` found; None for a hole."""
    time, who, whose = CONTENT.unpack_from(data, start + HEADER.size)
    if who == _HOLE:
        return None
    names = start + HEADER.size + CONTENT.size
    between = names + max(who, 0)
    body = between + max(whose, 0)
    return Payload(
        data[body:end],
        time,
        None if who == _NONE else data[names:between].decode("utf-8", "surrogatepass"),
        None if whose == _NONE else data[between:body].decode("utf-8", "surrogatepass"),
    )


def _header(content: bytes) -> bytes:
    return HEADER.pack(len(content), len(content) ^ _MASK, crc32c(content))
