"""What an earlier process left in the folder of a spool."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from perdure_services.serving.spool.position import Cursor
from perdure_services.serving.spool.segment import SUFFIX, TEMPORARY, Segment, open_segment


@dataclass(frozen=True, slots=True)
class Recovered:
    """Segments, oldest first, and from where on they were not sent."""

    segments: tuple[Segment, ...]
    released: Cursor
    next: int
    """A number that no segment ever had, so that a saved position cannot mean another file."""


def recover(folder: Path, saved: Cursor) -> Recovered:
    """Checks every frame of every segment, cuts off what was being written, and finds where `saved` stands in them.

    Raises:
        OSError: a file cannot be read, or not be cut.
    """
    for path in folder.glob(f"*{TEMPORARY}"):
        path.unlink()
    paths = sorted(folder.glob(f"*{SUFFIX}"))
    segments = tuple(open_segment(path, last=path == paths[-1]) for path in paths)
    following = max(saved.segment, segments[-1].number if segments else 0) + 1
    return Recovered(segments, _released(segments, saved), following)


def _released(segments: tuple[Segment, ...], saved: Cursor) -> Cursor:
    for segment in segments:
        if segment.number == saved.segment and (index := segment.index_of(saved.position)) is not None:
            return Cursor(saved.segment, saved.position, index)
    return Cursor(segments[0].number) if segments else Cursor(saved.segment)
