"""An inference request of the Open Inference Protocol, whichever way it came: REST and gRPC only translate.

https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_rest.md
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version as installed
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field
from pydantic_core import PydanticCustomError

from perdure.config import MAX_TEXTS
from perdure_services.serving.refusal import Refusal
from perdure_services.serving.schemas import AllowedLabels, Flag, Id, StrictRequest, Subject, Text, TopK
from perdure_services.serving.service import Answered, Service

MODEL = "perdure"

INPUT = "text"

Datatype = Literal["BYTES", "FP32", "BOOL"]
OutputName = Literal["label", "confidence", "id", "abstained", "top_label", "top_confidence"]

OUTPUTS: dict[OutputName, tuple[Datatype, tuple[int, ...]]] = {
    "label": ("BYTES", (-1,)),
    "confidence": ("FP32", (-1,)),
    "id": ("BYTES", (-1,)),
    "abstained": ("BOOL", (-1,)),
    "top_label": ("BYTES", (-1, -1)),
    "top_confidence": ("FP32", (-1, -1)),
}
"""Type and shape of each output. `id` is what feedback names; `top_*` hold the most probable labels, best first."""

ALWAYS: tuple[OutputName, ...] = ("label", "confidence", "id")
"""Outputs that are sent where a request names none."""

RANKED: tuple[OutputName, ...] = ("top_label", "top_confidence")
"""Those that are sent too where it asks for `top_k`."""


@dataclass(frozen=True, slots=True)
class Output:
    """One tensor of an answer."""

    name: OutputName
    shape: tuple[int, ...]
    data: tuple[str | float | bool, ...]
    """Flat, in row-major order."""

    @property
    def datatype(self) -> Datatype:
        return OUTPUTS[self.name][0]


@dataclass(frozen=True, slots=True)
class Inferred:
    """The answer to an inference request."""

    version: str
    outputs: tuple[Output, ...]


def _listed(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise PydanticCustomError(
            "json", """is no JSON array of labels, as '["first","second"]' is: {reason}""", {"reason": str(error)}
        ) from error


class InferParameters(StrictRequest):
    """Parameters of a whole request; the names are those of the fields of /v1/predict."""

    labels: Annotated[AllowedLabels, BeforeValidator(_listed)] | None = None
    """A parameter is no list: a string with a JSON array of labels."""
    top_k: TopK | None = None
    abstain: Flag | None = None
    subject: Subject | None = None
    binary_data_output: Flag = False
    """REST with binary tensors: send the outputs so."""


class InputTensor(BaseModel):
    """Texts."""

    name: Literal["text"]
    shape: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1, max_length=2)]
    datatype: Literal["BYTES"]
    data: Annotated[
        tuple[Text | Annotated[tuple[Text, ...], Field(max_length=MAX_TEXTS, fail_fast=True)], ...],
        Field(min_length=1, max_length=MAX_TEXTS, fail_fast=True),
    ]

    def texts(self) -> tuple[str, ...]:
        """The data, flat, in row-major order."""
        flat: list[str] = []
        for part in self.data:
            flat.extend([part] if isinstance(part, str) else part)
        return tuple(flat)


class OutputParameters(BaseModel):
    """How an output is to be sent."""

    binary_data: Flag | None = None
    """Behind the JSON; by default as the request's `binary_data_output` says."""


class RequestedOutput(BaseModel):
    """An output to send."""

    name: OutputName
    parameters: OutputParameters = OutputParameters()


class InferRequest(BaseModel):
    """An inference request."""

    id: Id | None = None
    parameters: InferParameters = InferParameters()
    inputs: Annotated[tuple[InputTensor, ...], Field(min_length=1, max_length=1)]
    outputs: Annotated[tuple[RequestedOutput, ...], Field(max_length=len(OUTPUTS))] | None = None


def check_model(service: Service, name: str, version: str = "") -> None:
    """Refuses a model that is not there, or a version that is not served.

    Raises:
        Refusal: 404.
    """
    if name != MODEL:
        raise Refusal(404, f"there is no model {name!r}", value=name, do=f"use the model {MODEL!r}")
    current = service.champions.current
    if version and (current is None or current.version != version):
        raise _not_served(version, f"version {current.version!r}" if current else "no version")


def server_metadata(extensions: Sequence[str]) -> dict[str, Any]:
    """Name and version of this server, and the extensions that it speaks."""
    return {"name": MODEL, "version": installed("perdure"), "extensions": list(extensions)}


def model_metadata(service: Service) -> dict[str, Any]:
    """The model's inputs and outputs."""
    current = service.champions.current
    return {
        "name": MODEL,
        "versions": [current.version] if current else [],
        "platform": "perdure",
        "inputs": [{"name": INPUT, "datatype": "BYTES", "shape": [-1]}],
        "outputs": [{"name": name, "datatype": kind, "shape": list(shape)} for name, (kind, shape) in OUTPUTS.items()],
    }


async def infer(service: Service, asked: InferRequest, version: str = "") -> Inferred:
    """Classifies the texts of a request, and gives the outputs that it names; where none, those that fit it.

    Args:
        service: what answers.
        asked: the request.
        version: the one that must answer; any where it is empty.

    Raises:
        Refusal: 422 the shape does not hold the texts; 404 another version has come to serve meanwhile; 409 whether
            the version abstains is wanted, but it cannot; and as `Service.predict`.
    """
    texts = asked.inputs[0].texts()
    _check_shape(asked.inputs[0].shape, len(texts))
    parameters = asked.parameters
    # A message of gRPC cannot tell none from those that are not said.
    named = tuple(output.name for output in asked.outputs or ())
    abstain = parameters.abstain
    if "abstained" in named:
        # Before anything is recorded: a request is answered as a whole, or not at all.
        await _check_abstention(service, abstain)
        abstain = True
    answered = await service.predict(
        texts, top=parameters.top_k or 1, subject=parameters.subject, labels=parameters.labels, abstain=abstain
    )
    if version and answered[0].version != version:
        raise _not_served(version, f"version {answered[0].version!r}")
    if not named:
        said: tuple[OutputName, ...] = ("abstained",) if answered[0].abstained is not None else ()
        named = ALWAYS + said + (RANKED if parameters.top_k is not None else ())
    return Inferred(answered[0].version, tuple(_output(name, answered) for name in named))


async def _check_abstention(service: Service, abstain: bool | None) -> None:
    if abstain is False:
        raise Refusal(
            422,
            "parameters.abstain is false, but outputs name 'abstained'",
            value=False,
            do="leave out one of both",
        )
    current = service.champions.current
    if current is not None and await service.thresholds.of(current.version) is None:
        raise _no_threshold(current.version)


def _no_threshold(version: str) -> Refusal:
    return Refusal(
        409,
        f"version {version} cannot abstain: it was judged on too few rows for a threshold",
        do="leave the output 'abstained' out",
    )


def _not_served(version: str, served: str) -> Refusal:
    return Refusal(
        404,
        f"version {version!r} is not served here, but {served}",
        value=version,
        do="name no version: the champion answers, and says which it is",
    )


def _output(name: OutputName, answered: Sequence[Answered]) -> Output:
    rows = len(answered)
    if name == "label":
        return Output(name, (rows,), tuple(one.prediction.label for one in answered))
    if name == "confidence":
        return Output(name, (rows,), tuple(one.prediction.confidence for one in answered))
    if name == "id":
        return Output(name, (rows,), tuple(one.id for one in answered))
    if name == "abstained":
        if any(one.abstained is None for one in answered):
            # Another version has come to serve meanwhile.
            raise _no_threshold(answered[0].version)
        return Output(name, (rows,), tuple(bool(one.abstained) for one in answered))
    shape = (rows, len(answered[0].prediction.top))
    if name == "top_label":
        return Output(name, shape, tuple(label for one in answered for label, _ in one.prediction.top))
    return Output(name, shape, tuple(confidence for one in answered for _, confidence in one.prediction.top))


def _check_shape(shape: Sequence[int], texts: int) -> None:
    size = math.prod(shape)
    if size != texts or min(shape, default=0) < 1:
        what = f"inputs.0: shape {list(shape)} holds {size} texts, but data holds {texts}"
        raise Refusal(422, what, value=str(list(shape)), do=f"send the shape [{texts}]")
