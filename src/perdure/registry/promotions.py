"""The log of promotions: numbered entries, each written only if its number is free. The last one names the champion."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from perdure.errors import RegistryError, StalePromotion
from perdure.registry.store import Store

SCHEMA = 1

FOLDER = "promotions"

Kind = Literal["promote", "rollback"]


class Promotion(BaseModel):
    """One entry: from `at` on, `version` is the champion."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    promotion_schema: Annotated[int, Field(alias="schema", ge=1)] = SCHEMA
    number: Annotated[int, Field(ge=1)]
    version: str
    at: float
    """Seconds since the epoch."""
    by: str
    """Who: a person, or the judge."""
    reason: str
    kind: Kind = "promote"
    restores: int | None = None
    """For a rollback, the number of the entry that it goes back to."""
    rolled_back: tuple[str, ...] = ()
    """Versions that were rolled back up to here, and not promoted again since. It stands in every entry so that
    nobody has to read the whole log."""

    def says_the_same(self, other: Promotion) -> bool:
        """Whether both are the same act, told twice."""
        return (self.version, self.by, self.reason, self.kind) == (other.version, other.by, other.reason, other.kind)


class PromotionLog:
    """What is under `promotions/` in a store. Numbers start at 1 and have no gaps."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._last = 0
        self._known: dict[int, Promotion] = {}

    def next_number(self) -> int:
        """The first free number, found by asking for some: two questions when little has happened since the last time,
        and a number that grows with the logarithm of the log otherwise."""
        last = self._last
        if last and not self._there(last):
            # The registry was emptied under this process.
            last = 0
            self._known.clear()
        step = 1
        taken, free = last, last + step
        while self._there(free):
            taken, step = free, step * 2
            free = last + step
        while free - taken > 1:
            middle = (taken + free) // 2
            if self._there(middle):
                taken = middle
            else:
                free = middle
        self._last = taken
        return free

    def last(self) -> Promotion | None:
        """The last entry; None when there is none."""
        number = self.next_number() - 1
        return self.entry(number) if number else None

    def entry(self, number: int) -> Promotion:
        """The entry with that number; entries never change, so each is read once.

        Raises:
            RegistryError: there is none, or it cannot be read.
        """
        known = self._known.get(number)
        if known is None:
            data = self._store.get(_path(number))
            if data is None:
                raise RegistryError(
                    f"promotion {number} is missing from the registry {self._store.name}: the log of promotions must "
                    "have no gaps, restore it"
                )
            known = self._known[number] = self._decode(number, data)
        return known

    def append(self, entry: Promotion) -> Promotion:
        """Writes `entry` under its number; returns what stands there.

        Raises:
            StalePromotion: something else stands there.
        """
        if self._store.create(_path(entry.number), entry.model_dump_json(by_alias=True, indent=1).encode()):
            self._known[entry.number] = entry
            return entry
        there = self.entry(entry.number)
        if there.says_the_same(entry):
            return there
        raise StalePromotion(
            f"promotion {entry.number} to {entry.version} came too late: {there.by} has meanwhile promoted "
            f"{there.version} ({there.reason or 'no reason given'}). Compare with {there.version} and decide again"
        )

    def before(self, entry: Promotion) -> Iterator[Promotion]:
        """The entries that were in force before `entry`, latest first, without what was rolled back."""
        while True:
            while entry.restores is not None:
                entry = self.entry(entry.restores)
            if entry.number == 1:
                return
            entry = self.entry(entry.number - 1)
            yield entry

    def _there(self, number: int) -> bool:
        return self._store.size(_path(number)) is not None

    def _decode(self, number: int, data: bytes) -> Promotion:
        try:
            fields = json.loads(data)
            schema = fields.get("schema") if isinstance(fields, dict) else None
            if isinstance(schema, int) and schema > SCHEMA:
                raise RegistryError(
                    f"promotion {number} has schema {schema}, newer than the {SCHEMA} that this version of Perdure "
                    "reads: upgrade Perdure"
                )
            entry = Promotion.model_validate(fields)
        except (ValidationError, ValueError, RecursionError) as error:
            raise RegistryError(
                f"{_path(number)} in the registry {self._store.name} cannot be read: {error}. Restore it; if it is the "
                "last entry, delete it to return to the one before"
            ) from error
        if entry.number != number:
            raise RegistryError(
                f"{_path(number)} in the registry {self._store.name} is promotion {entry.number}: restore the right one"
            )
        return entry


def _path(number: int) -> str:
    return f"{FOLDER}/{number:08d}.json"
