"""What travels: predictions made, what people said of them, and requests to forget.

Records are frozen and encoded as one JSON object each, so that any tool can read them. Fields that this version does
not know are kept out of the way. A record that cannot be read raises `RecordError`; whoever reads a stream puts it
into quarantine with that reason.
"""

from __future__ import annotations

import hashlib
import json
import time
import unicodedata
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import uuid_utils
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError, field_validator

from perdure.errors import RecordError

SCHEMA = 1
"""Version of the record encoding written by this code."""

MAX_TEXT_BYTES = 1_000_000
"""Longest text, in UTF-8 bytes, that a record may carry; a longer one is refused before it is recorded."""

MAX_LABEL_CHARS = 200

Float = NDArray[np.float32]


def whole_characters(text: str) -> str:
    """`text` with lone surrogates, which no encoding can carry, replaced by U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _whole(value: Any) -> Any:
    # Before anything else: pydantic cannot even measure a string that no encoding can carry.
    return whole_characters(value) if isinstance(value, str) else value


def _bare(value: Any) -> Any:
    # "refund " and "refund" look the same wherever a person reads them, and would be two classes.
    return whole_characters(value).strip() if isinstance(value, str) else value


Label = Annotated[str, Field(min_length=1, max_length=MAX_LABEL_CHARS), BeforeValidator(_bare)]
Subject = Annotated[str, Field(min_length=1, max_length=1000), BeforeValidator(_whole)]


def new_id() -> str:
    """A time-ordered UUID (version 7), as text."""
    return str(uuid_utils.uuid7())


def now() -> float:
    """Seconds since the epoch: the event time of what happens now."""
    return time.time()


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    record_schema: Annotated[int, Field(alias="schema", ge=1)] = SCHEMA
    time: float
    """Event time, seconds since the epoch."""


class Interaction(_Record):
    """One prediction that was served."""

    kind: Literal["interaction"] = "interaction"
    id: Annotated[str, Field(min_length=1, max_length=100)]
    text: str
    label: Label | None = None
    """What was predicted; None where nothing was serving yet (imported rows)."""
    confidence: Annotated[float, Field(ge=0, le=1)] = 0.0
    version: str | None = None
    """The model version that answered."""
    top: tuple[tuple[str, float], ...] = ()
    """Most probable labels with their probabilities, best first; empty when not asked for."""
    embedding: str | None = None
    """float16 little-endian, base64; in the feature space of `version`."""
    subject: Subject | None = None
    """Whose data this is; what `forget` goes by."""

    @field_validator("text")
    @classmethod
    def _text_is_usable(cls, text: str) -> str:
        text = whole_characters(text)
        if not text.strip():
            raise ValueError("text is empty")
        size = len(text.encode("utf-8"))
        if size > MAX_TEXT_BYTES:
            raise ValueError(f"text has {size} bytes, more than the {MAX_TEXT_BYTES} allowed")
        return text


class Feedback(_Record):
    """What somebody said the label of an interaction is. The last one, by time and then source, wins."""

    kind: Literal["feedback"] = "feedback"
    interaction: Annotated[str, Field(min_length=1, max_length=100)]
    """Id of the interaction that this is about."""
    label: Label
    source: Annotated[str, Field(max_length=200)] = "user"


class Erasure(_Record):
    """A request to forget everything of a subject up to `time`."""

    kind: Literal["erasure"] = "erasure"
    subject: Subject


@dataclass(frozen=True, slots=True)
class Sample:
    """What memory keeps of (text, label) pairs."""

    key: str
    """`sample_key(label, text)`: names the pair, whatever was asserted of it how often."""
    text: str
    label: str
    weight: float
    """How much of the past it stands for: 1, shared among near-duplicates."""
    held_out: bool
    """`is_held_out(key)`: evidence for the judge, never trained on."""
    time: float
    """Event time of the latest assertion, seconds since the epoch."""
    provenance: tuple[str, ...] = ()
    """Ids of interactions that assert it; the first few by a keyed hash."""
    copies: int = 1
    """Interactions that assert it, as far as they are known: so often it is in the head's statistics."""


def normalise(text: str) -> str:
    """Text as it is compared: NFKC, case folded, white space collapsed."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def sample_key(label: str, text: str) -> str:
    """Names the pair of a label and a normalised text; 32 hexadecimal digits."""
    return hashlib.blake2b(f"{label}\0{normalise(text)}".encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def is_held_out(key: str, share: float) -> bool:
    """Whether the pair of that `sample_key` is evidence for the judge: a fixed share of all pairs, by a hash.

    It depends on nothing else, neither on time nor on what memory holds, so what once was held out is never trained on,
    and the other way round.
    """
    return _place(key, b"held out") < share * 2**64


def is_early(key: str) -> bool:
    """Whether an update learns from the pair of that `sample_key` in its first half, by a hash: half of all pairs."""
    return _place(key, b"early") < 2**63


def _place(key: str, purpose: bytes) -> int:
    """Where a key falls among 2⁶⁴ places, for each purpose elsewhere."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8, person=purpose).digest(), "big")


Record = Interaction | Feedback | Erasure

_RECORD: TypeAdapter[Record] = TypeAdapter(Annotated[Record, Field(discriminator="kind")])


def encode(record: Record) -> bytes:
    """The record as one JSON object in UTF-8, without a newline."""
    return record.model_dump_json(by_alias=True, exclude_none=True).encode()


def decode(payload: bytes) -> Record:
    """The record in `payload`.

    Raises:
        RecordError: not UTF-8, not JSON, of a newer schema, of an unknown kind, or with a field out of range.
    """
    try:
        fields: Any = json.loads(payload.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise RecordError(f"not UTF-8: {error.reason} at byte {error.start}") from error
    except (ValueError, RecursionError) as error:
        raise RecordError(f"not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise RecordError(f"not a JSON object but {type(fields).__name__}")
    schema = fields.get("schema", SCHEMA)
    if isinstance(schema, int) and schema > SCHEMA:
        raise RecordError(f"schema {schema} is newer than the {SCHEMA} that this version reads: upgrade Perdure")
    try:
        return _RECORD.validate_python(fields)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise RecordError(f"field {where or '(record)'}: {first['msg']}") from error
