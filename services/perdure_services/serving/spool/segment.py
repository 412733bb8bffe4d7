"""One file of the spool."""

from __future__ import annotations

import logging
import os
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from perdure.errors import StoreCorrupt
from perdure_services.serving.spool.frame import hole, is_hole, walk

SUFFIX = ".log"
DAMAGED = ".damaged"
REFUSED = ".refused"
TEMPORARY = ".tmp"

_log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Segment:
    """A file of frames, and what is known of it."""

    folder: Path
    number: int
    end: int = 0
    """Bytes that can be read: whole frames, acknowledged to whoever appended them."""
    frames: int = 0
    """Frames up to `end`, holes included."""
    holes: list[int] = field(default_factory=list)
    """Positions of the frames that were forgotten, ascending."""
    damaged: bool = False
    """Something behind `end` cannot be read."""

    @property
    def path(self) -> Path:
        """Its file."""
        return segment_path(self.folder, self.number, SUFFIX)

    def records(self, position: int = 0, index: int = 0) -> int:
        """Records from `position` on, which is where frame number `index` begins."""
        return self.frames - index - (len(self.holes) - bisect_left(self.holes, position))

    def index_of(self, position: int) -> int | None:
        """How many frames stand before `position`; None where no frame begins there.

        Raises:
            OSError: the file cannot be read.
        """
        if position == self.end:
            return self.frames
        starts = [start for start, _ in walk(self.path.read_bytes()[: self.end])]
        index = bisect_left(starts, position)
        return index if index < len(starts) and starts[index] == position else None

    def remove(self) -> None:
        """Takes the file away; one that is damaged is set aside instead, for somebody to look at."""
        try:
            if self.damaged:
                self.path.rename(segment_path(self.folder, self.number, DAMAGED))
            else:
                self.path.unlink()
        except OSError as error:
            # Sent again after the next start, at worst.
            _log.warning("%s was sent but cannot be removed: %s", self.path, error)


def segment_path(folder: Path, number: int, suffix: str) -> Path:
    """The file of that segment with that suffix."""
    return folder / f"{number:012d}{suffix}"


def open_segment(path: Path, *, last: bool) -> Segment:
    """Reads a segment of an earlier process. In the `last` one a frame that was cut off is removed.

    Raises:
        OSError: it cannot be read, or not be cut.
    """
    segment = Segment(path.parent, int(path.stem))
    data = path.read_bytes()
    reason = None
    try:
        for start, end in walk(data):
            segment.end = end
            segment.frames += 1
            if is_hole(data, start):
                segment.holes.append(start)
    except StoreCorrupt as error:
        reason = str(error)
    rest = len(data) - segment.end
    if not rest:
        return segment
    # A power cut may leave zeros where a write had begun; anything else that is no frame was one once.
    if last and (reason is None or not data[segment.end :].strip(b"\0")):
        _log.warning("%s ended in the middle of a write: %d bytes, never acknowledged, are cut off", path, rest)
        with path.open("rb+") as file:
            file.truncate(segment.end)
            os.fsync(file.fileno())
        return segment
    segment.damaged = True
    say_damaged(segment, reason or f"the frame at byte {segment.end} is cut off")
    return segment


def say_damaged(segment: Segment, reason: str) -> None:
    """Logs what happens to a damaged segment."""
    _log.error(
        "%s is damaged: %s. The %d records before it are sent, the file is then set aside as %s",
        segment.path,
        reason,
        segment.records(),
        segment_path(segment.folder, segment.number, DAMAGED).name,
    )


def rewrite(path: Path, data: bytes, gone: Sequence[tuple[int, int]]) -> Path:
    """A temporary file beside `path`, forced to the disk, with `data` and a hole for each frame in `gone`.

    Raises:
        OSError: there is no room for it; nothing is left behind.
    """
    altered = bytearray(data)
    for start, stop in gone:
        altered[start:stop] = hole(stop - start)
    temporary = path.with_name(path.name + TEMPORARY)
    try:
        with temporary.open("wb") as file:
            file.write(altered)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    return temporary
