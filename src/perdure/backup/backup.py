"""One copy of everything, made while everything goes on.

Memory comes first. The stream and the registry are copied after it, so they have all that it points to: its offset lies
within the stream, and the promotion that an unfinished turn is about to make is the next one, or was made. That is what
a turn that was killed finds too, and it goes on from there.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from perdure import __version__
from perdure.backup.manifest import FILE, PARTS, Manifest, Part, entry_of, files_in
from perdure.config import Settings
from perdure.errors import StoreFull, UsageError
from perdure.memory import open_memory
from perdure.records import now
from perdure.registry import Registry
from perdure.registry.duplicate import copy_out
from perdure.stream import open_stream
from perdure.stream.sqlite import SqliteStream

PARTIAL = ".partial"


def back_up(settings: Settings, folder: Path, parts: Iterable[Part] | None = None) -> Manifest:
    """Writes a backup into the new folder `folder`; other processes may go on writing all of it.

    A stream in Kafka is not copied: it keeps its records itself, and memory goes on from its offset there.

    Args:
        settings: of everything.
        folder: made here, whole or not at all.
        parts: what to copy; None for all that can be.

    Raises:
        UsageError: `folder` exists, or one of `parts` cannot be copied.
        StoreFull: it cannot be written. Nothing is left of it.
        PerdureError: what is to be copied cannot be read.
    """
    if folder.exists():
        raise UsageError(f"{folder} exists already: give a folder that is not there yet, one for each backup")
    wanted = _parts(settings, parts)
    partial = folder.with_name(f"{folder.name}{PARTIAL}")
    with _whole_or_not(partial, folder):
        manifest = _copy(settings, partial, wanted)
        (partial / FILE).write_bytes(manifest.encode())
        _sync(partial)
    return manifest


def _parts(settings: Settings, parts: Iterable[Part] | None) -> tuple[Part, ...]:
    embedded = settings.stream.url.lower().startswith("sqlite:")
    if parts is None:
        return tuple(part for part in PARTS if part != "stream" or embedded)
    asked = set(parts)
    if "stream" in asked and not embedded:
        raise UsageError(
            f"the stream {settings.stream.url.partition(':')[0]}: is no file and is not copied: leave that part out; "
            "its own replication keeps its records"
        )
    return tuple(part for part in PARTS if part in asked)


def _copy(settings: Settings, folder: Path, parts: tuple[Part, ...]) -> Manifest:
    made, digest, offset, champion = now(), None, {}, None
    if "memory" in parts:
        with open_memory(settings, read_only=True) as memory:
            memory.snapshot(folder / "memory", links=False)
        # Of the copy: what is read now may be ahead of it already.
        with open_memory(settings.with_values({"memory.path": str(folder / "memory")}), read_only=True) as copied:
            digest, offset = copied.digest(), dict(copied.offset())
    if "stream" in parts:
        with open_stream(settings.stream) as stream:
            assert isinstance(stream, SqliteStream)
            (folder / "stream").mkdir()
            stream.copy(folder / "stream" / "stream.db")
    if "registry" in parts:
        copy_out(settings.registry.url, folder / "registry")
        last = Registry(str(folder / "registry")).champion()
        champion = last.version if last else None
    return Manifest(
        made=made,
        release=__version__,
        parts=parts,
        digest=digest,
        offset=offset,
        champion=champion,
        files={name: entry_of(folder / name) for name in sorted(files_in(folder))},
    )


@contextmanager
def _whole_or_not(partial: Path, folder: Path) -> Iterator[None]:
    try:
        # What a killed backup left.
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        yield
        partial.rename(folder)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise StoreFull(
            f"the backup {folder} cannot be written ({error.strerror or error}): free some space there and make it "
            "writable; nothing is left of it"
        ) from error
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _sync(folder: Path) -> None:
    """Forces all of `folder` to the disk."""
    for path in (*folder.rglob("*"), folder, folder.parent):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
