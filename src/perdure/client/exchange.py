"""One request over one connection: what happened to it."""

from __future__ import annotations

from typing import Any

import httpcore

from perdure.client.attempts import Fault

FAULTS = (httpcore.NetworkError, httpcore.TimeoutException, httpcore.RemoteProtocolError)
"""What may happen on the way."""


class Trace:
    """Notes how far a request came; `httpcore` calls it at each step."""

    def __init__(self) -> None:
        self._connected = False
        self._sent = False
        self._answered = False

    def note(self, step: str, _: dict[str, Any]) -> None:
        """For `httpcore.HTTPConnection`."""
        if step == "connection.connect_tcp.started":
            self._connected = True
        elif step == "http11.send_request_headers.started":
            self._sent = True
        elif step == "http11.receive_response_headers.complete":
            self._answered = True

    async def note_async(self, step: str, about: dict[str, Any]) -> None:
        """For `httpcore.AsyncHTTPConnection`."""
        self.note(step, about)

    def fault(self, error: Exception) -> Fault:
        """What `error` ended."""
        timed_out = isinstance(error, httpcore.TimeoutException | TimeoutError)
        return Fault(
            reason=_reason(error),
            sent=self._sent,
            timed_out=timed_out,
            stale=self._sent and not self._connected and not self._answered and not timed_out,
        )


def _reason(error: Exception) -> str:
    if isinstance(error, httpcore.PoolTimeout):
        return "all connections were in use"
    if isinstance(error, httpcore.ConnectTimeout):
        return "connecting took too long"
    if isinstance(error, httpcore.TimeoutException | TimeoutError):
        return "it took too long"
    return str(error).rstrip(".") or type(error).__name__
