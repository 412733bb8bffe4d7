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

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from perdure_services.serving.refusal import Refusal
from perdure_services.serving.schemas import AllowedLabels, StrictRequest, Subject, TopK
from perdure_services.serving.service import Answered, Service

MODEL = "perdure"

INPUT = "text"

Datatype = Literal["BYTES", "FP32", "BOOL"]
OutputName = Literal["label", "confidence", "id", "top_label", "top_confidence"]

OUTPUTS: dict[OutputName, tuple[Datatype, tuple[int, ...]]] = {
    "label": ("BYTES", (-1,)),
    "confidence": ("FP32", (-1,)),
    "id": ("BYTES", (-1,)),
    "top_label": ("BYTES", (-1, -1)),
    "top_confidence": ("FP32", (-1, -1)),
}
"""Type and shape of each output. `id` is what feedback names; `top_*` hold the most probable labels, best first."""

ALWAYS: tuple[OutputName, ...] = ("label", "confidence", "id")
"""Outputs that are sent where a request names none."""


@dataclass(frozen=True, slots=True)
class Output:
    """One tensor of an answer."""

    name: OutputName
    shape: tuple[int, ...]
    data: tuple[str | float, ...]
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
    subject: Subject | None = None
    binary_data_output: Annotated[bool, Field(strict=True)] = False
    """REST with binary tensors: send the outputs so."""


def check_shape(shape: Sequence[int], texts: int) -> None:
    """Refuses a shape that does not hold the texts.

    Raises:
        Refusal: 422.
    """
    size = math.prod(shape)
    if size != texts or min(shape, default=0) < 1:
        what = f"inputs.0: shape {list(shape)} holds {size} texts, but data holds {texts}"
        raise Refusal(422, what, value=str(list(shape)), do=f"send the shape [{texts}]")


def check_model(service: Service, name: str, version: str = "") -> None:
    """Refuses a model that is not there, or a version that is not served.

    Raises:
        Refusal: 404.
    """
    if name != MODEL:
        raise Refusal(404, f"there is no model {name!r}", value=name, do=f"use the model {MODEL!r}")
    current = service.champions.current
    if version and (current is None or current.version != version):
        served = f"version {current.version!r}" if current else "no version"
        raise Refusal(
            404,
            f"version {version!r} is not served here, but {served}",
            value=version,
            do="name no version: the champion answers, and says which it is",
        )


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


async def infer(
    service: Service, texts: Sequence[str], parameters: InferParameters, wanted: Sequence[OutputName] | None
) -> Inferred:
    """Classifies `texts`; `wanted` names the outputs to send, None those that fit the parameters.

    Raises:
        Refusal: as `Service.predict`.
    """
    answered = await service.predict(
        texts, top=parameters.top_k or 1, subject=parameters.subject, labels=parameters.labels
    )
    if wanted is None:
        ranked: tuple[OutputName, ...] = ("top_label", "top_confidence")
        wanted = ALWAYS + (ranked if parameters.top_k is not None else ())
    return Inferred(answered[0].version, tuple(_output(name, answered) for name in wanted))


def _output(name: OutputName, answered: Sequence[Answered]) -> Output:
    rows = len(answered)
    if name == "label":
        return Output(name, (rows,), tuple(one.prediction.label for one in answered))
    if name == "confidence":
        return Output(name, (rows,), tuple(one.prediction.confidence for one in answered))
    if name == "id":
        return Output(name, (rows,), tuple(one.id for one in answered))
    shape = (rows, len(answered[0].prediction.top))
    if name == "top_label":
        return Output(name, shape, tuple(label for one in answered for label, _ in one.prediction.top))
    return Output(name, shape, tuple(confidence for one in answered for _, confidence in one.prediction.top))
