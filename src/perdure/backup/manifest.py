"""What a backup holds: a list of its files with their hashes, written last."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from perdure.errors import StoreCorrupt, UsageError

SCHEMA = 1

FILE = "backup.json"

Part = Literal["memory", "stream", "registry"]

PARTS: tuple[Part, ...] = ("memory", "stream", "registry")
"""In the order in which they are copied: what points to something is copied before what it points to."""

BLOCK = 1 << 20


class FileEntry(BaseModel):
    """One file of a backup."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    size: Annotated[int, Field(ge=0)]
    """Bytes."""
    sha256: str


class Manifest(BaseModel):
    """What a backup holds."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    backup_schema: Annotated[int, Field(alias="schema", ge=1)] = SCHEMA
    made: float
    """When it was begun, in seconds since the epoch: what came later is not in it."""
    release: str
    """Of Perdure, that made it."""
    parts: tuple[Part, ...]
    digest: str | None = None
    """Of the memory; None where that was not copied."""
    offset: Mapping[str, int] = {}
    """Position in each partition from which the memory goes on."""
    champion: str | None = None
    """What the registry says is served; None where nothing is, or the registry was not copied."""
    files: Mapping[str, FileEntry]

    def encode(self) -> bytes:
        """The manifest as JSON in UTF-8."""
        return self.model_dump_json(by_alias=True, indent=1).encode()

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """The manifest of the backup in `folder`.

        Raises:
            UsageError: there is no backup, or one of a newer release.
            StoreCorrupt: it cannot be read.
        """
        try:
            fields = json.loads((folder / FILE).read_bytes())
        except FileNotFoundError as error:
            raise UsageError(
                f"{folder} is no backup, it has no {FILE}: give a folder that `perdure backup` has finished"
            ) from error
        except (ValueError, RecursionError) as error:
            raise StoreCorrupt(f"{folder / FILE} is not JSON ({error}): take another backup") from error
        schema = fields.get("schema") if isinstance(fields, dict) else None
        if isinstance(schema, int) and schema > SCHEMA:
            raise UsageError(
                f"the backup {folder} has schema {schema}, newer than the {SCHEMA} that this version reads: upgrade "
                "Perdure"
            )
        try:
            return cls.model_validate(fields)
        except ValidationError as error:
            raise StoreCorrupt(f"{folder / FILE} cannot be read ({error}): take another backup") from error

    def check(self, folder: Path) -> None:
        """Reads every file of the backup in `folder`.

        Raises:
            StoreCorrupt: one is missing, altered, or not of this backup; nothing else was done.
        """
        there = files_in(folder) - {FILE}
        if there != set(self.files):
            odd = sorted(there ^ set(self.files))
            raise StoreCorrupt(
                f"the backup {folder} is not what was written: {', '.join(odd[:5])} "
                f"{'is' if len(odd) == 1 else 'are'} missing or do not belong to it: take another backup"
            )
        for name, wanted in self.files.items():
            found = entry_of(folder / name)
            if found != wanted:
                raise StoreCorrupt(
                    f"{name} in the backup {folder} is altered: its sha256 is {found.sha256} ({found.size} bytes), but "
                    f"{wanted.sha256} ({wanted.size} bytes) was written: take another backup"
                )


def files_in(folder: Path) -> set[str]:
    """Paths of all files below `folder`, relative to it."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def entry_of(file: Path) -> FileEntry:
    """Size and hash of `file`, read block by block."""
    digest, size = hashlib.sha256(), 0
    with file.open("rb") as opened:
        while block := opened.read(BLOCK):
            digest.update(block)
            size += len(block)
    return FileEntry(size=size, sha256=digest.hexdigest())
