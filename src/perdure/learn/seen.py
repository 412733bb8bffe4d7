"""Which rows an adapter has been offered, to be trained on or not."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from perdure.errors import VersionDamaged

SEEN_FILE = "seen.safetensors"

MOST = 200_000
"""Keys that are kept, the latest: 3.2 MB."""


@dataclass(frozen=True, slots=True)
class Seen:
    """Sample keys of all rows that were there when an adapter was trained, and when what it came from was.

    Not of the rows it was trained on alone: what the gate skips is what the champion answers well, and a challenger
    that was asked about that would be asked about its champion's best side.
    """

    keys: tuple[str, ...] = ()
    """Oldest first, each once."""

    def beside(self, keys: Iterable[str]) -> Seen:
        """These and `keys`, of both the latest."""
        new = dict.fromkeys(keys)
        old = [key for key in self.keys if key not in new]
        return Seen((*old, *new)[-MOST:])

    def files(self) -> dict[str, bytes]:
        packed = np.frombuffer(bytes.fromhex("".join(self.keys)), dtype=np.uint8).reshape(len(self.keys), 16)
        return {SEEN_FILE: save({"keys": packed.copy()})}

    @classmethod
    def load(cls, folder: Path) -> Seen | None:
        """What the adapter of the version in `folder` was offered; None where it has none, or is older than this file.

        Raises:
            VersionDamaged: the file cannot be read.
        """
        path = folder / SEEN_FILE
        if not path.exists():
            return None
        try:
            return cls(tuple(row.tobytes().hex() for row in load_file(path)["keys"]))
        except (OSError, KeyError, SafetensorError) as error:
            raise VersionDamaged(f"the rows that an adapter has seen cannot be read from {path}: {error}") from error
