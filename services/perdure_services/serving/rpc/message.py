"""Messages of the protocol, to and from what serving works with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from perdure_services.serving import binary_tensors
from perdure_services.serving.inference import MODEL, Inferred, InferRequest, Output
from perdure_services.serving.limits import too_many
from perdure_services.serving.refusal import Refusal, refusal_of
from perdure_services.serving.rpc import open_inference_pb2 as pb


def request_of(message: pb.ModelInferRequest, most: int) -> InferRequest:
    """The request in `message`, of at most `most` texts, checked as one that comes over REST.

    Raises:
        Refusal: 400 or 422, saying what cannot be used.
    """
    raw = message.raw_input_contents
    if raw and len(raw) != len(message.inputs):
        raise Refusal(
            400,
            f"{len(message.inputs)} inputs, but {len(raw)} raw_input_contents",
            value=len(raw),
            do="send one for each input, or none",
        )
    fields: dict[str, Any] = {
        "id": message.id or None,
        "parameters": _values(message.parameters),
        "inputs": [
            {
                "name": tensor.name,
                "datatype": tensor.datatype,
                "shape": list(tensor.shape),
                "data": _texts(tensor, raw[place] if raw else None, f"inputs.{place}", most),
            }
            for place, tensor in enumerate(message.inputs)
        ],
    }
    if message.outputs:
        fields["outputs"] = [
            {"name": output.name, "parameters": _values(output.parameters)} for output in message.outputs
        ]
    try:
        return InferRequest.model_validate(fields)
    except ValidationError as error:
        raise refusal_of(error.errors(include_url=False)[0]) from error


def response_of(inferred: Inferred, asked: InferRequest, *, raw: bool) -> pb.ModelInferResponse:
    """The message of an answer; `raw` sends the tensors as raw contents, as those came that it answers."""
    message = pb.ModelInferResponse(model_name=MODEL, model_version=inferred.version, id=asked.id or "")
    for output in inferred.outputs:
        tensor = message.outputs.add(name=output.name, datatype=output.datatype, shape=output.shape)
        if raw:
            message.raw_output_contents.append(binary_tensors.encoded(output))
        else:
            tensor.contents.CopyFrom(_contents(output))
    return message


def _texts(tensor: pb.ModelInferRequest.InferInputTensor, raw: bytes | None, place: str, most: int) -> tuple[str, ...]:
    contents = tensor.contents.bytes_contents
    if raw is None:
        if len(contents) > most:
            raise too_many(most, len(contents))
        return tuple(binary_tensors.utf8(text, f"{place}.data.{row}") for row, text in enumerate(contents))
    if contents:
        raise Refusal(
            400,
            f"{place}: the tensor stands in its contents and in raw_input_contents",
            value=len(contents),
            do="send it in one of both",
        )
    # Of another type they would be refused as texts that are none: the type is what is wrong.
    return binary_tensors.decoded(raw, f"{place}.data", most) if tensor.datatype == "BYTES" else ()


def _values(parameters: Mapping[str, pb.InferParameter]) -> dict[str, Any]:
    found = {}
    for name, parameter in parameters.items():
        choice = parameter.WhichOneof("parameter_choice")
        found[name] = getattr(parameter, choice) if choice is not None else None
    return found


def _contents(output: Output) -> pb.InferTensorContents:
    if output.datatype == "FP32":
        return pb.InferTensorContents(fp32_contents=[float(value) for value in output.data])
    if output.datatype == "BOOL":
        return pb.InferTensorContents(bool_contents=[bool(value) for value in output.data])
    return pb.InferTensorContents(bytes_contents=[str(value).encode("utf-8") for value in output.data])
