"""The six calls of GRPCInferenceService."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message
from prometheus_client import CollectorRegistry, Counter, Histogram

from perdure_services.serving.access import Access
from perdure_services.serving.inference import check_model, infer, model_metadata, server_metadata
from perdure_services.serving.refusal import Refusal
from perdure_services.serving.rpc import open_inference_pb2 as pb
from perdure_services.serving.rpc.message import request_of, response_of
from perdure_services.serving.rpc.status import code_of, details_of, trailers_of
from perdure_services.serving.service import Service

NAME = "inference.GRPCInferenceService"

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

_log = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]

Asked = TypeVar("Asked", bound=Message)
Told = TypeVar("Told", bound=Message)


class InferenceService:
    """Answers over gRPC what `serving.open_inference` answers over REST, to the same keys.

    Args:
        service: what answers.
        access: who may ask.
        registry: of metrics.
    """

    def __init__(self, service: Service, access: Access, registry: CollectorRegistry) -> None:
        self._service = service
        self._access = access
        self._handled = Counter(
            "perdure_grpc_requests", "Calls over gRPC that ended, by status.", ("method", "code"), registry=registry
        )
        self._seconds = Histogram(
            "perdure_grpc_request_duration_seconds",
            "Time to answer a call over gRPC.",
            ("method",),
            buckets=_SECONDS,
            registry=registry,
        )

    def handler(self) -> grpc.GenericRpcHandler:
        """What a server is given."""
        calls = {
            "ServerLive": self._call(self._live, pb.ServerLiveRequest),
            "ServerReady": self._call(self._ready, pb.ServerReadyRequest),
            "ModelReady": self._call(self._model_ready, pb.ModelReadyRequest),
            "ServerMetadata": self._call(self._server_metadata, pb.ServerMetadataRequest),
            "ModelMetadata": self._call(self._model_metadata, pb.ModelMetadataRequest),
            "ModelInfer": self._call(self._infer, pb.ModelInferRequest),
        }
        return grpc.method_handlers_generic_handler(NAME, calls)

    async def _live(self, asked: pb.ServerLiveRequest, context: Context) -> pb.ServerLiveResponse:
        return pb.ServerLiveResponse(live=self._service.live)

    async def _ready(self, asked: pb.ServerReadyRequest, context: Context) -> pb.ServerReadyResponse:
        return pb.ServerReadyResponse(ready=(await self._service.ready()).ready)

    async def _model_ready(self, asked: pb.ModelReadyRequest, context: Context) -> pb.ModelReadyResponse:
        if asked.version:
            # Which version serves is not for everybody.
            self._admit(context)
        check_model(self._service, asked.name, asked.version)
        return pb.ModelReadyResponse(ready=(await self._service.ready()).ready)

    async def _server_metadata(self, asked: pb.ServerMetadataRequest, context: Context) -> pb.ServerMetadataResponse:
        return pb.ServerMetadataResponse(**server_metadata([]))

    async def _model_metadata(self, asked: pb.ModelMetadataRequest, context: Context) -> pb.ModelMetadataResponse:
        self._admit(context)
        check_model(self._service, asked.name, asked.version)
        return pb.ModelMetadataResponse(**model_metadata(self._service))

    async def _infer(self, asked: pb.ModelInferRequest, context: Context) -> pb.ModelInferResponse:
        self._admit(context)
        check_model(self._service, asked.model_name, asked.model_version)
        request = request_of(asked)
        # A call that its client has given up is cancelled, and the model then not asked.
        left = context.time_remaining()
        deadline = math.inf if left is None else time.monotonic() + left
        inferred = await infer(self._service, request, deadline=deadline)
        return response_of(inferred, request, raw=bool(asked.raw_input_contents))

    def _admit(self, context: Context) -> None:
        metadata: Iterable[tuple[str, str | bytes]] = context.invocation_metadata() or ()
        headers = ((name.encode(), text.encode() if isinstance(text, str) else text) for name, text in metadata)
        self._access.admit(headers, "predict")

    def _call(
        self, answer: Callable[[Asked, Context], Awaitable[Told]], asked: type[Asked]
    ) -> grpc.RpcMethodHandler[Any, Any]:
        method = asked.DESCRIPTOR.name.removesuffix("Request")

        async def handle(message: Asked, context: Context) -> Told:
            start = time.perf_counter()
            code = grpc.StatusCode.OK
            try:
                return await answer(message, context)
            except asyncio.CancelledError:
                code = grpc.StatusCode.CANCELLED
                raise
            except Refusal as refusal:
                code = code_of(refusal)
                await context.abort(code, details_of(refusal), trailers_of(refusal))
            except Exception as error:  # noqa: BLE001
                code = grpc.StatusCode.INTERNAL
                _log.exception("%s/%s failed", NAME, method)
                await context.abort(code, f"the server failed on this request: {type(error).__name__}: try again")
            finally:
                self._handled.labels(method, code.name).inc()
                self._seconds.labels(method).observe(time.perf_counter() - start)

        return grpc.unary_unary_rpc_method_handler(handle, asked.FromString, _serialised)


def _serialised(message: Message) -> bytes:
    return message.SerializeToString()
