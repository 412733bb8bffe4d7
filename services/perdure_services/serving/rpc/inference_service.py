"""The six calls of GRPCInferenceService."""

from __future__ import annotations

import grpc

from perdure_services.serving.access import Access
from perdure_services.serving.inference import check_model, infer, model_metadata, server_metadata
from perdure_services.serving.loop_lag import LoopLag
from perdure_services.serving.rpc import open_inference_pb2 as pb
from perdure_services.serving.rpc.call import Call
from perdure_services.serving.rpc.handler import Handler, Method
from perdure_services.serving.rpc.message import request_of, response_of
from perdure_services.serving.service import Service
from perdure_services.serving.tracing import Tracing

NAME = "inference.GRPCInferenceService"


class InferenceService:
    """Answers over gRPC what `serving.open_inference` answers over REST, to the same keys.

    Args:
        service: what answers.
    """

    def __init__(self, service: Service) -> None:
        self._service = service

    def handler(self, access: Access, lag: LoopLag, tracing: Tracing | None) -> grpc.GenericRpcHandler:
        """What a server is given; see `Handler`."""
        methods = {
            "ServerLive": Method(pb.ServerLiveRequest, self._live),
            "ServerReady": Method(pb.ServerReadyRequest, self._ready),
            "ModelReady": Method(pb.ModelReadyRequest, self._model_ready),
            "ServerMetadata": Method(pb.ServerMetadataRequest, self._server_metadata),
            "ModelMetadata": Method(pb.ModelMetadataRequest, self._model_metadata, needed="predict"),
            "ModelInfer": Method(pb.ModelInferRequest, self._infer, needed="predict", asks_model=True),
        }
        return Handler(methods, of=NAME, service=self._service, access=access, lag=lag, tracing=tracing)

    async def _live(self, asked: pb.ServerLiveRequest, call: Call) -> pb.ServerLiveResponse:
        return pb.ServerLiveResponse(live=self._service.live)

    async def _ready(self, asked: pb.ServerReadyRequest, call: Call) -> pb.ServerReadyResponse:
        return pb.ServerReadyResponse(ready=(await self._service.ready()).ready)

    async def _model_ready(self, asked: pb.ModelReadyRequest, call: Call) -> pb.ModelReadyResponse:
        if asked.version:
            # Which version serves is not for everybody.
            call.admit("predict")
        check_model(self._service, asked.name, asked.version)
        return pb.ModelReadyResponse(ready=(await self._service.ready()).ready)

    async def _server_metadata(self, asked: pb.ServerMetadataRequest, call: Call) -> pb.ServerMetadataResponse:
        return pb.ServerMetadataResponse(**server_metadata([]))

    async def _model_metadata(self, asked: pb.ModelMetadataRequest, call: Call) -> pb.ModelMetadataResponse:
        check_model(self._service, asked.name, asked.version)
        return pb.ModelMetadataResponse(**model_metadata(self._service))

    async def _infer(self, asked: pb.ModelInferRequest, call: Call) -> pb.ModelInferResponse:
        check_model(self._service, asked.model_name, asked.model_version)
        request = request_of(asked, self._service.settings.max_texts)
        inferred = await infer(self._service, request, asked.model_version)
        return response_of(inferred, request, raw=bool(asked.raw_input_contents))
