"""The process around the app: a socket, signals, and an orderly end."""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import signal
import socket
import ssl
import sys
import time
from collections.abc import Callable
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from perdure.config import Settings
from perdure.model.base import Classifier
from perdure.registry import Registry
from perdure.stream.base import Stream
from perdure_services.serving.api import create_app
from perdure_services.serving.exposure import check_exposure
from perdure_services.serving.service import Service
from perdure_services.serving.tls import tls_context

FIRST_LOOK_SECONDS = 600.0
"""How long the first load may take before the URL is announced without it."""

SWITCH_SECONDS = 0.0005
"""How long a thread may keep the interpreter from the others; Python's own 5 ms are as long as a small batch takes."""

KEEP_ALIVE_SECONDS = 75
"""How long a connection may idle: longer than proxies keep theirs (60 seconds mostly), which would otherwise send a
request into one that is just being closed."""

BACKLOG = 2048
"""Connections that the system keeps until they are accepted."""

_log = logging.getLogger(__name__)


class Server(uvicorn.Server):
    """Uvicorn that says when it is ready, and takes a signal as a wish to stop, not as a cause of death."""

    def __init__(self, config: uvicorn.Config, service: Service, announce: Callable[[], None]) -> None:
        super().__init__(config)
        self._service = service
        self._announce = announce
        self._announcing: asyncio.Task[None] | None = None
        self._leave_at = math.inf

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._announcing = asyncio.create_task(self._when_ready())

    async def on_tick(self, counter: int) -> bool:
        if time.monotonic() >= self._leave_at:
            self.should_exit = True
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._service.drain()
        self._service.end_within(self._service.settings.drain_seconds)
        if self._announcing is not None:
            self._announcing.cancel()
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # Uvicorn would raise the signal again at the end, and so a clean stop would look like a crash.
        again = self._service.draining
        self._service.drain()
        if self.should_exit and sig == signal.SIGINT:
            self.force_exit = True
        if sig == signal.SIGTERM and not again and self._service.balanced:
            # Whoever sends requests here learns only with its next look that it should not.
            self._leave_at = time.monotonic() + self._service.settings.lame_duck_seconds
            _log.info("stopping: requests are taken for %.1f seconds more", self._service.settings.lame_duck_seconds)
        else:
            self.should_exit = True

    async def _when_ready(self) -> None:
        waited = 0.0
        while waited < FIRST_LOOK_SECONDS and not self._service.champions.wait_for_first_look(0):
            await asyncio.sleep(0.05)
            waited += 0.05
        # What is here by now stays, modules above all: to look through it again and again for what could go would stop
        # every thread for 50 ms at a time.
        gc.collect()
        gc.freeze()
        self._announce()


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one.

    Raises:
        OSError: the address is unknown, not of this machine, or taken.
    """
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(BACKLOG)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise OSError(f"cannot listen at {host or '*'}:{port} ({reason}): choose another --host or --port") from error
    return listener


def url_of(listener: socket.socket, *, tls: bool = False) -> str:
    """The URL at which `listener` is reached."""
    scheme = "https" if tls else "http"
    host, port = listener.getsockname()[:2]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def run(
    settings: Settings,
    *,
    listener: socket.socket,
    registry: Registry,
    stream: Stream,
    load: Callable[[str], Classifier],
    announce: Callable[[str], None],
) -> None:
    """Serves at `listener` until SIGTERM or SIGINT; what is under way is answered and recorded before it returns.

    `announce` gets one line with the URL once the first look at the registry is over. The listener is closed, the
    stream stays open.

    Raises:
        SettingError: `listener` lets other machines in without asking who they are; the file of keys, or one of those
            for TLS, cannot be used.
    """
    sys.setswitchinterval(SWITCH_SECONDS)
    check_exposure(listener.getsockname()[0], settings.serving)
    tls = tls_context(settings.serving)
    app = create_app(settings, registry=registry, stream=stream, load=load)
    service: Service = app.state.service
    with listener:
        url = url_of(listener, tls=tls is not None)
        config = configured(app, settings, tls)
        Server(config, service, lambda: announce(ready_line(url, service))).run(sockets=[listener])
    _log.info("stopped")


def configured(app: ASGIApp, settings: Settings, tls: ssl.SSLContext | None) -> uvicorn.Config:
    """How uvicorn serves `app`."""
    return uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        ws="none",
        lifespan="on",
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=math.ceil(settings.serving.drain_seconds),
        ssl_context_factory=None if tls is None else lambda config, default: tls,
    )


def ready_line(url: str, service: Service, processes: int = 1) -> str:
    """What is said when the first look at the registry is over."""
    current = service.champions.current
    if current is not None:
        several = f" with {processes} processes" if processes > 1 else ""
        return f"Perdure serves version {current.version} at {url} (try {url}/docs){several}"
    problem = service.champions.problem or "no version is promoted yet: run `perdure fit --data FILE`"
    return f"Perdure listens at {url}, but has nothing to serve: {problem}"
