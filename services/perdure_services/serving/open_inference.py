"""The Open Inference Protocol, version 2, over REST.

https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_rest.md
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends
from pydantic import BaseModel
from starlette.responses import JSONResponse, Response

from perdure_services.serving import binary_tensors
from perdure_services.serving.access import needs, open_to_all
from perdure_services.serving.inference import (
    MODEL,
    InferRequest,
    check_model,
    infer,
    model_metadata,
    server_metadata,
)
from perdure_services.serving.service import Service, parts_of

router = APIRouter(prefix="/v2", route_class=binary_tensors.InferenceRoute, tags=["open inference protocol"])

Parts = Annotated[Service, Depends(parts_of)]


class OutputTensor(BaseModel):
    """One row for each text."""

    name: str
    shape: tuple[int, ...]
    datatype: str
    data: tuple[str | bool | float, ...]


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
    return server_metadata([binary_tensors.EXTENSION])


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


@router.get("/models/{name}/versions/{version}")
@router.get("/models/{name}")
@needs("predict")
async def model(service: Parts, name: str, version: str = "") -> dict[str, Any]:
    """The model's inputs and outputs."""
    check_model(service, name, version)
    return model_metadata(service)


@router.get("/models/{name}/ready")
@open_to_all
async def model_ready(service: Parts, name: str) -> Response:
    """Whether the model answers."""
    check_model(service, name)
    state = await service.ready()
    return JSONResponse({"name": MODEL, "ready": state.ready}, status_code=200 if state.ready else 503)


@router.get("/models/{name}/versions/{version}/ready")
@needs("predict")
async def version_ready(service: Parts, name: str, version: str) -> Response:
    """Whether this version of the model answers; which one does is not for everybody."""
    check_model(service, name, version)
    return await model_ready(service, name)


@router.post("/models/{name}/versions/{version}/infer", response_model=InferResponse, response_model_exclude_none=True)
@router.post("/models/{name}/infer", response_model=InferResponse, response_model_exclude_none=True)
@needs("predict")
async def model_infer(asked: InferRequest, service: Parts, name: str, version: str = "") -> InferResponse | Response:
    """Classify texts. `parameters` may hold `labels` (a string: a JSON array), `top_k`, `abstain` and
    `subject`."""
    check_model(service, name, version)
    inferred = await infer(service, asked, version)
    behind = asked.parameters.binary_data_output
    binary = [behind] * len(inferred.outputs)
    if asked.outputs is not None:
        said = [output.parameters.binary_data for output in asked.outputs]
        binary = [behind if one is None else one for one in said]
    if any(binary):
        head = {"model_name": MODEL, "model_version": inferred.version}
        named = head if asked.id is None else {**head, "id": asked.id}
        return binary_tensors.response(named, list(zip(inferred.outputs, binary, strict=True)))
    return InferResponse(
        model_name=MODEL,
        model_version=inferred.version,
        id=asked.id,
        outputs=tuple(
            OutputTensor(name=output.name, shape=output.shape, datatype=output.datatype, data=output.data)
            for output in inferred.outputs
        ),
    )
