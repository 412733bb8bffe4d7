"""What a stream keeps of a record: its encoding, and what it is found by when somebody asks to be forgotten."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pydantic_core import PydanticSerializationError

from perdure.errors import RecordError
from perdure.records import Feedback, Interaction, Record, encode


@dataclass(frozen=True, slots=True)
class Payload:
    """One encoded record with the columns that `forget` goes by."""

    body: bytes
    time: float
    interaction: str | None
    """Id of the interaction that this is, or that this is feedback on; None for what concerns all (an erasure)."""
    subject: str | None
    """Whose interaction this is; None for feedback, which goes with its interaction."""


def payloads(records: Sequence[Record]) -> tuple[Payload, ...]:
    """The records, encoded; all of them before the first one is stored.

    Raises:
        RecordError: one cannot be encoded (text with half a surrogate pair); none must be stored.
    """
    return tuple(_payload(record) for record in records)


def _payload(record: Record) -> Payload:
    try:
        body = encode(record)
    except PydanticSerializationError as error:
        raise RecordError(
            f"the {record.kind} {_name(record)!r} cannot be encoded: {error}. Replace what is not Unicode text in it"
        ) from error
    if isinstance(record, Interaction):
        return Payload(body, record.time, interaction=record.id, subject=record.subject)
    if isinstance(record, Feedback):
        return Payload(body, record.time, interaction=record.interaction, subject=None)
    return Payload(body, record.time, interaction=None, subject=None)


def _name(record: Record) -> str:
    if isinstance(record, Interaction):
        return record.id
    return record.interaction if isinstance(record, Feedback) else record.subject
