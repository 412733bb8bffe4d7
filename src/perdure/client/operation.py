"""What can be asked of the API, and how often it may be."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar
from urllib.parse import quote

from pydantic import TypeAdapter

from perdure.client.answers import (
    Embeddings,
    EncodedEmbeddings,
    Erasure,
    Prediction,
    Predictions,
    Promoted,
    Readiness,
    Receipt,
    Versions,
)
from perdure.errors import ApiBusy, ApiError, ApiRefused, ApiTimeout, ApiUnreachable, UsageError

T = TypeVar("T")

NOT_READY = (ApiBusy, ApiTimeout, ApiUnreachable)
"""What `ready` takes for the answer no."""


@dataclass(frozen=True, slots=True)
class Said:
    """What the label of one prediction really is.

    Args:
        id: of the prediction.
        label: its real label, which may be one that nobody has used before.
        source: who says so; the API's default is `user`.
    """

    id: str
    label: str
    source: str | None = None


@dataclass(frozen=True, slots=True)
class Wanted:
    """How predictions are wanted; None as the API is set."""

    top: int | None = None
    subject: str | None = None
    labels: Collection[str] | None = None
    abstain: bool | None = None
    neighbours: int | bool | None = None

    def fields(self) -> dict[str, Any]:
        """The fields of a request; those that are None are not sent.

        Raises:
            UsageError: the labels are one string.
        """
        if isinstance(self.labels, str):
            raise UsageError(f"the labels are one string, {self.labels!r}: give a list, of one label if it is one")
        # True is a number too.
        counted = self.neighbours if self.neighbours is not True and self.neighbours is not False else None
        return {
            "top_k": self.top,
            "subject": self.subject,
            "labels": None if self.labels is None else list(self.labels),
            "abstain": self.abstain,
            "explain": None if self.neighbours is None or self.neighbours is False else "neighbours",
            "neighbours": counted,
        }


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer over HTTP; names of headers in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Operation(Generic[T]):
    """One request, and what its answer means."""

    name: str
    """The method of the client."""
    method: str
    path: str
    """As it is sent, below the API's URL."""
    body: bytes | None
    repeatable: bool
    """Whether it may be sent again when the first may have been done. Where not, it is sent again only while nothing of
    it can have been done: no byte was sent, or the API was asked too often to take it."""
    read: Callable[[bytes], T]
    """The value of an answer's body; raises `ValueError` where it is none."""
    once: bool = False
    """Whether one try is enough, whatever the client's patience."""


_prediction = TypeAdapter(Prediction)
_predictions = TypeAdapter(Predictions)
_embeddings = TypeAdapter(EncodedEmbeddings)
_receipt = TypeAdapter(Receipt)
_versions = TypeAdapter(Versions)
_promoted = TypeAdapter(Promoted)
_erasure = TypeAdapter(Erasure)
_readiness = TypeAdapter(Readiness)


def predict_one(text: str, wanted: Wanted) -> Operation[Prediction]:
    # Repeated: computing changes nothing. Both may be recorded, under two ids of which the caller hears one: the other
    # is an interaction without feedback, and counts once more as traffic.
    body = _json(text=text, **wanted.fields())
    return Operation("predict", "POST", "/v1/predict", body, True, _prediction.validate_json)


def predict_many(texts: Sequence[str], wanted: Wanted) -> Operation[tuple[Prediction, ...]]:
    body = _json(texts=list(texts), **wanted.fields())
    return Operation("predict", "POST", "/v1/predict", body, True, _in_order(len(texts)))


def embeddings(texts: Sequence[str]) -> Operation[Embeddings]:
    # Repeated: computing changes nothing, and nothing is recorded.
    if isinstance(texts, str):
        raise UsageError(f"the texts are one string, {texts[:40]!r}: give a list, of one text if it is one")
    body = _json(texts=list(texts), encoding="base64")

    def read(found: bytes) -> Embeddings:
        return _embeddings.validate_json(found).decoded(len(texts))

    return Operation("embeddings", "POST", "/v1/embeddings", body, True, read)


def _in_order(texts: int) -> Callable[[bytes], tuple[Prediction, ...]]:
    def read(body: bytes) -> tuple[Prediction, ...]:
        found = _predictions.validate_json(body).predictions
        if len(found) != texts:
            raise ValueError(f"{len(found)} predictions for {texts} texts")
        return found

    return read


def feedback_of(said: str | list[Said] | tuple[Said, ...], label: str | None, source: str | None) -> Operation[Receipt]:
    # Repeated: the same label for the same prediction changes nothing, however often it is said.
    if isinstance(said, str):
        if label is None:
            raise UsageError(f"feedback on {said!r} has no label: give feedback(id, label)")
        body = _json(id=said, label=label, source=source)
    elif label is not None or source is not None:
        raise UsageError(f"{len(said)} Said(...) and one label or source beside them: give each its own")
    else:
        body = _json(feedback=[_given(id=one.id, label=one.label, source=one.source) for one in said])
    return Operation("feedback", "POST", "/v1/feedback", body, True, _receipt.validate_json)


def versions() -> Operation[Versions]:
    # Repeated: it only reads.
    return Operation("versions", "GET", "/v1/versions", None, True, _versions.validate_json)


def promote(version: str, reason: str | None) -> Operation[Promoted]:
    # Not repeated: the API gives each promotion the next free number of the log, so a second one is a new entry, and
    # would undo what somebody else has promoted or rolled back in between.
    path = f"/v1/versions/{_quoted('version', version)}/promote"
    return Operation("promote", "POST", path, _json(reason=reason), False, _promoted.validate_json)


def rollback(reason: str | None) -> Operation[Promoted]:
    # Not repeated: done twice it goes back by two champions.
    return Operation("rollback", "POST", "/v1/rollback", _json(reason=reason), False, _promoted.validate_json)


def forget(subject: str) -> Operation[Erasure]:
    # Repeated: what is gone stays gone. A second request also forgets what came between the two.
    path = f"/v1/subjects/{_quoted('subject', subject)}"
    return Operation("forget", "DELETE", path, None, True, _erasure.validate_json)


def ready() -> Operation[Readiness]:
    # One try: the answer no is an answer, and whoever asks will ask again.
    return Operation("ready", "GET", "/readyz", None, True, _readiness.validate_json, once=True)


def unready(error: ApiError) -> Readiness:
    """The answer no, in the API's own words where it gave some."""
    return Readiness(False, error.detail if isinstance(error, ApiRefused) else str(error))


def _json(**fields: Any) -> bytes:
    # In ASCII: half of a surrogate pair then reaches the API, which says in words what is wrong with it.
    return json.dumps(_given(**fields), ensure_ascii=True, separators=(",", ":")).encode("ascii")


def _given(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _quoted(what: str, name: str) -> str:
    if not name.strip():
        raise UsageError(f"the {what} is {name!r}: give its name")
    try:
        # Dots too: a proxy would take `..` for the folder above.
        return quote(name, safe="").replace(".", "%2E")
    except UnicodeEncodeError as error:
        raise UsageError(
            f"the {what} {name!r} holds half of a surrogate pair at character {error.start}, which is not Unicode: "
            "give whole characters"
        ) from error
