"""What goes over the wire: requests and answers of /v1."""

from __future__ import annotations

import difflib
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, model_validator
from pydantic_core import PydanticCustomError

from perdure.config import MAX_TEXTS
from perdure.records import MAX_LABEL_CHARS, MAX_TEXT_BYTES
from perdure_services.serving.refusal import TOO_LARGE

MAX_FEEDBACK = 1000
"""Most labels in one request."""

MAX_NAME_CHARS = 100

MAX_NEIGHBOURS = 100

MAX_ALLOWED_LABELS = 10_000
"""Most labels that a request may restrict its answers to."""


def _encoded(text: str) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise PydanticCustomError(
            "surrogate",
            "holds half of a surrogate pair ({half}) at character {place}, which is not Unicode: send whole characters",
            {"half": f"U+{ord(text[error.start]):04X}", "place": error.start},
        ) from error


def _text(text: str) -> str:
    if not text.strip():
        raise PydanticCustomError("empty", "the text is empty: send at least one word")
    # A character has at least one byte: what has too many need not be encoded to be refused.
    if len(text) > MAX_TEXT_BYTES or len(_encoded(text)) > MAX_TEXT_BYTES:
        raise PydanticCustomError(
            TOO_LARGE,
            "the text has more than the {limit} bytes allowed: send the part that matters",
            {"limit": MAX_TEXT_BYTES},
        )
    return text


def _whole(number: Any) -> Any:
    # JSON knows one kind of number, and JSON Schema calls 3.0 an integer.
    return int(number) if isinstance(number, float) and number.is_integer() else number


def _name(name: str) -> str:
    if not name.strip():
        raise PydanticCustomError("empty", "is empty")
    if "\0" in name:
        raise PydanticCustomError("nul", "holds a NUL character")
    return name


def _label(name: str) -> str:
    # As records have them: blanks around a label are no part of it.
    return _name(name).strip()


_BLANK = r"\s\u001c-\u001f\u0085"
"""What Python takes for blank, in a pattern of JSON Schema."""

_NAME = Field(json_schema_extra={"pattern": rf"^[^\u0000]*[^{_BLANK}\u0000][^\u0000]*$"})

Text = Annotated[
    str,
    AfterValidator(_text),
    Field(
        description="What to classify; at most 1 MB of UTF-8.",
        json_schema_extra={"pattern": f"[^{_BLANK}]", "maxLength": MAX_TEXT_BYTES},
    ),
]
Texts = Annotated[tuple[Text, ...], Field(min_length=1, max_length=MAX_TEXTS, fail_fast=True)]
Id = Annotated[str, Field(max_length=MAX_NAME_CHARS), AfterValidator(_name), _NAME]
LabelName = Annotated[str, Field(max_length=MAX_LABEL_CHARS), AfterValidator(_label), _NAME]
Subject = Annotated[str, Field(max_length=200), AfterValidator(_name), _NAME]
Reason = Annotated[str, Field(max_length=500), AfterValidator(_name), _NAME]
AllowedLabels = Annotated[tuple[LabelName, ...], Field(min_length=1, max_length=MAX_ALLOWED_LABELS, fail_fast=True)]
Flag = Annotated[bool, Field(strict=True)]
TopK = Annotated[int, Field(strict=True, ge=1, le=1000), BeforeValidator(_whole)]


class StrictRequest(BaseModel):
    """Part of a request; a field that it does not know is refused with the nearest one that it does."""

    model_config = ConfigDict(frozen=True, json_schema_extra={"additionalProperties": False})

    @model_validator(mode="before")
    @classmethod
    def _known_fields(cls, fields: Any) -> Any:
        if isinstance(fields, dict):
            for name in fields:
                if name not in cls.model_fields:
                    near = difflib.get_close_matches(name[:MAX_NAME_CHARS], cls.model_fields, n=1, cutoff=0.0)[0]
                    raise PydanticCustomError(
                        "unknown_field",
                        "unknown field {name}: did you mean '{near}'?",
                        {"name": ascii(name[:MAX_NAME_CHARS]), "near": near},
                    )
        return fields


Explanation = Literal["neighbours"]


def _either(one: str, other: str, *, beside: str = "") -> ConfigDict:
    """Describes that the fields `one` are given (and, if wanted, those `beside`), or `other`; null is none."""

    def only(given: str, absent: str) -> dict[str, JsonValue]:
        fields: dict[str, JsonValue] = {name: {"not": {"type": "null"}} for name in given.split()}
        fields.update({name: {"type": "null"} for name in absent.split()})
        return {"required": [*given.split()], "properties": fields}

    variants: list[JsonValue] = [only(one, other), only(other, f"{one} {beside}")]
    return ConfigDict(json_schema_extra={"additionalProperties": False, "oneOf": variants})


class PredictRequest(StrictRequest):
    """One text, or several that are answered by the same version."""

    model_config = _either("text", "texts")

    text: Text | None = None
    texts: Texts | None = None
    top_k: TopK | None = None
    """How many of the most probable labels to return, beside the best."""
    labels: AllowedLabels | None = None
    """Answer only with one of these; confidences are shares of the probability that they have together."""
    abstain: Flag | None = None
    """Say of each answer whether its confidence is below the version's threshold; by default as the server is set."""
    explain: Explanation | None = None
    """`neighbours`: tell with each answer the nearest samples that memory holds. The query parameter of this name does
    the same. Where keys are asked for, the key needs the scope `explain` too: these are texts that people have sent."""
    neighbours: Annotated[int, Field(strict=True, ge=1, le=MAX_NEIGHBOURS), BeforeValidator(_whole)] | None = None
    """How many; by default as the server is set."""
    subject: Subject | None = None
    """Whose data this is; `DELETE /v1/subjects/{id}` goes by it."""

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.text is None) == (self.texts is None):
            raise PydanticCustomError("one_of", "send either 'text' or 'texts'")
        return self


class Ranked(BaseModel):
    """One of the most probable labels."""

    label: str
    confidence: float


class NeighbourAnswer(BaseModel):
    """A remembered sample that is near a text."""

    text: str
    label: str
    similarity: float
    """Cosine similarity, at most 1."""


class PredictionAnswer(BaseModel):
    """One prediction."""

    id: str
    """What feedback names."""
    label: str
    """The best guess, also where the version abstains; it is what is recorded."""
    confidence: float
    abstained: bool | None = None
    """True where the confidence is below the version's threshold; absent where nobody asked, or the version has none:
    it is older than thresholds are, or was judged on too few rows."""
    version: str
    """The version that computed it."""
    recorded: bool
    """True when the interaction would survive a crash; false when it waits, was dropped, or recording is off."""
    top: tuple[Ranked, ...] | None = None
    neighbours: tuple[NeighbourAnswer, ...] | None = None
    """The nearest remembered samples, nearest first; absent where nobody asked."""


class PredictionsAnswer(BaseModel):
    """The predictions for `texts`, in their order."""

    predictions: tuple[PredictionAnswer, ...]
    version: str


class FeedbackItem(StrictRequest):
    """What the label of one prediction really is."""

    id: Id
    label: LabelName
    source: Annotated[str, Field(max_length=200), AfterValidator(_name), _NAME] = "user"


class FeedbackRequest(StrictRequest):
    """One label, or several in `feedback`."""

    model_config = _either("id label", "feedback", beside="source")

    id: Id | None = None
    label: LabelName | None = None
    source: Annotated[str, Field(max_length=200), AfterValidator(_name), _NAME] | None = None
    feedback: (
        Annotated[tuple[FeedbackItem, ...], Field(min_length=1, max_length=MAX_FEEDBACK, fail_fast=True)] | None
    ) = None

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        single = (self.id, self.label, self.source)
        if self.feedback is not None and any(part is not None for part in single):
            raise PydanticCustomError("one_of", "send either 'id' and 'label', or 'feedback'")
        if self.feedback is None and (self.id is None or self.label is None):
            raise PydanticCustomError("one_of", "send 'id' and 'label', or 'feedback' with a list of them")
        return self

    def items(self) -> tuple[FeedbackItem, ...]:
        """All labels of the request."""
        if self.feedback is not None:
            return self.feedback
        assert self.id is not None and self.label is not None  # noqa: PT018 (checked when built)
        return (FeedbackItem(id=self.id, label=self.label, source=self.source or "user"),)


class FeedbackAnswer(BaseModel):
    """Whether the labels would survive a crash; if not, they wait or found no room: say them again, that is safe."""

    recorded: bool


class ReasonRequest(StrictRequest):
    """Why a version is promoted or rolled back."""

    reason: Reason | None = None


class PromotionAnswer(BaseModel):
    """One entry of the promotion log."""

    number: int
    version: str
    kind: str
    at: float
    """Seconds since the epoch."""
    by: str
    reason: str


class PromotedAnswer(BaseModel):
    """The promotion that was written; serving swaps as soon as the version is loaded."""

    promotion: PromotionAnswer
    serving: str | None
    """The version that answers now."""
    knows_forgotten: bool | None
    """Whether its head still knows rows that were forgotten after it was made; the trainer's next turn makes one
    without them. Null where the registry could not be asked."""


class ServingAnswer(BaseModel):
    """What answers now."""

    version: str
    promotion: int
    since: float
    labels: int


class VersionAnswer(BaseModel):
    """A version's card in short."""

    name: str
    parent: str | None = None
    kind: str | None = None
    created: float | None = None
    labels: int | None = None
    metrics: dict[str, float] = {}
    verdict: str | None = None
    """The judge's verdict in one sentence."""
    problem: str | None = None
    """Why the card cannot be read."""


class VersionsAnswer(BaseModel):
    """The champion, what is served, the promotion log and the versions."""

    champion: PromotionAnswer | None
    serving: ServingAnswer | None
    problem: str | None
    """Why what is served is not the champion."""
    promotions: tuple[PromotionAnswer, ...]
    """Newest last."""
    versions: tuple[VersionAnswer, ...]


class ErasureAnswer(BaseModel):
    """What forgetting a subject reaches, and when."""

    subject: str
    removed: int
    """Stream entries removed now."""
    message: str
