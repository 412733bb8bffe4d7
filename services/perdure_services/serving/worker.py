"""One of several processes of a server: `python -m perdure_services.serving.worker`, which `perdure_services.fleet`
starts."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import uvicorn

from perdure import logs
from perdure.config import Settings
from perdure.errors import PerdureError, UsageError
from perdure.model.base import Classifier
from perdure.registry import Registry
from perdure.stream import Stream, open_stream
from perdure_services.fleet.beat import BEAT_SECONDS, CONNECTION, Beat
from perdure_services.fleet.hello import Hello
from perdure_services.keys import redacted
from perdure_services.serving import merged_metrics, subjects
from perdure_services.serving.api import create_app
from perdure_services.serving.command import FAILURE, USAGE, limit_threads, loader
from perdure_services.serving.server import SWITCH_SECONDS, Server, configured, ready_line
from perdure_services.serving.service import PROBE_SECONDS, Service
from perdure_services.serving.siblings import Siblings
from perdure_services.serving.spool.spooled_stream import with_spool
from perdure_services.serving.taking_turns import TakingTurns
from perdure_services.serving.tls import tls_context

_log = logging.getLogger(__name__)

LEAVE_SECONDS = 0.1
"""How long connections are taken after the parent was told to hand out no more."""

RATES = "rates"
"""The file, in the folder of the processes, that says how many requests each API key has left."""

TURNS = "turns"
"""The file, there too, whose lock says who writes the stream."""

Loader = Callable[[Settings, Registry], Callable[[str], Classifier]]


class Worker(Server):
    """A server that is handed its connections by a parent, and tells it how it is.

    Args:
        config: of uvicorn.
        service: what answers.
        siblings: the other processes.
        line: to the parent.
        ready: what is to be said when all are ready.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        service: Service,
        *,
        siblings: Siblings,
        line: socket.socket,
        ready: Callable[[], str],
    ) -> None:
        super().__init__(config, service, self._set_ready)
        self._siblings = siblings
        self._line = line
        self._ready = ready
        self._said: str | None = None
        self._taken = 0
        self._arriving: set[asyncio.Task[object]] = set()
        self._told_asked = float("-inf")
        self._leaving = False
        self._beating: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup([])
        await self._siblings.start()
        self._line.setblocking(False)
        asyncio.get_running_loop().add_reader(self._line, self._hear)
        self._beating = asyncio.create_task(self._beat())

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._leaving = True
        self._tell()
        # What the parent has handed out until it has heard that is taken, and answered if it asks at once.
        await asyncio.sleep(LEAVE_SECONDS)
        if self._arriving:
            await asyncio.wait(self._arriving, timeout=PROBE_SECONDS)
        asyncio.get_running_loop().remove_reader(self._line)
        try:
            await super().shutdown([])
        finally:
            if self._beating is not None:
                self._beating.cancel()
            self._siblings.close()

    def _set_ready(self) -> None:
        self._said = self._ready()
        self._tell()

    async def _beat(self) -> None:
        while True:
            self._tell()
            await asyncio.sleep(BEAT_SECONDS)

    def _tell(self) -> None:
        service = self._service
        asked, self._told_asked = service.asked_ready > self._told_asked, service.asked_ready
        working = service.champions.current is not None and service.batcher.busy_seconds < PROBE_SECONDS
        beat = Beat(
            live=service.live,
            serving=working and not service.draining,
            leaving=self._leaving,
            taken=self._taken,
            open=len(self.server_state.connections) + len(self._arriving),
            asked=asked,
            line=self._said,
        )
        try:
            self._line.send(beat.encode())
        except BlockingIOError:
            _log.warning("the parent process listens to nobody")
        except OSError:
            self._orphaned()

    def _hear(self) -> None:
        while True:
            try:
                # One byte at a time: a connection belongs to the byte with which it comes.
                message, files, _, _ = socket.recv_fds(self._line, 1, 1)
            except BlockingIOError:
                return
            except OSError:
                message, files = b"", []
            if not message:
                self._orphaned()
                return
            if message == CONNECTION:
                self._taken += 1
            else:
                self._service.asked_elsewhere = time.monotonic()
            for file in files:
                self._take(socket.socket(fileno=file))

    def _take(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        loop = asyncio.get_running_loop()
        task: asyncio.Task[object] = loop.create_task(
            loop.connect_accepted_socket(self._protocol, connection, ssl=self.config.ssl)
        )
        self._arriving.add(task)
        task.add_done_callback(self._arrived)

    def _arrived(self, task: asyncio.Task[object]) -> None:
        self._arriving.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            # Above all clients that begin with something else than TLS.
            _log.debug("a connection could not be taken: %s", error)

    def _protocol(self) -> asyncio.Protocol:
        # As uvicorn makes it for connections that it accepts itself.
        kind: Any = self.config.http_protocol_class
        protocol: asyncio.Protocol = kind(
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        return protocol

    def _orphaned(self) -> None:
        """The parent has died: nobody brings connections any more, and nobody would start this process again."""
        if self._leaving or self._service.draining:
            return
        _log.error("the parent process has died: this one ends too")
        asyncio.get_running_loop().remove_reader(self._line)
        self.handle_exit(signal.SIGTERM, None)


def serve(hello: Hello, line: socket.socket, loading: Loader = loader) -> None:
    """Serves what `hello` says, with connections from `line`, until SIGTERM, SIGINT, or the end of the parent.

    Raises:
        PerdureError, OSError: as `perdure serve` with one process.
    """
    settings = Settings.model_validate(hello.given["settings"])
    registry = Registry(settings.registry.url)
    limit_threads()
    sys.setswitchinterval(SWITCH_SECONDS)
    load = loading(settings, registry)
    tls = tls_context(settings.serving)
    with _stream(settings, hello) as stream:
        app = create_app(settings, registry=registry, stream=stream, load=load)
        service: Service = app.state.service
        siblings = _siblings(hello, service)
        app.state.siblings = siblings
        app.state.access.share_rates(Path(hello.folder) / RATES)
        url = hello.given["url"]
        Worker(
            configured(app, settings, tls),
            service,
            siblings=siblings,
            line=line,
            ready=lambda: ready_line(url, service, hello.processes),
        ).run()
    _log.info("process %d stopped", hello.place)


def _stream(settings: Settings, hello: Hello) -> Stream:
    opened = open_stream(settings.stream)
    try:
        if not opened.remote:
            return TakingTurns(opened, Path(hello.folder) / TURNS)
        return with_spool(opened, settings.spool, place=hello.place, processes=hello.processes)
    except BaseException:
        opened.close()
        raise


def _siblings(hello: Hello, service: Service) -> Siblings:
    async def metrics(asked: None) -> Any:
        return merged_metrics.told_here(service.metrics.registry, hello.restarts)

    async def forget(asked: Any) -> Any:
        return await subjects.forgotten_here(service, asked)

    return Siblings(hello, {merged_metrics.QUESTION: metrics, subjects.QUESTION: forget})


def main(loading: Loader = loader) -> int:
    """What the parent starts: told what to do on standard input, its line to the parent is the last argument."""
    # Until uvicorn takes them, signals are simply an end: nothing has begun that would need an orderly one.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    line = socket.socket(fileno=int(sys.argv[-1]))
    hello = Hello.decode(sys.stdin.read())
    log = hello.given["log"]
    logs.begin(log["level"])
    logs.use(log["format"], redacted)
    for name, level in log["levels"].items():
        logging.getLogger(name).setLevel(level)
    try:
        with line:
            serve(hello, line, loading)
    except UsageError as error:
        sys.stderr.write(f"perdure serve: {error}\n")
        return USAGE
    except (PerdureError, OSError) as error:
        sys.stderr.write(f"perdure serve: {error}\n")
        return FAILURE
    return 0


if __name__ == "__main__":
    sys.exit(main())
