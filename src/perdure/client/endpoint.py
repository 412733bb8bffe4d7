"""Where the API is, who asks, and how patiently: what `Client` and `AsyncClient` share."""

from __future__ import annotations

import os
import ssl
from abc import ABC, abstractmethod
from importlib.metadata import version
from typing import Any, TypeVar
from urllib.parse import SplitResult, urlsplit

import httpcore

from perdure.client.attempts import Patience, Steps, attempts
from perdure.client.idle import Idle
from perdure.client.operation import Operation, Reply
from perdure.client.refusal import unreadable
from perdure.errors import UsageError

DEFAULT_URL = "http://127.0.0.1:8000"
"""Where `perdure serve` listens unless told otherwise."""

KEY_VARIABLE = "PERDURE_API_KEY"

TIMEOUT = "X-Request-Timeout-Ms"
"""Header with the milliseconds that a try may still take: what cannot be done in them, the API need not begin."""

MOST_MILLISECONDS = 10**12 - 1
"""The API reads twelve digits."""

CONNECT_SECONDS = 3.0

T = TypeVar("T")


class Endpoint(ABC):
    """The API at `url`.

    Nothing in the environment leads requests elsewhere: proxies, redirects and `.netrc` are not followed.

    Args:
        url: of the API; it may have a path, where a proxy puts the API below one.
        api_key: sent as a bearer token; without one, the environment's PERDURE_API_KEY is, if there is one.
        timeout: seconds for one try, connecting included.
        deadline: seconds for a whole call, with all tries and the pauses between them.
        tries: most tries of one call; 1 sends everything once, but for connections that the API closed while idle.
        connections: most connections at a time; further calls wait for one.
        tls: for https, whom to trust; None trusts the public authorities.

    Raises:
        UsageError: one of them cannot be used.
    """

    _idle: Idle[Any]

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        api_key: str | None = None,
        timeout: float = 10.0,
        deadline: float = 30.0,
        tries: int = 4,
        connections: int = 32,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        parts = _split(url)
        self.url = url.rstrip("/")
        self._patience = Patience(timeout, deadline, tries)
        if connections < 1:
            raise UsageError(f"connections must be at least 1, got {connections!r}")
        self._connections = connections
        # Reading the authorities takes a while, and only https needs them.
        self._tls = (tls or httpcore.default_ssl_context()) if parts.scheme == "https" else None
        self._origin = httpcore.URL(self.url).origin
        self._headers = {
            "Host": parts.netloc,
            "Accept": "application/json",
            "User-Agent": f"perdure/{version('perdure')}",
        }
        key = _key(os.environ.get(KEY_VARIABLE, "") if api_key is None else api_key)
        if key:
            self._headers["Authorization"] = f"Bearer {key}"
        self._open()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"

    @abstractmethod
    def _open(self) -> None:
        """Prepares for connections."""

    def _steps(self, operation: Operation[Any]) -> Steps:
        if self._idle.closed:
            raise UsageError(f"{self!r} is closed: make a new one, or call {operation.name} inside the with block")
        return attempts(operation, self._patience, self.url)

    def _request(self, operation: Operation[Any], seconds: float, trace: object) -> dict[str, Any]:
        """The arguments of a connection's `request`, which has so many seconds left."""
        headers = {**self._headers, TIMEOUT: str(min(max(int(seconds * 1000), 1), MOST_MILLISECONDS))}
        if operation.body is not None:
            headers["Content-Type"] = "application/json"
        limits = {"connect": min(CONNECT_SECONDS, seconds), "read": seconds, "write": seconds}
        return {
            "method": operation.method,
            "url": self.url + operation.path,
            "headers": list(headers.items()),
            "content": operation.body,
            "extensions": {"timeout": limits, "trace": trace},
        }

    def _value(self, operation: Operation[T], reply: Reply) -> T:
        try:
            return operation.read(reply.body)
        except ValueError as error:
            raise unreadable(operation, reply, self.url, error) from error


def reply_of(response: httpcore.Response) -> Reply:
    """A response that was read to its end."""
    headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in response.headers}
    return Reply(response.status, headers, response.content)


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        known = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
    except ValueError as error:
        raise UsageError(f"the URL {url!r} cannot be used: {error}. Give one like {DEFAULT_URL}") from error
    if parts.username is not None or parts.password is not None:
        raise UsageError(
            f"the URL of the API at {parts.hostname} holds a name or a password: give an API key as api_key instead"
        )
    if not known or parts.query or parts.fragment or not url.isascii() or not url.isprintable() or " " in url:
        raise UsageError(
            f"the URL {url!r} is not one of an API: give http:// or https://, a host in ASCII, a port and a path if "
            f"there are any, and nothing else, as in {DEFAULT_URL}"
        )
    return parts


def _key(given: str) -> str:
    # A file that holds a key often ends with a line break.
    key = given.strip()
    if not key.isascii() or not key.isprintable() or " " in key:
        raise UsageError(
            f"the API key ({len(key)} characters, not shown) holds one that no key has: a space, a control character "
            f"or one outside ASCII. Give the key alone, as api_key or in {KEY_VARIABLE}"
        )
    return key
