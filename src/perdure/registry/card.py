"""The card of a version: where it comes from, what it was judged by, and the hash of each of its files."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from perdure import __version__
from perdure.errors import RegistryError, VersionDamaged
from perdure.records import now

SCHEMA = 1
"""Version of the card's encoding written by this code."""

CARD = "card.json"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def is_version_name(name: str) -> bool:
    """Whether a version may be called `name`: up to 100 letters, digits, dots, hyphens and underscores."""
    return _NAME.fullmatch(name) is not None


def is_file_name(name: str) -> bool:
    """Whether a version's file may be called `name`: parts as in a version's name, joined by slashes."""
    return name != CARD and all(_NAME.fullmatch(part) for part in name.split("/"))


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class EncoderCard(_Part):
    """The encoder that a version was made with, and only fits."""

    name: str
    fingerprint: str


class FileCard(_Part):
    """What a file must be."""

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    size: Annotated[int, Field(ge=0)]
    """Bytes."""
    shared: bool = False
    """It stands once in the registry, under its hash, for all versions that have it."""

    @classmethod
    def of(cls, data: bytes, *, shared: bool = False) -> FileCard:
        return cls(sha256=hashlib.sha256(data).hexdigest(), size=len(data), shared=shared)

    def describes(self, data: bytes) -> bool:
        """Whether `data` is what was written."""
        return self.size == len(data) and self.sha256 == hashlib.sha256(data).hexdigest()


class Card(_Part):
    """What is known of one version. Fields that this code does not know are ignored when it is read."""

    card_schema: Annotated[int, Field(alias="schema", ge=1)] = SCHEMA
    name: str
    parent: str | None = None
    """The version that this one was made from."""
    kind: Literal["first", "head", "lora"]
    created: float = Field(default_factory=now)
    """Seconds since the epoch."""
    perdure: str = __version__
    """The release of Perdure that made it."""
    encoder: EncoderCard
    labels: tuple[str, ...]
    offset: Mapping[str, int] = {}
    """The first stream position that it does not know."""
    memory_digest: str | None = None
    unlearned: int = 0
    """What erasures had taken out of its head by then, as memory counts it."""
    turn: int = 0
    seed: int = 0
    config: Mapping[str, Any] = {}
    metrics: Mapping[str, float] = {}
    notes: tuple[str, ...] = ()
    """What a person should know of how it was made, a sentence each."""
    verdict: Mapping[str, Any] | None = None
    """What the judge said of it: outcome, sentence, checks."""
    files: Mapping[str, FileCard] = {}
    """Each file of the version; filled in when it is written."""

    @field_validator("name")
    @classmethod
    def _name_is_usable(cls, name: str) -> str:
        if not is_version_name(name):
            raise ValueError(f"{name!r} cannot name a version: use up to 100 of A-Z a-z 0-9 . _ - and no dot in front")
        return name

    @field_validator("files")
    @classmethod
    def _files_stay_inside(cls, files: Mapping[str, FileCard]) -> Mapping[str, FileCard]:
        for name in files:
            if not is_file_name(name):
                raise ValueError(f"{name!r} cannot name a file of a version")
        return files

    def encode(self) -> bytes:
        """The card as JSON in UTF-8, with a hash over itself."""
        # By way of text, so that what is not a number in a config or verdict becomes null, which every tool reads.
        fields = json.loads(self.model_dump_json(by_alias=True))
        return json.dumps({**fields, "sha256": _seal(fields)}, indent=1, ensure_ascii=True).encode()

    @classmethod
    def decode(cls, name: str, data: bytes) -> Card:
        """The card that `data`, read for the version `name`, holds.

        Raises:
            VersionDamaged: it is not what was written.
            RegistryError: it was written by a newer version of Perdure.
        """
        try:
            fields = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise _damaged(name, f"it is not JSON: {error}") from error
        if not isinstance(fields, dict):
            raise _damaged(name, f"it holds {type(fields).__name__}, not a JSON object")
        schema = fields.get("schema")
        if isinstance(schema, int) and schema > SCHEMA:
            raise RegistryError(
                f"the card of version {name} has schema {schema}, newer than the {SCHEMA} that this version of Perdure "
                "reads: upgrade Perdure"
            )
        written = fields.pop("sha256", None)
        if written != _seal(fields):
            raise _damaged(name, f"its sha256 is {_seal(fields)}, not {written} as was written")
        try:
            card = cls.model_validate(fields)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            raise _damaged(name, f"field {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
        if card.name != name:
            raise _damaged(name, f"it is the card of version {card.name}")
        return card


def _seal(fields: Mapping[str, Any]) -> str:
    canonical = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


def _damaged(name: str, why: str) -> VersionDamaged:
    return VersionDamaged(f"{CARD} of version {name} is damaged: {why}. Restore it, or promote another version")
