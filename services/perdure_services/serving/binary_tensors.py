"""Tensors beside JSON: the binary tensor data extension of the inference protocol, and raw contents over gRPC.

https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import Response

from perdure_services.serving.access import GuardedRoute
from perdure_services.serving.body import CheckedRequest, json_value
from perdure_services.serving.inference import Output
from perdure_services.serving.limits import too_many
from perdure_services.serving.refusal import Refusal
from perdure_services.serving.service import service_of

HEADER = "Inference-Header-Content-Length"
"""How many bytes of a body are JSON; tensors stand behind it, in its order."""

EXTENSION = "binary_tensor_data"

_NAME = HEADER.lower().encode("ascii")
_LENGTH = struct.Struct("<I")


def decoded(raw: bytes, place: str, most: int) -> tuple[str, ...]:
    """The texts of a BYTES tensor: each stands behind its length, as four bytes, least significant first.

    Raises:
        Refusal: 400 a length does not fit; 422 a text is not UTF-8, or there are more than `most`.
    """
    texts: list[str] = []
    at = 0
    while at < len(raw):
        # There may be millions: the loop must not turn for all of them.
        if len(texts) == most:
            raise too_many(most, most + 1)
        end = at + _LENGTH.size
        size = _LENGTH.unpack_from(raw, at)[0] if end <= len(raw) else None
        if size is None or end + size > len(raw):
            raise Refusal(
                400,
                f"{place}: element {len(texts)} of the tensor ends behind its {len(raw)} bytes",
                value=size,
                do="send each element behind its length in bytes, a little-endian unsigned integer of 32 bits",
            )
        texts.append(utf8(raw[end : end + size], f"{place}.{len(texts)}"))
        at = end + size
    return tuple(texts)


def utf8(raw: bytes, place: str) -> str:
    """The text of one element.

    Raises:
        Refusal: 422 it is not UTF-8.
    """
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Refusal(
            422,
            f"{place}: the text is not UTF-8: {error.reason} at byte {error.start}",
            value=repr(raw[error.start : error.start + 8]),
            do="send texts as UTF-8",
        ) from error


def encoded(output: Output) -> bytes:
    """The data of a tensor, row-major and little-endian; elements of BYTES stand behind their lengths."""
    if output.datatype == "FP32":
        return np.asarray(output.data, dtype="<f4").tobytes()
    if output.datatype == "BOOL":
        return np.asarray(output.data, dtype=np.bool_).tobytes()
    texts = [str(value).encode("utf-8") for value in output.data]
    return b"".join(_LENGTH.pack(len(text)) + text for text in texts)


def response(head: Mapping[str, Any], outputs: Sequence[tuple[Output, bool]]) -> Response:
    """The answer with the fields of `head` and these outputs; those marked are sent behind the JSON."""
    tensors: list[dict[str, Any]] = []
    behind: list[bytes] = []
    for output, binary in outputs:
        tensor: dict[str, Any] = {"name": output.name, "shape": output.shape, "datatype": output.datatype}
        if binary:
            behind.append(encoded(output))
            tensor["parameters"] = {"binary_data_size": len(behind[-1])}
        else:
            tensor["data"] = output.data
        tensors.append(tensor)
    front = json.dumps({**head, "outputs": tensors}, ensure_ascii=True, separators=(",", ":")).encode("ascii")
    return Response(
        b"".join((front, *behind)), media_type="application/octet-stream", headers={HEADER: str(len(front))}
    )


class InferenceRequest(CheckedRequest):
    """A request whose tensors may stand behind its JSON; what it hands on has them inside."""

    async def json(self) -> Any:
        """The body's JSON value, with the tensors in it.

        Raises:
            Refusal: 400 when it is not UTF-8, not JSON, nested too deeply, or not as long as it says.
        """
        said = self.headers.get(HEADER)
        raw = await self.body()
        if said is None:
            return json_value(raw)
        length = int(said) if said.isascii() and said.isdigit() and len(said) < 10 else -1
        if not 0 <= length <= len(raw):
            raise Refusal(
                400,
                f"the header {HEADER} does not fit a body of {len(raw)} bytes",
                value=said,
                do="send the number of bytes of its JSON",
            )
        fields = json_value(raw[:length])
        _put_inside(fields, raw[length:], service_of(self).settings.max_texts)
        return fields


class InferenceRoute(GuardedRoute):
    """A guarded route that reads its body as an `InferenceRequest`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def checked(request: Request) -> Response:
            scope = request.scope
            if any(name == _NAME for name, _ in scope["headers"]):
                # What it holds is JSON once its tensors are put inside. Browsers send other sites' requests with a
                # header of this name only after asking, so it vouches as a content type of JSON does. In place: what
                # is found out of a request on the way is kept in its scope, for those outside too.
                kept = [(name, value) for name, value in scope["headers"] if name != b"content-type"]
                scope["headers"] = [*kept, (b"content-type", b"application/json")]
            return await handler(InferenceRequest(scope, request.receive))

        return checked


def _put_inside(fields: Any, tensors: bytes, most: int) -> None:
    at = 0
    inputs = fields.get("inputs") if isinstance(fields, dict) else None
    for place, tensor in enumerate(inputs if isinstance(inputs, list) else ()):
        parameters = tensor.get("parameters") if isinstance(tensor, dict) else None
        size = parameters.get("binary_data_size") if isinstance(parameters, dict) else None
        if size is None:
            continue
        if type(size) is not int or not 0 <= size <= len(tensors) - at:
            raise Refusal(
                400,
                f"inputs.{place}.parameters.binary_data_size does not fit the {len(tensors) - at} bytes left",
                value=size,
                do="send the number of bytes of the tensor behind the JSON",
            )
        tensor["data"] = decoded(tensors[at : at + size], f"inputs.{place}.data", most)
        at += size
    if at != len(tensors):
        raise Refusal(
            400,
            f"{len(tensors) - at} bytes behind the JSON belong to no input",
            value=len(tensors) - at,
            do="give each input that stands there its parameter binary_data_size",
        )
