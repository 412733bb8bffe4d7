"""The gRPC server, in the event loop that answers HTTP."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc

from perdure.config import ServingSettings
from perdure.errors import SettingError
from perdure_services.serving.access import Access
from perdure_services.serving.exposure import check_exposure
from perdure_services.serving.loop_lag import LoopLag
from perdure_services.serving.rpc.inference_service import InferenceService
from perdure_services.serving.service import Service
from perdure_services.serving.tls import tls_context
from perdure_services.serving.tracing import Tracing

_log = logging.getLogger(__name__)


def check_settings(settings: ServingSettings) -> None:
    """Whether a server could be started, before anything else is.

    Raises:
        SettingError: other machines would be let in without a key; TLS cannot be used.
        OSError: the port is taken.
    """
    check_exposure(settings.host, settings)
    _credentials(settings)
    if settings.processes > 1:
        # Their parent holds it for them.
        return
    port = settings.grpc_port or 0
    try:
        found = socket.getaddrinfo(settings.host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise _taken(settings, error.strerror or str(error)) from error


@asynccontextmanager
async def running(
    settings: ServingSettings, service: Service, access: Access, lag: LoopLag, tracing: Tracing | None
) -> AsyncIterator[int]:
    """A server that answers until the context ends; gives its port. What it asks of its callers is what HTTP does.

    From the end of `service` on, or of the context, no call is taken any more, and those under way have what is left of
    `drain_seconds`: over HTTP the same happens at the same time.

    Raises:
        OSError: the port was taken meanwhile.
    """
    options = [
        # Two processes that share a port without knowing answer for each other.
        ("grpc.so_reuseport", int(settings.processes > 1)),
        ("grpc.max_receive_message_length", settings.max_body_bytes),
    ]
    server = grpc.aio.server(options=options)
    server.add_generic_rpc_handlers((InferenceService(service).handler(access, lag, tracing),))
    credentials = _credentials(settings)
    try:
        address = _address(settings)
        port = server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
    except RuntimeError as error:
        raise _taken(settings, str(error)) from error
    await server.start()
    _log.info("gRPC at %s:%d%s", settings.host or "*", port, " with TLS" if credentials else "")
    ending = asyncio.create_task(_end_with(service, server))
    try:
        yield port
    finally:
        if not service.ending.is_set():
            ending.cancel()
            await server.stop(settings.drain_seconds)
        else:
            await ending


async def _end_with(service: Service, server: grpc.aio.Server) -> None:
    await service.ending.wait()
    await server.stop(service.seconds_left)


def _address(settings: ServingSettings) -> str:
    host = settings.host or "::"
    return f"[{host}]:{settings.grpc_port}" if ":" in host else f"{host}:{settings.grpc_port}"


def _credentials(settings: ServingSettings) -> grpc.ServerCredentials | None:
    if tls_context(settings) is None:
        return None
    if settings.tls_key_password_file:
        raise SettingError(
            "gRPC cannot use a TLS key that is encrypted (serving.tls_key_password_file is set): name a key without a "
            "password in serving.tls_key, readable by this process only, or leave serving.grpc_port out"
        )
    certificate = Path(settings.tls_certificate).read_bytes()
    key = Path(settings.tls_key).read_bytes() if settings.tls_key else certificate
    return grpc.ssl_server_credentials([(key, certificate)])


def _taken(settings: ServingSettings, reason: str) -> OSError:
    place = f"{settings.host or '*'}:{settings.grpc_port}"
    return OSError(f"cannot listen at {place} for gRPC ({reason}): choose another serving.grpc_port")
