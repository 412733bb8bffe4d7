"""The lease of a registry: which of several trainers works on it, decided by objects that are created if absent.

    lease/terms/00000017.json    who holds term 17, and for how long without a word; written create-if-absent
    lease/beat.json              the last sign of life of a holder, written over and over

A term ends in one way only: the next one exists. A holder gives signs of life; whoever waits takes the next term once
it has seen no new one for as long as the holder promised, by its own clock, so that clocks need not agree, or at once
where the holder has let go. That is how Kubernetes elects leaders, but without compare-and-swap, which not every store
has: only the next term needs a winner.

A lease saves work; it does not make promotions safe. A process may be stopped for any time between its last look at the
lease and what it writes next. What decides is the number that a turn fixed for its promotion (`promotions.py`).
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from perdure.errors import LeaseLost, RegistryError
from perdure.records import now
from perdure.registry.store import Backend, Store

SCHEMA = 1

TERMS = "lease/terms"
BEAT = "lease/beat.json"

KEPT = 5
"""Terms before the present one that stay. They are removed from the oldest on, so that what is there has no gaps."""

_NUMBER = re.compile(r"/(\d{8})\.json$")

Entry = TypeVar("Entry", bound=BaseModel)


class Term(BaseModel):
    """From `at` on, until the next term, `holder` has the lease."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    term_schema: Annotated[int, Field(alias="schema", ge=1, le=SCHEMA)] = SCHEMA
    term: Annotated[int, Field(ge=1)]
    holder: str
    seconds: Annotated[float, Field(gt=0)]
    """Without a sign of life for so long, the term may be ended by others."""
    at: float
    """Seconds since the epoch; for people."""


class Beat(BaseModel):
    """A sign of life. It counts for the last term alone: a holder that was stopped may write one after its end."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    beat_schema: Annotated[int, Field(alias="schema", ge=1, le=SCHEMA)] = SCHEMA
    term: Annotated[int, Field(ge=1)]
    count: Annotated[int, Field(ge=0)]
    released: bool
    at: float


@dataclass(frozen=True, slots=True)
class Standing:
    """What is to be seen of the last term; two that are equal say that there was no sign of life between them."""

    term: int = 0
    """0 where nobody ever held the lease."""
    holder: str = ""
    seconds: float = 0.0
    count: int = -1
    released: bool = False


class Terms:
    """The terms in a store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._last = 0

    @property
    def name(self) -> str:
        """The store's URL, without secrets."""
        return self._store.name

    def last(self, hint: int = 0) -> int:
        """The number of the last term, 0 where there is none; found by asking from `hint` on, not by listing.

        Raises:
            RegistryError: the store cannot be read.
        """
        known = max(hint, self._last)
        if known and not self._there(known):
            # Removed as old, because the hint is; or the registry was emptied.
            known = max(self.numbers(), default=0)
        while self._there(known + 1):
            known += 1
        self._last = known
        return known

    def is_last(self, number: int) -> bool:
        """Whether term `number` is there, and no later one.

        Raises:
            RegistryError: the store cannot be read.
        """
        # In this order: terms are removed from the oldest on, so while this one is there the next one was not removed.
        return not self._there(number + 1) and self._there(number)

    def read(self, number: int) -> Term | None:
        """Term `number`; None where there is none.

        Raises:
            RegistryError: it cannot be read.
        """
        data = self._store.get(_path(number))
        return None if data is None else self._decoded(Term, _path(number), data)

    def create(self, term: Term) -> bool:
        """Writes `term` if its number is free; whether it did.

        Raises:
            RegistryError: the store cannot be written.
        """
        if self._store.create(_path(term.term), term.model_dump_json(by_alias=True).encode()):
            return True
        # A request whose answer was lost is sent again by the store's client, and then finds its own work.
        there = self.read(term.term)
        return there is not None and there.holder == term.holder

    def beat(self) -> Beat | None:
        """The last sign of life; None where there was none.

        Raises:
            RegistryError: it cannot be read.
        """
        data = self._store.get(BEAT)
        return None if data is None else self._decoded(Beat, BEAT, data)

    def write(self, beat: Beat) -> None:
        """Puts `beat` over the last sign of life."""
        self._store.put(BEAT, beat.model_dump_json(by_alias=True).encode())

    def numbers(self) -> list[int]:
        """All terms that are there, in order, as far as listing them shows."""
        found = (_NUMBER.search(item.path) for item in self._store.items(TERMS))
        return sorted(int(number[1]) for number in found if number)

    def sweep(self, before: int) -> None:
        """Removes terms lower than `before`, oldest first."""
        for number in self.numbers():
            if number < before:
                self._store.delete(_path(number))

    def _there(self, number: int) -> bool:
        return self._store.size(_path(number)) is not None

    def _decoded(self, kind: type[Entry], path: str, data: bytes) -> Entry:
        try:
            return kind.model_validate_json(data)
        except ValidationError as error:
            raise RegistryError(
                f"{path} in the registry {self.name} cannot be read ({error.errors()[0]['msg']}): upgrade Perdure if a "
                "newer one has written it; else stop all trainers and delete the folder lease there"
            ) from error


class Lease:
    """One process's part in the election; `tend` is to be called several times in `seconds`.

    Args:
        url: of the registry.
        holder: names this process and no other, not even an earlier one in the same place.
        seconds: how long this process may fall silent as holder before others take over.
        clock: seconds that only go up; replaced in tests.

    Raises:
        RegistryError: the URL cannot be used.
    """

    def __init__(self, url: str, *, holder: str, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._begin(Store.open(url), holder, seconds, clock)

    @classmethod
    def over(
        cls, backend: Backend, *, holder: str, seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> Lease:
        """A lease in an obstore store that is open already."""
        lease = cls.__new__(cls)
        lease._begin(Store(backend, "memory://"), holder, seconds, clock)
        return lease

    def _begin(self, store: Store, holder: str, seconds: float, clock: Callable[[], float]) -> None:
        self._terms = Terms(store)
        self._holder = holder
        self._seconds = seconds
        self._clock = clock
        self._count = 0
        self._renewed = 0.0
        self._since: float | None = None
        self.term = 0
        """The term that is this process's; 0 for none."""
        self.seen = Standing()
        """What was last seen of another's term."""
        self.others_alive = False
        """Whether another holder has given a sign of life while this one watched."""

    @property
    def held(self) -> bool:
        """Whether nobody else can have the lease now, going by this process's clock."""
        return self.term > 0 and self._clock() - self._renewed < self._seconds

    def tend(self) -> bool:
        """Gives a sign of life, or tries to get the lease; whether it is held.

        Raises:
            LeaseLost: it was this process's, and its term is over. The next call tries to get it again.
            RegistryError: the store cannot be read or written. A term that was this process's goes on where nobody has
                taken over meanwhile.
        """
        if self.term:
            self._renew()
        else:
            self._campaign()
        return self.held

    def release(self) -> None:
        """Lets go, so that others need not wait; does nothing where the lease is not this process's.

        Raises:
            RegistryError: the store cannot be read or written: others wait until the lease has run out.
        """
        term, self.term = self.term, 0
        if term and self._terms.is_last(term):
            self._terms.write(self._sign(term, released=True))

    def _campaign(self) -> None:
        seen = self._look()
        at = self._clock()
        if self._since is None or seen != self.seen:
            self.others_alive |= self._since is not None and seen.term > 0 and not seen.released
            self.seen, self._since = seen, at
        if seen.term == 0 or seen.released or at - self._since >= seen.seconds:
            self._take(seen.term + 1)

    def _look(self) -> Standing:
        beat = self._terms.beat()
        number = self._terms.last(beat.term if beat else 0)
        if number == 0:
            return Standing()
        term = self._terms.read(number)
        if term is None:
            raise RegistryError(
                f"term {number} of the lease has gone from the registry {self._terms.name} while it was read: it is "
                "looked for again"
            )
        if beat is None or beat.term != number:
            return Standing(number, term.holder, term.seconds)
        return Standing(number, term.holder, term.seconds, beat.count, beat.released)

    def _take(self, number: int) -> None:
        began = self._clock()
        mine = Term(term=number, holder=self._holder, seconds=self._seconds, at=now())
        if not self._terms.create(mine):
            return
        # From here on it is ours, also where the first sign of life fails.
        self.term, self._count, self._renewed = number, 0, began
        self.seen, self._since, self.others_alive = Standing(), None, False
        self._terms.write(self._sign(number))
        self._terms.sweep(number - KEPT)

    def _renew(self) -> None:
        began = self._clock()
        if not self._terms.is_last(self.term):
            lost, self.term = self.term, 0
            raise LeaseLost(_over(self._terms, lost))
        self._count += 1
        self._terms.write(self._sign(self.term))
        self._renewed = began

    def _sign(self, term: int, *, released: bool = False) -> Beat:
        return Beat(term=term, count=self._count, released=released, at=now())


class Fence:
    """Keeps what works under a term from writing after that term's end.

    Args:
        url: of the registry.
        term: which one.

    Raises:
        RegistryError: the URL cannot be used.
    """

    def __init__(self, url: str, term: int) -> None:
        self._terms = Terms(Store.open(url))
        self._term = term

    @classmethod
    def over(cls, backend: Backend, term: int) -> Fence:
        """A fence in an obstore store that is open already."""
        fence = cls.__new__(cls)
        fence._terms, fence._term = Terms(Store(backend, "memory://")), term
        return fence

    def check(self) -> None:
        """Returns while the term lasts.

        Raises:
            LeaseLost: it is over.
            RegistryError: the store cannot be read.
        """
        if not self._terms.is_last(self._term):
            raise LeaseLost(_over(self._terms, self._term))


def _over(terms: Terms, number: int) -> str:
    last = terms.last()
    by = terms.read(last) if last > number else None
    if by is None:
        return (
            f"term {number} of the trainers' lease is gone from the registry {terms.name}: it was emptied or restored. "
            "Nothing more is written under it"
        )
    return (
        f"term {number} of the trainers' lease is over: {by.holder} has taken term {by.term} in the registry "
        f"{terms.name}. Nothing more is promoted or removed under term {number}; if both trainers should work, give "
        "each a registry of its own"
    )


def _path(number: int) -> str:
    return f"{TERMS}/{number:08d}.json"
