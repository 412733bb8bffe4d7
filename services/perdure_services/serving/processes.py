"""From settings to several processes: what is checked, divided and reserved before any of them is started."""

from __future__ import annotations

import logging
import os
import socket
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from perdure.config import Settings
from perdure.errors import SettingError
from perdure_services.fleet.child import socket_path
from perdure_services.fleet.spec import Spec
from perdure_services.serving.exposure import check_exposure
from perdure_services.serving.server import url_of
from perdure_services.serving.service import FLUSH_SECONDS

END_SECONDS = 10.0
"""What a process may take to end beside what its settings say, before it is killed."""

MAX_SOCKET_PATH = 103
"""Bytes of a socket's path on the system that takes the fewest."""

WORKER = (sys.executable, "-P", "-m", "perdure_services.serving.worker")
FLEET = (sys.executable, "-P", "-m", "perdure_services.fleet")

LOGGERS = ("kafka", "perdure_services.serving")
"""Whose levels the command line has set."""


def start_fleet(settings: Settings, listener: socket.socket, *, command: Sequence[str] = WORKER) -> NoReturn:
    """Becomes the parent of `serving.processes` processes that answer at `listener`.

    This process goes on as another program, under the same id: what was imported here, only to read the settings,
    would stay in memory all the while.

    Raises:
        SettingError: settings that do not go with several processes.
        OSError: the folder for the processes cannot be made, the port for gRPC is taken.
    """
    check_exposure(listener.getsockname()[0], settings.serving)
    check_shared(settings)
    kept = [listener]
    if settings.serving.grpc_port is not None:
        reserved = reserve(settings.serving.host, settings.serving.grpc_port)
        kept.append(reserved)
        settings = settings.with_values({"serving.grpc_port": reserved.getsockname()[1]})
    folder = make_folder(settings.serving.processes)
    spec_of(settings, listener, command=command).write(folder)
    for held in kept:
        held.set_inheritable(True)
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(FLEET[0], [*FLEET, str(folder)])


def make_folder(processes: int) -> Path:
    """A folder for what so many processes share, which nobody else can enter.

    Raises:
        OSError: it cannot be made, or its path is too long for sockets.
    """
    folder = Path(tempfile.mkdtemp(prefix="perdure-"))
    longest = os.fsencode(socket_path(folder, processes))
    if len(longest) > MAX_SOCKET_PATH:
        folder.rmdir()
        raise OSError(
            f"the temporary folder {folder.parent} has too long a name for sockets in it ({len(longest)} bytes, "
            f"{MAX_SOCKET_PATH} at most): set TMPDIR to a shorter one"
        )
    return folder


def spec_of(settings: Settings, listener: socket.socket, *, command: Sequence[str] = WORKER) -> Spec:
    """What the parent is told. `settings` are those of each process."""
    serving = settings.serving
    level = logging.getLogger().getEffectiveLevel()
    levels = {name: logging.getLogger(name).level for name in LOGGERS}
    return Spec(
        command=tuple(command),
        processes=serving.processes,
        given={
            "settings": settings.model_dump(mode="json"),
            "url": url_of(listener, tls=bool(serving.tls_certificate)),
            "log": {"level": level, "format": settings.log.format, "levels": levels},
        },
        listener=listener.fileno(),
        stop_seconds=serving.lame_duck_seconds + serving.drain_seconds + FLUSH_SECONDS + END_SECONDS,
        level=level,
        log=settings.log.format,
    )


def check_shared(settings: Settings) -> None:
    """Refuses what several processes cannot share.

    Raises:
        SettingError: the stream or the registry is in the memory of one process.
    """
    processes = settings.serving.processes
    for name, url in (("stream.url", settings.stream.url), ("registry.url", settings.registry.url)):
        if url.lower().startswith("memory:"):
            raise SettingError(
                f"{name} cannot be {url!r} with serving.processes={processes}: what is in the memory of one process "
                "the others do not see. Name a file, a folder or a service, or set serving.processes to 1"
            )


def reserve(host: str, port: int) -> socket.socket:
    """A socket that holds `port` (0 takes a free one) for processes that are about to share it, and for nobody else.

    It does not listen, so that nothing is ever brought to it.

    Raises:
        OSError: the port is taken, or cannot be shared here.
    """
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        with socket.socket(family, kind, protocol) as alone:
            # Who shares a port is let in beside others who do: so first without.
            alone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            alone.bind(address)
            address = (address[0], alone.getsockname()[1], *address[2:])
        shared = socket.socket(family, kind, protocol)
        try:
            shared.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            shared.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            shared.bind(address)
            # Or else Linux would let another one, which does not listen yet either, have it too.
            shared.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
        except OSError:
            shared.close()
            raise
    except OSError as error:
        raise OSError(
            f"cannot listen at {host or '*'}:{port} for gRPC ({error.strerror or error}): choose another "
            "serving.grpc_port"
        ) from error
    return shared
