"""The memory as it was before its schema moved: what an older release can still open.

A release that knows a newer schema brings the memory to it when it first writes, and no older release reads it from
then on. So a copy stays in the folder `before-schema-N` for a week, N being the schema that was moved to. It is a
memory of its own, to be put in the place of the other one. It holds what that held: it goes with the first erasure.
"""

from __future__ import annotations

import re
import shutil
import sqlite3
import time
from pathlib import Path

from perdure.errors import StoreFull

PREFIX = "before-schema-"
PARTIAL = "partial-"
KEPT_SECONDS = 7 * 86_400.0

_NAME = re.compile(rf"(?:{PARTIAL})?{PREFIX}\d+")


def keep(connection: sqlite3.Connection, folder: Path, newest: int, *, file: str, statistics: str) -> Path:
    """Copies the memory in `folder`, open at an older schema, before it moves to `newest`.

    Args:
        connection: to the database.
        folder: of the memory.
        newest: the schema that it is about to have.
        file: name of the database in its folder.
        statistics: name of the folder in it with the files of the head's statistics, which are linked.

    Raises:
        StoreFull: there is no room for it; the memory has not changed.
    """
    target = folder / f"{PREFIX}{newest}"
    partial = folder / f"{PARTIAL}{target.name}"
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        connection.execute("VACUUM INTO ?", (str(partial / file),))
        if (folder / statistics).is_dir():
            shutil.copytree(folder / statistics, partial / statistics, copy_function=_link)
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
    except (OSError, sqlite3.OperationalError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise StoreFull(
            f"the memory {folder} has to move to schema {newest}, and a copy of it as it is cannot be written "
            f"({error}): free as much space as its database takes; nothing has changed"
        ) from error
    return target


def copies(folder: Path) -> tuple[Path, ...]:
    """What stands of copies in `folder`, half-written ones included."""
    return tuple(sorted(path for path in folder.iterdir() if _NAME.fullmatch(path.name)))


def drop(folder: Path, *, older_than: float = 0.0) -> None:
    """Removes the copies in `folder` that are at least `older_than` seconds old."""
    for copy in copies(folder):
        if time.time() - copy.stat().st_mtime >= older_than:
            shutil.rmtree(copy)


def _link(source: str, target: str) -> None:
    try:
        Path(target).hardlink_to(source)
    except OSError:
        shutil.copy2(source, target)
