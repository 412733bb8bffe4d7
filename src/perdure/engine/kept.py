"""What is made of files, once for all versions that have them."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Generic, TypeVar
from weakref import WeakValueDictionary

from perdure.file_identity import FileIdentity

REMEMBERED = 256
"""Files whose hashes are remembered: those asked for last."""

T = TypeVar("T")


class Held(Generic[T]):
    """Something that is kept as long as somebody holds this."""

    __slots__ = ("__weakref__", "value")

    def __init__(self, value: T) -> None:
        self.value = value


class Kept(Generic[T]):
    """Makes something of a file, and gives the same to all who ask while one of them holds it.

    Files are told apart by what is in them. One that has not changed since it was last asked for is not read again, so
    that a version with the encoder of the one before is loaded at once.

    Args:
        make: of a file's content, its path (for what it says when it cannot), and what else was given.
    """

    def __init__(self, make: Callable[..., T]) -> None:
        self._make = make
        self._held: WeakValueDictionary[tuple[bytes, Hashable], Held[T]] = WeakValueDictionary()
        self._hashes: OrderedDict[FileIdentity, bytes] = OrderedDict()

    def of(self, file: Path, *more: Hashable) -> Held[T]:
        """What is made of `file` and `more`.

        Raises:
            OSError: it cannot be read.
        """
        identity = FileIdentity.of(file)
        known = self._hashes.get(identity)
        held = None if known is None else self._held.get((known, more))
        if held is None:
            content = file.read_bytes()
            key = hashlib.sha256(content).digest(), more
            held = self._held.get(key)
            if held is None:
                held = self._held[key] = Held(self._make(content, file, *more))
            self._hashes[identity] = key[0]
            while len(self._hashes) > REMEMBERED:
                self._hashes.popitem(last=False)
        return held
