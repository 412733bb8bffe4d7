"""What tells browsers to be careful with the answers."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
"""For pages of our own: what they need comes from here, as files, and nobody frames them."""

DOCS_POLICY = (
    "default-src 'none'; script-src 'self' 'unsafe-inline' https://cdn.jsdelivr.net; worker-src blob:; "
    "style-src 'self' 'unsafe-inline' https://cdn.jsdelivr.net https://fonts.googleapis.com; "
    "font-src https://fonts.gstatic.com; "
    "img-src 'self' data: https://fastapi.tiangolo.com https://cdn.redoc.ly; connect-src 'self'; base-uri 'none'; "
    "frame-ancestors 'none'"
)
"""For FastAPI's pages, which load Swagger UI and ReDoc from a public host and start them inline."""

DATA_POLICY = "default-src 'none'; frame-ancestors 'none'"
"""For all that is no page: should a browser take it for one, it does nothing."""

DOCS = frozenset({"/docs", "/redoc"})

ALWAYS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "x-frame-options": "DENY",
    "cross-origin-resource-policy": "same-origin",
    # Predictions are about people's texts: no proxy and no browser keeps them.
    "cache-control": "no-store",
}
"""On every answer."""

POLICY = "content-security-policy"

_ALWAYS = tuple((name.encode("ascii"), value.encode("ascii")) for name, value in ALWAYS.items())
_POLICY = POLICY.encode("ascii")


class SecurityHeaders:
    """ASGI middleware that adds the headers which an answer does not set itself."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def careful(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = list(message.get("headers", ()))
                given = dict(headers)
                headers += [pair for pair in _ALWAYS if pair[0] not in given]
                if _POLICY not in given:
                    headers.append((_POLICY, _policy(scope["path"], given.get(b"content-type", b""))))
                message["headers"] = headers
            await send(message)

        await self._app(scope, receive, careful)


def _policy(path: str, kind: bytes) -> bytes:
    if not kind.startswith(b"text/html"):
        return _DATA
    return _DOCS if path in DOCS else _PAGE


_DATA, _DOCS, _PAGE = (policy.encode("ascii") for policy in (DATA_POLICY, DOCS_POLICY, PAGE_POLICY))
