"""The one partition of a stream that has no more than one."""

from __future__ import annotations

from collections.abc import Sequence

from perdure.errors import StreamError
from perdure.stream.base import Entry, Offset, Page

PARTITION = "0"
FIRST = 1
"""Position of the first entry."""


def start_of(offset: Offset) -> int:
    """Position from which a reader goes on."""
    return offset.get(PARTITION, FIRST)


def page(found: Sequence[tuple[int, bytes]], *, start: int, limit: int, end: int, stream: str) -> Page:
    """The page of what was `found` from `start` on in a stream that ends at `end`.

    Raises:
        StreamError: the reader is past the end; going on in silence would skip everything recorded from now on.
    """
    if start > end:
        raise StreamError(
            f"the reader is at position {start}, but {stream} ends at {end}: it was replaced, or restored from an "
            "older copy. Put the newer one back, or start the reader's memory anew"
        )
    entries = tuple(Entry(PARTITION, position, payload) for position, payload in found)
    # A page that is not full has seen everything, the gaps that forgetting left behind included.
    return Page(entries, {PARTITION: entries[-1].position + 1 if len(entries) == limit else end})
