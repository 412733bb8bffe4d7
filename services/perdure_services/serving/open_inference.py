"""The Open Inference Protocol, version 2, over REST.

https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_rest.md
"""

from __future__ import annotations

from importlib.metadata import version as installed
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends
from pydantic import BaseModel, Field
from starlette.responses import JSONResponse, Response

from perdure_services.serving.access import needs, open_to_all
from perdure_services.serving.body import CheckedRoute
from perdure_services.serving.refusal import Refusal
from perdure_services.serving.schemas import Id, Text
from perdure_services.serving.service import Answered, Service, parts_of

MODEL = "perdure"

OUTPUTS = {"label": "BYTES", "confidence": "FP32", "id": "BYTES"}
"""Outputs of the model: the last one is what feedback names."""

router = APIRouter(prefix="/v2", route_class=CheckedRoute, tags=["open inference protocol"])

Parts = Annotated[Service, Depends(parts_of)]


class InputTensor(BaseModel):
    """Texts."""

    name: Literal["text"]
    shape: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1, max_length=2)]
    datatype: Literal["BYTES"]
    data: Annotated[
        tuple[Text | Annotated[tuple[Text, ...], Field(fail_fast=True)], ...], Field(min_length=1, fail_fast=True)
    ]

    def texts(self) -> tuple[str, ...]:
        """The data, flat, in row-major order."""
        flat: list[str] = []
        for part in self.data:
            flat.extend([part] if isinstance(part, str) else part)
        return tuple(flat)


class RequestedOutput(BaseModel):
    """An output to send."""

    name: Literal["label", "confidence", "id"]


class InferRequest(BaseModel):
    """An inference request."""

    id: Id | None = None
    inputs: Annotated[tuple[InputTensor, ...], Field(min_length=1, max_length=1)]
    outputs: tuple[RequestedOutput, ...] | None = None


class OutputTensor(BaseModel):
    """One value for each text."""

    name: str
    shape: tuple[int]
    datatype: str
    data: tuple[str | float, ...]


class InferResponse(BaseModel):
    """The answer to an inference request."""

    model_name: str
    model_version: str
    id: str | None = None
    outputs: tuple[OutputTensor, ...]


@router.get("")
@open_to_all
async def server() -> dict[str, Any]:
    """Name, version and extensions of this server."""
    return {"name": MODEL, "version": installed("perdure"), "extensions": []}


@router.get("/health/live")
@open_to_all
async def live(service: Parts) -> Response:
    """Whether the process works."""
    return JSONResponse({"live": service.live}, status_code=200 if service.live else 503)


@router.get("/health/ready")
@open_to_all
async def ready(service: Parts) -> Response:
    """Whether the model answers."""
    state = await service.ready()
    return JSONResponse({"ready": state.ready}, status_code=200 if state.ready else 503)


@router.get("/models/{name}")
@needs("predict")
async def model(name: str, service: Parts) -> dict[str, Any]:
    """The model's inputs and outputs."""
    _known(name)
    current = service.champions.current
    return {
        "name": MODEL,
        "versions": [current.version] if current else [],
        "platform": "perdure",
        "inputs": [{"name": "text", "datatype": "BYTES", "shape": [-1]}],
        "outputs": [{"name": name, "datatype": kind, "shape": [-1]} for name, kind in OUTPUTS.items()],
    }


@router.get("/models/{name}/ready")
@open_to_all
async def model_ready(name: str, service: Parts) -> Response:
    """Whether the model answers."""
    _known(name)
    state = await service.ready()
    return JSONResponse({"name": MODEL, "ready": state.ready}, status_code=200 if state.ready else 503)


@router.post("/models/{name}/infer", response_model_exclude_none=True)
@needs("predict")
async def infer(name: str, asked: InferRequest, service: Parts) -> InferResponse:
    """Classify texts."""
    _known(name)
    tensor = asked.inputs[0]
    texts = tensor.texts()
    size = 1
    for side in tensor.shape:
        size *= side
    if size != len(texts):
        shape = list(tensor.shape)
        what = f"inputs.0: shape {shape} holds {size} texts, but data holds {len(texts)}"
        raise Refusal(422, what, value=str(shape), do=f"send the shape [{len(texts)}]")
    answered = await service.predict(texts)
    wanted = OUTPUTS if asked.outputs is None else [output.name for output in asked.outputs]
    outputs = tuple(_output(output, answered) for output in wanted)
    return InferResponse(model_name=MODEL, model_version=answered[0].version, id=asked.id, outputs=outputs)


def _known(name: str) -> None:
    if name != MODEL:
        raise Refusal(404, f"there is no model {name!r}", value=name, do=f"use the model {MODEL!r}")


def _output(name: str, answered: tuple[Answered, ...]) -> OutputTensor:
    data: tuple[str | float, ...]
    if name == "label":
        data = tuple(one.prediction.label for one in answered)
    elif name == "confidence":
        data = tuple(one.prediction.confidence for one in answered)
    else:
        data = tuple(one.id for one in answered)
    return OutputTensor(name=name, shape=(len(data),), datatype=OUTPUTS[name], data=data)
