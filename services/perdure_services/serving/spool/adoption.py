"""What waits in the spools of processes that there are no more, because fewer are started now."""

from __future__ import annotations

import logging
from contextlib import closing
from pathlib import Path

from perdure.errors import StoreBusy, StoreFull
from perdure_services.serving.spool.lock import SpoolLock
from perdure_services.serving.spool.position import Cursor, Position
from perdure_services.serving.spool.recovery import Recovered, recover
from perdure_services.serving.spool.segment import DAMAGED, REFUSED, SUFFIX, segment_path
from perdure_services.serving.spool.tail import fsync_folder

PREFIX = "process-"

_log = logging.getLogger(__name__)


def folder_of(folder: Path, place: int) -> Path:
    """The spool's folder of the process of that place: that of the first one is `folder` itself."""
    return folder if place == 0 else folder / f"{PREFIX}{place}"


def adopt(folder: Path, processes: int) -> None:
    """Moves into the spool `folder` what is in those of the places from `processes` on, before anybody opens it.

    Files are renamed, whatever their size; they get numbers that no file of `folder` had. Of a file that was sent in
    part all is sent again, which a memory does not mind. A folder whose process still runs is left as it is.

    Raises:
        StoreBusy: another process has `folder`.
        StoreFull: a folder cannot be read or written.
    """
    try:
        left = [place for place in _places(folder) if place >= processes and _files(folder_of(folder, place))]
        if not left:
            return
        with closing(SpoolLock(folder)):
            # What was being written when the process was killed is cut off while the file is still the last one.
            following = max(_recovered(folder).next, *(int(path.stem) + 1 for path in _files(folder)), 1)
            for place in left:
                following = _move(folder_of(folder, place), folder, following)
    except OSError as error:
        raise StoreFull(
            f"what waits in the spools below {folder} cannot be taken over: {error}. Make room or give the process "
            "access, or choose another spool.path"
        ) from error


def _move(source: Path, target: Path, following: int) -> int:
    """Moves the files of `source`, the first to the number `following`; the number after the last one."""
    try:
        lock = SpoolLock(source)
    except StoreBusy as error:
        _log.warning("%s; what it leaves is sent after the next start", error)
        return following
    with closing(lock):
        found = _recovered(source)
        sent = {segment.path for segment in found.segments if Cursor(segment.number, segment.end) <= found.released}
        records = 0
        for path in _files(source):
            if path in sent:
                path.unlink()
                continue
            path.rename(segment_path(target, following, path.suffix))
            following += 1
        records = sum(segment.records() for segment in found.segments if segment.path not in sent)
        fsync_folder(target)
        fsync_folder(source)
    _log.info("%d records that waited in %s are sent from %s", records, source, target)
    return following


def _recovered(folder: Path) -> Recovered:
    with closing(Position(folder / "position")) as position:
        return recover(folder, position.load())


def _places(folder: Path) -> list[int]:
    names = (path.name.removeprefix(PREFIX) for path in folder.glob(f"{PREFIX}*"))
    return sorted(int(name) for name in names if name.isdecimal())


def _files(folder: Path) -> list[Path]:
    """Those that hold records, oldest first."""
    return sorted(path for path in folder.glob("*") if path.suffix in (SUFFIX, DAMAGED, REFUSED))
