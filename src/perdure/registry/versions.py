"""Immutable versions: a folder of files each, sealed by a card that is written last."""

from __future__ import annotations

import difflib
import logging
import os
import shutil
import uuid
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from perdure.errors import RegistryError, RegistryUnavailable, VersionDamaged, VersionNotFound
from perdure.file_identity import FileIdentity
from perdure.registry import cache as copies
from perdure.registry.card import CARD, Card, FileCard, is_file_name, is_version_name
from perdure.registry.store import Store

log = logging.getLogger(__name__)

FOLDER = "versions"

SHARED = "shared"
"""Files that several versions have, each under its hash."""

REMEMBERED = 1024
"""Files of a cache that are remembered as whole."""

LEFTOVER_SECONDS = 86_400
"""Files without a card are taken for work in progress until the youngest of them is older than this."""


class Versions:
    """What is under `versions/` and `shared/` in a store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._written: deque[str] = deque(maxlen=REMEMBERED)
        """Versions written here: a store may not list them yet."""
        self._seen: set[tuple[FileIdentity, str]] = set()
        """Files of a cache that were whole when they were last looked at, and their hashes."""

    def write(self, card: Card, files: Mapping[str, bytes], shared: Mapping[str, bytes]) -> Card:
        """Writes `files` and `shared`, then the card with their hashes; returns that card.

        Writing the same files under the same name again changes nothing and returns the card that is there, so that
        a writer that was killed can start over. One writer at a time works on a name; that is the trainer's lease.

        Raises:
            RegistryError: a version of that name has other files; a file's name cannot be used.
        """
        for name in (*files, *shared):
            if not is_file_name(name):
                raise RegistryError(
                    f"{name!r} cannot name a file of version {card.name}: use A-Z a-z 0-9 . _ - in parts joined by /, "
                    f"no dot in front of a part, and not {CARD}"
                )
        cards = {name: FileCard.of(data) for name, data in files.items()}
        cards |= {name: FileCard.of(data, shared=True) for name, data in shared.items()}
        sealed = card.model_copy(update={"files": dict(sorted(cards.items()))})
        there = self.find(card.name)
        if there is not None:
            return self._same(there, sealed)
        for name, data in files.items():
            self._store.put(_path(card.name, name), data)
        for name, data in shared.items():
            path = _place(card.name, name, cards[name])
            if self._store.size(path) != len(data):
                self._store.put(path, data)
        self._written.append(card.name)
        if self._store.create(_path(card.name, CARD), sealed.encode()):
            return sealed
        return self._same(self.card(card.name), sealed)

    def card(self, name: str) -> Card:
        """The card of `name`.

        Raises:
            VersionNotFound: there is no such version; the message has the nearest names.
            VersionDamaged: the card is not what was written.
            RegistryError: the card is of a newer schema.
        """
        card = self.find(name)
        if card is None:
            near = difflib.get_close_matches(name, self.names(), n=3, cutoff=0.4)
            hint = f"did you mean {', '.join(near)}?" if near else "`perdure versions` lists what is there"
            raise VersionNotFound(f"there is no version {name!r} in the registry {self._store.name}: {hint}")
        return card

    def names(self) -> tuple[str, ...]:
        """Names of all versions that have a card, sorted; names are made so that this is the order of time."""
        depth = len(_path("x", CARD).split("/"))
        parts = (item.path.split("/") for item in self._store.items(FOLDER))
        return tuple(sorted(part[-2] for part in parts if len(part) == depth and part[-1] == CARD))

    def check(self, card: Card) -> None:
        """Looks whether every file is there in its full size, without reading it.

        Raises:
            VersionDamaged: one is not.
        """
        for name, wanted in card.files.items():
            size = self._store.size(_place(card.name, name, wanted))
            if size is None:
                raise _missing(card.name, name, wanted)
            if size != wanted.size:
                raise VersionDamaged(
                    f"{name} of version {card.name} is altered: it has {size} bytes, but {wanted.size} were written "
                    f"(sha256 {wanted.sha256}). Restore it, or promote another version"
                )

    def read(self, name: str, file: str) -> bytes:
        """The content of one file, verified.

        Raises:
            VersionNotFound, VersionDamaged: as `card`; or the file is missing or altered.
            RegistryError: the version never had such a file.
        """
        card = self.card(name)
        wanted = card.files.get(file)
        if wanted is None:
            raise RegistryError(f"version {name} has no file {file!r}: it has {', '.join(card.files) or 'none'}")
        return self._verified(name, file, wanted)

    def fetch(self, name: str, cache: Path) -> Path:
        """The folder `cache`/`name` with exactly the version's files, each verified, and its card.

        A file that lies in the cache is hashed again each time; a damaged one is read from the registry afresh. While
        the store is away a copy that is whole by its own card is enough: a version never changes.

        Raises:
            VersionNotFound, VersionDamaged: as `read`.
            RegistryUnavailable: the registry cannot be read, and the cache does not have the version whole.
            RegistryError: the cache cannot be written.
        """
        folder = cache / name
        try:
            card = self.card(name)
        except RegistryUnavailable as error:
            if not self._kept(name, folder):
                raise
            log.warning("version %s is taken from its copy in %s: %s", name, cache, error)
            return folder
        try:
            self._fill(folder, card)
        except OSError as error:
            raise RegistryError(
                f"the cache of versions {cache} cannot be written: {error.strerror or error}. "
                "Free some space there, and make it writable for this user"
            ) from error
        return folder

    def delete(self, name: str) -> None:
        """Removes a version: its card first, so that nobody takes what is left for a version."""
        self._store.delete(_path(name, CARD))
        self._store.delete_folder(f"{FOLDER}/{name}")

    def delete_leftovers(self) -> tuple[str, ...]:
        """Removes files that have no card and are too old to be anybody's work; returns the names they stood under."""
        youngest: dict[str, datetime] = {}
        sealed = set(self.names())
        for item in self._store.items(FOLDER):
            _, name, *_ = item.path.split("/")
            youngest[name] = max(item.modified, youngest.get(name, item.modified))
        present = _present(youngest.values())
        old = tuple(
            sorted(
                name
                for name, modified in youngest.items()
                if name not in sealed
                and (present - modified).total_seconds() > LEFTOVER_SECONDS
                # A store that lists late is asked for the card itself.
                and self._store.size(_path(name, CARD)) is None
            )
        )
        for name in old:
            log.info("removing what is left of version %s, which has no card", name)
            self._store.delete_folder(f"{FOLDER}/{name}")
        return old

    def delete_unshared(self, also: Iterable[str] = ()) -> tuple[str, ...]:
        """Removes shared files that no version has any more and that nobody may be about to use; returns their hashes.

        Nothing is removed while a card cannot be read: what it names is not known.

        Args:
            also: versions that count even where the store does not list them yet; so do those written here.
        """
        shared = tuple(self._store.items(SHARED))
        present = _present(item.modified for item in (*shared, *self._store.items(FOLDER)))
        old = {
            item.path.split("/")[-1] for item in shared if (present - item.modified).total_seconds() > LEFTOVER_SECONDS
        }
        if not old:
            return ()
        try:
            cards = [card for name in {*self.names(), *also, *self._written} if (card := self.find(name))]
        except RegistryError as error:
            log.warning("shared files stay: %s", error)
            return ()
        old -= {wanted.sha256 for card in cards for wanted in card.files.values() if wanted.shared}
        for digest in old:
            self._store.delete(f"{SHARED}/{digest}")
        return tuple(sorted(old))

    def find(self, name: str) -> Card | None:
        """The card of `name`, or None when there is no such version; raises else what `card` does."""
        data = self._store.get(_path(name, CARD)) if is_version_name(name) else None
        return None if data is None else Card.decode(name, data)

    def _same(self, there: Card, wanted: Card) -> Card:
        if dict(there.files) == dict(wanted.files):
            return there
        differ = sorted(
            name for name in {*there.files, *wanted.files} if there.files.get(name) != wanted.files.get(name)
        )
        raise RegistryError(
            f"version {there.name} exists in the registry {self._store.name} with other content ({', '.join(differ)}): "
            "a version never changes, write it under a new name"
        )

    def _verified(self, name: str, file: str, wanted: FileCard) -> bytes:
        data = self._store.get(_place(name, file, wanted))
        if data is None:
            # The card goes first when a version is deleted.
            self.card(name)
            raise _missing(name, file, wanted)
        if not wanted.describes(data):
            found = FileCard.of(data)
            raise VersionDamaged(
                f"{file} of version {name} is altered: its sha256 is {found.sha256} ({found.size} bytes), but "
                f"{wanted.sha256} ({wanted.size} bytes) was written. Restore it, or promote another version"
            )
        return data

    def _fill(self, folder: Path, card: Card) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        # Used from now on: whoever prunes this cache meanwhile leaves it alone.
        os.utime(folder)
        _remove_strangers(folder, {*card.files, CARD})
        for name, wanted in card.files.items():
            target = folder / name
            if wanted.shared:
                kept = folder.parent / copies.SHARED / wanted.sha256
                self._bring(kept, folder.parent, card.name, name, wanted)
                _link(target, kept, folder.parent)
            else:
                self._bring(target, folder.parent, card.name, name, wanted)
        sealed = card.encode()
        # What is there whole is not written again: on a full disk a version that lies there can still be had.
        if not (folder / CARD).is_file() or (folder / CARD).read_bytes() != sealed:
            _replace(folder / CARD, sealed, folder.parent)

    def _kept(self, name: str, folder: Path) -> bool:
        """Whether the folder is a whole copy of the version, by the card that lies in it."""
        try:
            card = Card.decode(name, (folder / CARD).read_bytes())
            return all(self._whole(folder / file, wanted) for file, wanted in card.files.items())
        except (OSError, RegistryError):
            return False

    def _bring(self, target: Path, cache: Path, version: str, name: str, wanted: FileCard) -> None:
        """Puts a file into the cache, unless it lies there whole."""
        if target.is_file():
            if self._whole(target, wanted):
                copies.touch(target)
                return
            log.warning("%s is damaged: reading it from the registry afresh", target)
        _replace(target, self._verified(version, name, wanted), cache)

    def _whole(self, target: Path, wanted: FileCard) -> bool:
        # The larger files are those of all versions: to hash them whenever a version is fetched would take longer than
        # all else about it.
        seen = FileIdentity.of(target), wanted.sha256
        if seen not in self._seen:
            if not wanted.describes(target.read_bytes()):
                return False
            if len(self._seen) >= REMEMBERED:
                self._seen.clear()
            self._seen.add(seen)
        return True


def _present(times: Iterable[datetime]) -> datetime:
    """The time by the clock of a store in which things were written at `times`; never later than it is.

    A clock that is behind ours would make what was written just now look old.
    """
    return min(datetime.now(UTC), max(times, default=datetime.now(UTC)))


def _path(version: str, file: str) -> str:
    return f"{FOLDER}/{version}/{file}"


def _place(version: str, file: str, wanted: FileCard) -> str:
    return f"{SHARED}/{wanted.sha256}" if wanted.shared else _path(version, file)


def _missing(name: str, file: str, wanted: FileCard) -> VersionDamaged:
    return VersionDamaged(
        f"{file} of version {name} is missing: {wanted.size} bytes with sha256 {wanted.sha256} were written, nothing "
        "is there. Restore it, or promote another version"
    )


def _remove_strangers(folder: Path, known: set[str]) -> None:
    for path in folder.rglob("*"):
        if path.is_file() and path.relative_to(folder).as_posix() not in known:
            path.unlink(missing_ok=True)


def _replace(target: Path, data: bytes, incoming: Path) -> None:
    """Puts `data` in place in one step: another process may be reading the same cache."""
    with _arriving(target, incoming) as part:
        part.write_bytes(data)


def _link(target: Path, source: Path, incoming: Path) -> None:
    """Gives `source`, which is whole, the name `target` too."""
    if target.is_file() and target.samefile(source):
        return
    with _arriving(target, incoming) as part:
        try:
            part.hardlink_to(source)
        except OSError:
            # A file system without links.
            shutil.copyfile(source, part)


@contextmanager
def _arriving(target: Path, incoming: Path) -> Iterator[Path]:
    """Where to write what then takes the place of `target` in one step."""
    if target.is_dir() and not target.is_symlink():
        shutil.rmtree(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = incoming / f"{copies.INCOMING}{uuid.uuid4().hex}"
    try:
        yield part
        os.replace(part, target)  # noqa: PTH105
    finally:
        part.unlink(missing_ok=True)
