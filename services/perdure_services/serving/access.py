"""Who may call what.

Every route says beside itself which scope it needs, `@needs("predict")`, or that it is open, `@open_to_all`; one that
says neither cannot be made. The check comes before a byte of the body is read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Coroutine, Iterable
from pathlib import Path
from typing import Any, Literal, TypeVar

from fastapi.routing import APIRoute
from prometheus_client import CollectorRegistry, Counter
from starlette.requests import Request
from starlette.responses import Response

from perdure.config import ServingSettings
from perdure_services.keys import KeyScope
from perdure_services.serving.keyring import HeldKey, Keyring
from perdure_services.serving.refusal import Refusal

HOW = "send the header `Authorization: Bearer KEY` or `X-API-Key: KEY`"

CHALLENGE = 'Bearer realm="perdure"'
"""RFC 6750, section 3."""

SECURITY_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "An API key, from `perdure keys create`."},
    "apiKey": {
        "type": "apiKey",
        "in": "header",
        "name": "X-API-Key",
        "description": "The same key.",
    },
}

Reason = Literal["missing", "unknown", "expired", "scope", "rate"]

_REASONS: tuple[Reason, ...] = ("missing", "unknown", "expired", "scope", "rate")
_NEEDED = "__perdure_needs__"
_CALLER = "perdure.caller"

Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])


def needs(scope: KeyScope) -> Callable[[Endpoint], Endpoint]:
    """Declares that only keys with `scope` may call an endpoint; stands below the route's own decorator."""

    def declare(endpoint: Endpoint) -> Endpoint:
        setattr(endpoint, _NEEDED, scope)
        return endpoint

    return declare


def open_to_all(endpoint: Endpoint) -> Endpoint:
    """Declares that an endpoint asks for no key; stands below the route's own decorator."""
    setattr(endpoint, _NEEDED, None)
    return endpoint


class Access:
    """Lets the requests pass that may, in a serving process.

    Raises:
        SettingError: the file of keys cannot be used.
    """

    def __init__(self, settings: ServingSettings, registry: CollectorRegistry) -> None:
        self._keyring = Keyring(Path(settings.keys), registry) if settings.keys else None
        self._open_metrics = settings.open_metrics
        refused = Counter(
            "perdure_access_refused", "Requests refused for want of a key or a right.", ("reason",), registry=registry
        )
        self._refused = {reason: refused.labels(reason) for reason in _REASONS}

    def share_rates(self, file: Path) -> None:
        """From now on the rates of keys are those of all processes that share `file`, which is made.

        Raises:
            OSError: it cannot be made.
            SettingError: the file of keys cannot be used.
        """
        if self._keyring is not None:
            self._keyring.share(file)

    def admit(self, headers: Iterable[tuple[bytes, bytes]], needed: KeyScope) -> str | None:
        """The name of the key in `headers` (lower-case names), which has the scope `needed`; None where none is asked.

        Raises:
            Refusal: 401 no key, or none that is known; 403 a key without the scope; 429 more requests than its rate.
        """
        key = self._key(headers, needed)
        if key is None:
            return None
        if key.bucket is not None and self._keyring is not None:
            seconds = key.bucket.take(self._keyring.now())
            if seconds > 0.0:
                self._refused["rate"].inc()
                raise Refusal(
                    429,
                    f"the API key {key.name} sends more than {key.bucket.rate:g} requests a second",
                    do="send the request again after the seconds that Retry-After says",
                    headers={"Retry-After": str(math.ceil(seconds))},
                )
        return key.name

    def check(self, headers: Iterable[tuple[bytes, bytes]], needed: KeyScope) -> None:
        """Whether a request that was admitted may do something more, for which it needs the scope `needed` too.

        Raises:
            Refusal: 401 and 403 as `admit`.
        """
        self._key(headers, needed)

    def _key(self, headers: Iterable[tuple[bytes, bytes]], needed: KeyScope) -> HeldKey | None:
        keyring = self._keyring
        if keyring is None or (self._open_metrics and needed == "metrics"):
            return None
        text = _credential(headers)
        if text is None:
            raise self._refusal("missing", 401, "this needs an API key", do=HOW, challenge=CHALLENGE)
        key = keyring.find(text)
        if key is None:
            # Nothing of it is shown or kept: it may be a typing error away from one that is good.
            raise self._refusal(
                "unknown",
                401,
                "this API key is not known here",
                do=f"check the key, or ask for a new one; {HOW}",
                challenge=f'{CHALLENGE}, error="invalid_token"',
            )
        if key.expired:
            raise self._refusal(
                "expired",
                401,
                f"the API key {key.name} has expired",
                do="ask for a new one",
                challenge=f'{CHALLENGE}, error="invalid_token"',
            )
        if needed not in key.scopes:
            raise self._refusal(
                "scope",
                403,
                f"the API key {key.name} has not the scope {needed}",
                value=", ".join(sorted(key.scopes)),
                do=f"ask for a key with the scope {needed}",
                challenge=f'{CHALLENGE}, error="insufficient_scope", scope="{needed}"',
            )
        return key

    def _refusal(
        self, reason: Reason, status: int, what: str, *, do: str, challenge: str, value: str | None = None
    ) -> Refusal:
        self._refused[reason].inc()
        return Refusal(status, what, value=value, do=do, headers={"WWW-Authenticate": challenge})


class GuardedRoute(APIRoute):
    """A route that admits before it reads.

    Raises:
        TypeError: its endpoint declares neither a scope nor that it is open.
    """

    def __init__(self, path: str, endpoint: Callable[..., Any], **named: Any) -> None:
        if not hasattr(endpoint, _NEEDED):
            raise TypeError(f"the route {path} says not who may call it: add @needs(SCOPE) or @open_to_all below it")
        self.needed: KeyScope | None = getattr(endpoint, _NEEDED)
        if self.needed is not None:
            asked = [{scheme: [self.needed]} for scheme in SECURITY_SCHEMES]
            named["openapi_extra"] = {**(named.get("openapi_extra") or {}), "security": asked}
        super().__init__(path, endpoint, **named)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()
        needed = self.needed
        if needed is None:
            return handler

        async def admitted(request: Request) -> Response:
            scope = request.scope
            access: Access = scope["app"].state.access
            scope[_CALLER] = access.admit(scope["headers"], needed)
            return await handler(request)

        return admitted


def also_needs(request: Request, scope: KeyScope) -> None:
    """Asks for a second scope where what a request says calls for it.

    Raises:
        Refusal: 401 and 403 as `Access.admit`.
    """
    access: Access = request.scope["app"].state.access
    access.check(request.scope["headers"], scope)


def caller_of(request: Request) -> str | None:
    """The name of the key that `request` came with; None where none is asked for."""
    name: str | None = request.scope.get(_CALLER)
    return name


def _credential(headers: Iterable[tuple[bytes, bytes]]) -> bytes | None:
    bearer = None
    for name, value in headers:
        # It wins: a gateway in front may use Authorization for purposes of its own.
        if name == b"x-api-key":
            return value.strip()
        if name == b"authorization" and value[:7].lower() == b"bearer ":
            bearer = value[7:].strip()
    return bearer
