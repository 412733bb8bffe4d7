"""/metrics and /healthz of a process that has no API of its own."""

from __future__ import annotations

import json
import logging
import socket
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from perdure.errors import UsageError

REQUEST_SECONDS = 5.0
"""How long a request may take to arrive: whoever asks is near."""

_log = logging.getLogger(__name__)


class Endpoint:
    """Answers from construction to `close`, in threads that do not keep the process alive.

    Args:
        host: address to listen at, of IPv4 or IPv6.
        port: to listen at; 0 takes a free one.
        registry: what /metrics tells.
        problem: says why only a restart helps; empty while all is well. It must not wait for anything.

    Raises:
        UsageError: nobody can listen there.
    """

    def __init__(self, host: str, port: int, *, registry: CollectorRegistry, problem: Callable[[], str]) -> None:
        class Server(ThreadingHTTPServer):
            address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
            daemon_threads = True
            block_on_close = False

        class Handler(_Handler):
            told = registry
            asked = staticmethod(problem)

        try:
            self._server = Server((host, port), Handler)
        except (OSError, OverflowError) as error:
            raise UsageError(
                f"/metrics and /healthz cannot be told at {host}:{port}: {error}. Give another host or port"
            ) from error
        self.port: int = self._server.server_address[1]
        """Where it listens."""
        self._thread = threading.Thread(target=self._server.serve_forever, name="perdure-monitor", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Listens no more."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Handler(BaseHTTPRequestHandler):
    timeout = REQUEST_SECONDS
    told: CollectorRegistry
    asked: Callable[[], str]

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        if path == "/metrics":
            encode, kind = choose_encoder(self.headers.get("Accept") or "")
            self._answer(HTTPStatus.OK, encode(self.told), kind)
        elif path == "/healthz":
            problem = self.asked()
            status = HTTPStatus.SERVICE_UNAVAILABLE if problem else HTTPStatus.OK
            self._answer(status, json.dumps({"live": not problem, "reason": problem}).encode(), "application/json")
        else:
            self._answer(HTTPStatus.NOT_FOUND, b"here are /metrics and /healthz\n", "text/plain; charset=utf-8")

    def _answer(self, status: HTTPStatus, content: bytes, kind: str) -> None:
        try:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)
        except (ConnectionError, TimeoutError) as error:
            _log.debug("whoever asked for %s did not wait for the answer: %s", self.path, error)

    def version_string(self) -> str:
        return "perdure"

    def log_message(self, format: str, *args: Any) -> None:
        _log.debug(format, *args)
