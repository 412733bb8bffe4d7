"""Local copies of versions: they are made by `Registry.fetch`, and go when nobody has asked for them for long."""

from __future__ import annotations

import logging
import os
import shutil
import time
from contextlib import suppress
from pathlib import Path

SHARED = ".shared"
"""Folder in a cache of the files that versions have in common; no version's name begins with a dot."""

INCOMING = ".incoming-"
"""What a file in a cache is called until it is whole."""

UNUSED_SECONDS = 4 * 3600.0
"""Copies that nobody has fetched for so long go: much longer than a turn, or a load, works with one."""

log = logging.getLogger(__name__)


def prune(cache: Path) -> tuple[str, ...]:
    """Removes copies that are not used any more, and what killed processes have left half-written.

    Others may fetch into the same cache, and prune it, at the same time. What cannot be removed now stays for the next
    time.

    Args:
        cache: as given to `Registry.fetch`; it may be missing.

    Returns:
        Names of the versions whose copies were removed, sorted.
    """
    before = time.time() - UNUSED_SECONDS
    gone = tuple(sorted(path.name for path in _old(cache, before) if path.is_dir() and path.name != SHARED))
    for name in gone:
        shutil.rmtree(cache / name, ignore_errors=True)
    halves = [path for path in _old(cache, before) if path.name.startswith(INCOMING)]
    for path in (*halves, *_old(cache / SHARED, before)):
        with suppress(OSError):
            # Where the file system has links, a file with one name only is in no copy.
            if path.stat().st_nlink == 1:
                path.unlink()
    if gone:
        log.info("removed copies of %d versions that nobody uses any more from %s", len(gone), cache)
    return gone


def touch(copy: Path) -> None:
    """Says that a file in a cache is used: it does not go soon.

    What was touched lately stays as it is, for a file's time tells whether it has changed.
    """
    if time.time() - copy.stat().st_mtime > UNUSED_SECONDS / 2:
        os.utime(copy)


def _old(folder: Path, before: float) -> list[Path]:
    old = []
    with suppress(FileNotFoundError):
        for path in folder.iterdir():
            # Somebody else may have removed it in between.
            with suppress(OSError):
                if path.stat().st_mtime < before:
                    old.append(path)
    return old
