"""The registry: immutable versions and the log of promotions, on any object store."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from itertools import islice
from pathlib import Path

from perdure.errors import RegistryError, StalePromotion, VersionDamaged, VersionNotFound
from perdure.records import now
from perdure.registry.card import Card
from perdure.registry.erasures import Erasures
from perdure.registry.lease import Fence
from perdure.registry.promotions import Promotion, PromotionLog
from perdure.registry.store import Backend, Store
from perdure.registry.versions import Versions

log = logging.getLogger(__name__)

JUDGE = "judge"
"""`by` of promotions that no person decided."""


class Registry:
    """Versions under `versions/`, promotions under `promotions/`.

    Any number of processes and threads may use one place at once; what they race for is decided by the store's
    create-if-absent.

    Args:
        url: A folder (made when missing), or `s3://`, `gs://`, `az://`, `file://` or `memory://`. Credentials come
            from the environment.
        fence: asked before anything is written, promoted or removed; what works under a trainer's lease gives one.

    Raises:
        RegistryError: the URL cannot be used.
        RegistryUnavailable: by every method: the store cannot be reached, read or written.
        LeaseLost: by every method that writes: `fence` says that the lease's term is over.
    """

    def __init__(self, url: str, fence: Fence | None = None) -> None:
        self._use(Store.open(url), fence)

    @classmethod
    def over(cls, backend: Backend, name: str = "memory://", fence: Fence | None = None) -> Registry:
        """A registry over an obstore store that is open already; errors call it `name`."""
        registry = cls.__new__(cls)
        registry._use(Store(backend, name), fence)
        return registry

    def _use(self, store: Store, fence: Fence | None) -> None:
        self.name = store.name
        self._check: Callable[[], None] = fence.check if fence else lambda: None
        self._versions = Versions(store)
        self._log = PromotionLog(store)
        self._erasures = Erasures(store)

    # ── versions ──
    def write(self, card: Card, files: Mapping[str, bytes], shared: Mapping[str, bytes] | None = None) -> Card:
        """Writes `files`, then the card with their hashes; returns the card that stands there.

        Those in `shared`, which other versions have too, are stored once for all of them.

        Writing the same files under the same name again changes nothing.

        Raises:
            RegistryError: a version of that name has other files; a file's name cannot be used.
        """
        self._check()
        return self._versions.write(card, files, shared or {})

    def card(self, name: str) -> Card:
        """The card of a version.

        Raises:
            VersionNotFound: there is none; the message has the nearest names.
            VersionDamaged: it is not what was written.
        """
        return self._versions.card(name)

    def versions(self) -> tuple[str, ...]:
        """Names of all versions, sorted."""
        return self._versions.names()

    def read(self, name: str, file: str) -> bytes:
        """One file of a version, verified against the card.

        Raises:
            VersionNotFound: there is no such version.
            VersionDamaged: the file is missing or altered; the message has both hashes.
            RegistryError: the version never had such a file.
        """
        return self._versions.read(name, file)

    def fetch(self, name: str, cache: Path) -> Path:
        """The local folder `cache`/`name` with exactly the version's files, every one verified, and `card.json`.

        While the store is away a copy that is whole is enough.

        Raises:
            VersionNotFound, VersionDamaged: as `read`.
            RegistryUnavailable: the registry cannot be read, and the cache does not have the version whole.
            RegistryError: the cache cannot be written.
        """
        return self._versions.fetch(name, cache)

    def check(self, name: str) -> None:
        """Looks whether every file of a version is there in its full size, without reading it.

        Raises:
            VersionNotFound: there is no such version.
            VersionDamaged: its card or one of its files is missing or altered.
        """
        self._versions.check(self._versions.card(name))

    # ── promotions ──
    def next_number(self) -> int:
        """The number of the next promotion. Read it together with the champion, and promote with it."""
        return self._log.next_number()

    def champion(self) -> Promotion | None:
        """The promotion in force; None before the first."""
        return self._log.last()

    def promotions(self, limit: int | None = None) -> tuple[Promotion, ...]:
        """The last `limit` promotions, or all; newest last."""
        end = self._log.next_number()
        start = 1 if limit is None else max(1, end - limit)
        return tuple(self._log.entry(number) for number in range(start, end))

    def rolled_back(self) -> frozenset[str]:
        """Versions that were rolled back and that no person has promoted since; the judge must not promote them."""
        last = self._log.last()
        return frozenset(last.rolled_back if last else ())

    def promote(self, version: str, *, number: int | None = None, reason: str, by: str) -> Promotion:
        """Makes `version` the champion.

        Args:
            version: An existing version with all its files.
            number: The number that the entry must get, so that a promoter that read an older champion fails; None
                takes the next free one. Promoting again with the same number, version, `by` and `reason` changes
                nothing, so that a promoter that was killed can start over.
            reason: One sentence for those who read the log.
            by: Who decided; `JUDGE` for the judge.

        Raises:
            VersionNotFound: there is no such version.
            VersionDamaged: its card or one of its files is missing or altered.
            StalePromotion: `number` was taken by somebody else.
            RegistryError: the judge promotes what was rolled back, or `number` is ahead of the log.
        """
        self.check(version)
        while True:
            entry = self._next_entry(version, number, reason=reason, by=by)
            # Last of all: the shorter the time until the entry is written, the better.
            self._check()
            try:
                return self._log.append(entry)
            except StalePromotion:
                if number is not None:
                    raise

    def rollback(self, *, by: str, reason: str) -> Promotion:
        """Promotes the champion before the present one; done twice in a row it goes further back.

        Versions equal to the present one are skipped, and so are those that are gone or damaged.

        Raises:
            RegistryError: there is no earlier champion that can be served.
            StalePromotion: somebody else promoted at the same moment.
        """
        last = self._log.last()
        if last is None:
            raise RegistryError(f"nothing was ever promoted in the registry {self.name}: there is nothing to roll back")
        for earlier in self._servable(last):
            self._check()
            return self._log.append(
                Promotion(
                    number=last.number + 1,
                    version=earlier.version,
                    at=now(),
                    by=by,
                    reason=reason,
                    kind="rollback",
                    restores=earlier.number,
                    rolled_back=tuple(sorted({*last.rolled_back, last.version} - {earlier.version})),
                )
            )
        raise RegistryError(
            f"there is no champion before {last.version} that could be served: promote a version by name instead"
        )

    # ── erasures ──
    def erasures(self) -> Mapping[str, float]:
        """The time (s) up to which each alias of a subject was forgotten, of all that was ever told here."""
        return self._erasures.read()

    def add_erasures(self, erasures: Mapping[str, float]) -> None:
        """Keeps the time (s) up to which each alias was forgotten, for memories that are put back from a copy."""
        self._erasures.add(erasures)

    # ── retention ──
    def collect(self, retain: int, *, keep: Collection[str] = ()) -> tuple[str, ...]:
        """Deletes old versions and returns their names.

        Kept are the newest `retain`, the champions of the last `retain` promotions and the one in force, the one that
        a rollback would return to, those in `keep`, and the parents of all these. What a killed writer left behind goes
        after a day.
        """
        if retain < 1:
            raise ValueError(f"retain must be at least 1, got {retain}")
        names = self._versions.names()
        promoted = {entry.version for entry in self.promotions(retain)}
        last = self._log.last()
        if last is not None:
            promoted |= {last.version, *(entry.version for entry in islice(self._servable(last), 1))}
        kept = {*names[-retain:], *promoted, *keep}
        # Also of champions that a store does not list yet.
        kept |= {parent for name in kept if (parent := self._parent(name))}
        deleted = tuple(name for name in names if name not in kept)
        self._check()
        for name in deleted:
            self._versions.delete(name)
        self._versions.delete_leftovers()
        self._versions.delete_unshared(promoted)
        return deleted

    def _next_entry(self, version: str, number: int | None, *, reason: str, by: str) -> Promotion:
        free = self._log.next_number()
        if number is not None and not 1 <= number <= free:
            raise RegistryError(f"promotion {number} cannot be written: the next number in {self.name} is {free}")
        number = number or free
        rolled_back = frozenset(self._log.entry(number - 1).rolled_back if number > 1 else ())
        if by == JUDGE and version in rolled_back:
            raise RegistryError(
                f"version {version} was rolled back: the judge does not promote it again. "
                f"If it is good after all, promote it by hand: perdure promote {version}"
            )
        return Promotion(
            number=number,
            version=version,
            at=now(),
            by=by,
            reason=reason,
            rolled_back=tuple(sorted(rolled_back - {version})),
        )

    def _servable(self, last: Promotion) -> Iterator[Promotion]:
        """Earlier champions other than the present one that have all their files, latest first."""
        for earlier in self._log.before(last):
            if earlier.version == last.version:
                continue
            try:
                self._versions.check(self._versions.card(earlier.version))
            except (VersionNotFound, VersionDamaged) as error:
                log.warning("skipping promotion %d for a rollback: %s", earlier.number, error)
                continue
            yield earlier

    def _parent(self, name: str) -> str | None:
        try:
            card = self._versions.find(name)
        except RegistryError as error:
            log.warning("the parent of version %s is not known: %s", name, error)
            return None
        return None if card is None else card.parent
