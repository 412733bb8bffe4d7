"""The way back from a backup.

The registry comes first, then the stream, memory last: whoever finds the memory finds all that it points to. Who was
forgotten since the backup was made is forgotten again before memory and stream are in place.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from perdure.backup.manifest import Manifest, Part, files_in
from perdure.config import Settings
from perdure.errors import StoreFull, UsageError
from perdure.memory import Memory, open_memory
from perdure.oblivion import carry_out
from perdure.records import now
from perdure.registry import Registry
from perdure.registry.duplicate import check_empty, copy_in
from perdure.stream.sqlite import SqliteStream

STAGING = "restoring"


@dataclass(frozen=True, slots=True)
class Restored:
    """What was put back."""

    parts: tuple[Part, ...]
    made: float
    """When the backup was begun, in seconds since the epoch."""
    champion: str | None
    offset: Mapping[str, int]
    erasures: int
    """Erasures since the backup that were carried out again."""


def restore(
    settings: Settings, folder: Path, parts: Iterable[Part] | None = None, forgotten: Sequence[str] = ()
) -> Restored:
    """Puts back what the backup in `folder` holds, where nothing is. Nothing else may run meanwhile.

    Args:
        settings: of everything; they say where it belongs.
        folder: a backup, which is only read.
        parts: what to put back; None for all that the backup holds.
        forgotten: subjects that have to be forgotten beside those that the registry knows of.

    Raises:
        UsageError: it is no backup, lacks one of `parts`, or something is in its place already. Nothing has changed.
        StoreCorrupt: a file of the backup is missing or altered. Nothing has changed.
        StoreFull: there is no room. The memory is not there then; what stands of the others is removed by hand.
        PerdureError: the place of one of them cannot be written.
    """
    manifest = Manifest.read(folder)
    wanted = _parts(manifest, folder, parts)
    manifest.check(folder)
    _check_free(settings, folder, wanted)
    if "registry" in wanted:
        copy_in(folder / "registry", settings.registry.url)
    # From the registry that is there now: what was put back, or one that was never lost and knows more.
    registry = Registry(settings.registry.url)
    last, erasures = registry.champion(), registry.erasures()
    carried = 0
    if "memory" in wanted or "stream" in wanted:
        # The backup's memory says by which alias it knows whom, also where only the stream is put back.
        with _staged(settings, folder, manifest.parts) as staging:
            with open_memory(settings.with_values({"memory.path": str(staging / "memory")})) as memory:
                for subject in forgotten:
                    erasures = {**erasures, memory.alias(subject): now()}
                if "memory" in wanted:
                    carried = carry_out(memory, erasures)
                if "stream" in wanted:
                    _forget_in_stream(staging / "stream" / "stream.db", memory, erasures)
            if forgotten:
                registry.add_erasures(erasures)
            if "stream" in wanted:
                _place(staging / "stream" / "stream.db", _stream_file(settings))
            if "memory" in wanted:
                _place_folder(staging / "memory", Path(settings.memory.path))
    return Restored(wanted, manifest.made, last.version if last else None, manifest.offset, carried)


def _parts(manifest: Manifest, folder: Path, parts: Iterable[Part] | None) -> tuple[Part, ...]:
    if parts is None:
        return manifest.parts
    asked = set(parts)
    if missing := sorted(asked - set(manifest.parts)):
        raise UsageError(f"the backup {folder} has no {' and no '.join(missing)}: it has {', '.join(manifest.parts)}")
    return tuple(part for part in manifest.parts if part in asked)


def _check_free(settings: Settings, folder: Path, parts: Sequence[Part]) -> None:
    if "memory" in parts:
        path = Path(settings.memory.path)
        for name in files_in(folder / "memory"):
            if (path / name).exists():
                raise UsageError(
                    f"there is a memory in {path} ({name}): move it away, or set memory.path to another folder"
                )
    if "stream" in parts:
        file = _stream_file(settings)
        for there in (file, file.with_name(f"{file.name}-wal")):
            if there.exists():
                raise UsageError(f"there is a stream at {there}: move it away, or give another path in stream.url")
    if "registry" in parts:
        check_empty(settings.registry.url)


def _stream_file(settings: Settings) -> Path:
    scheme, _, location = settings.stream.url.partition(":")
    if scheme.lower() != "sqlite":
        raise UsageError(
            f"the backup's stream is a file, but stream.url begins with {scheme}: leave that part out, or give "
            "sqlite:PATH"
        )
    return Path(location)


@contextmanager
def _staged(settings: Settings, folder: Path, parts: Sequence[Part]) -> Iterator[Path]:
    """A copy of memory and stream beside where they belong; opening them there does not touch the backup."""
    memory = Path(settings.memory.path)
    staging = memory / STAGING
    try:
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        for part in ("memory", "stream"):
            if part in parts:
                shutil.copytree(folder / part, staging / part)
        yield staging
    except OSError as error:
        raise StoreFull(
            f"the backup cannot be put back at {memory} ({error.strerror or error}): free some space and make it "
            "writable, then restore again"
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _forget_in_stream(file: Path, memory: Memory, erasures: Mapping[str, float]) -> None:
    with SqliteStream(file) as stream:
        for subject in stream.subjects():
            until = erasures.get(memory.alias(subject))
            if until is not None:
                stream.forget(subject, until)


def _place_folder(source: Path, target: Path) -> None:
    """Puts the files of a memory in place, its database last: without it there is no memory."""
    names = [name for name in files_in(source) if not name.endswith(".lock")]
    for name in sorted(names, key=lambda name: ("/" not in name, name)):
        _place(source / name, target / name)


def _place(source: Path, target: Path) -> None:
    """Gives a file its place in one step, unless somebody else took it meanwhile."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with source.open("rb") as file:
        os.fsync(file.fileno())
    partial = target.with_name(f"{target.name}.partial")
    try:
        partial.unlink(missing_ok=True)
        if source.stat().st_dev == target.parent.stat().st_dev:
            source.rename(partial)
        else:
            shutil.copyfile(source, partial)
        # A link fails where the name is taken, which a renaming would not.
        target.hardlink_to(partial)
    except FileExistsError as error:
        raise UsageError(
            f"{target} appeared while the backup was put back: stop what writes there, move it away, and restore again"
        ) from error
    finally:
        partial.unlink(missing_ok=True)
    for place in (target, target.parent):
        descriptor = os.open(place, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
