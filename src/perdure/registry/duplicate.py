"""A registry copied whole, from any store into a folder and back."""

from __future__ import annotations

from pathlib import Path

from perdure.errors import RegistryError, UsageError, VersionDamaged, VersionNotFound
from perdure.registry.card import CARD
from perdure.registry.registry import Registry
from perdure.registry.store import Store

NAMING = ("promotions", "shards")
NAMED = ("versions", "shared", "erasures")
"""What names something is read before what it names, and written after it: what is named is always there."""


def copy_out(url: str, folder: Path) -> None:
    """Copies the registry at `url` into the new folder `folder`, while others write there.

    A version that is collected meanwhile is left out.

    Raises:
        RegistryError: it cannot be read; or the champion itself was collected meanwhile, so that the copy is worth
            nothing: try again.
        OSError: the folder cannot be written.
    """
    source = Store.open(url)
    folder.mkdir(parents=True)
    for part in (*NAMING, *NAMED):
        # Of shards too the log comes first; among themselves files do not point anywhere.
        for path in sorted((item.path for item in source.items(part)), key=_naming_first):
            data = source.get(path)
            if data is None:
                continue
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
    _drop_incomplete(source.name, folder)


def copy_in(folder: Path, url: str) -> None:
    """Copies the registry in `folder` to the empty place `url`; promotions last, so that no reader finds half of it.

    Raises:
        UsageError: something is there already.
        RegistryError: it cannot be written. What was written stays, and is no registry without its promotions:
            copying again goes on.
    """
    target = Store.open(url)
    check_empty(url)
    for part in reversed((*NAMING, *NAMED)):
        files = (path.relative_to(folder).as_posix() for path in (folder / part).rglob("*") if path.is_file())
        for path in sorted(files, key=_naming_last):
            target.create(path, (folder / path).read_bytes())


def check_empty(url: str) -> None:
    """Raises UsageError where `url` holds a registry in which something was promoted."""
    store = Store.open(url)
    if next(store.items("promotions"), None) is not None:
        raise UsageError(
            f"the registry {store.name} is in use, something was promoted there: move it away, or give another place "
            "in registry.url"
        )


def _drop_incomplete(name: str, folder: Path) -> None:
    copied = Registry(str(folder))
    last = copied.champion()
    for version in copied.versions():
        try:
            copied.check(version)
        except VersionDamaged:
            if last is not None and version == last.version:
                raise
            (folder / "versions" / version / CARD).unlink()
    if last is not None:
        try:
            copied.check(last.version)
        except (VersionNotFound, VersionDamaged) as error:
            raise RegistryError(
                f"the champion {last.version} of the registry {name} could not be copied whole ({error}): if it was "
                "collected meanwhile, try again; otherwise restore it, or promote another version first"
            ) from error


def _naming_first(path: str) -> tuple[bool, str]:
    return not ("/log/" in path or path.endswith(f"/{CARD}")), path


def _naming_last(path: str) -> tuple[bool, str]:
    first, _ = _naming_first(path)
    return not first, path
