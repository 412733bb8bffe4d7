"""What gRPC calls a refusal."""

from __future__ import annotations

import grpc

from perdure_services.keys import redacted
from perdure_services.serving.refusal import Refusal

MAX_DETAIL_BYTES = 4096
"""Details travel in a header, percent-encoded, and clients take 8 KiB of headers by default."""

CODES: dict[int, grpc.StatusCode] = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    408: grpc.StatusCode.DEADLINE_EXCEEDED,
    409: grpc.StatusCode.FAILED_PRECONDITION,
    413: grpc.StatusCode.INVALID_ARGUMENT,
    422: grpc.StatusCode.INVALID_ARGUMENT,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    500: grpc.StatusCode.INTERNAL,
    501: grpc.StatusCode.UNIMPLEMENTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
"""By the HTTP status of the same refusal over REST."""

RETRY_AFTER = "retry-after"
"""Trailing metadata with the seconds of REST's header of this name."""

PUSHBACK = "grpc-retry-pushback-ms"
"""The same in milliseconds, for clients whose retry policy does by itself what it says.

https://github.com/grpc/proposal/blob/master/A6-client-retries.md
"""


def code_of(refusal: Refusal) -> grpc.StatusCode:
    """The status code of `refusal`."""
    return CODES.get(refusal.status_code, grpc.StatusCode.UNKNOWN)


def details_of(refusal: Refusal, id: str) -> str:
    """What happened and what to do, without the secrets of API keys, and the id of the call."""
    return f"{_bounded(redacted(f'{refusal.what}: {refusal.do}'))} (request {id})"


def trailers_of(refusal: Refusal) -> tuple[tuple[str, str], ...]:
    """The trailing metadata of `refusal`."""
    seconds = (refusal.headers or {}).get("Retry-After")
    return () if seconds is None else ((RETRY_AFTER, seconds), (PUSHBACK, str(1000 * int(seconds))))


def _bounded(text: str) -> str:
    # As gRPC encodes it: a byte outside of printable ASCII, or a percent sign, becomes three.
    room = MAX_DETAIL_BYTES
    for place, character in enumerate(text):
        printable = " " <= character <= "~" and character != "%"
        # Halves of surrogate pairs come in values that are shown; no header carries them, and a question mark goes.
        room -= 1 if printable else 3 * len(character.encode("utf-8", "replace"))
        if room < 0:
            return _carried(f"{text[:place]}…")
    return _carried(text)


def _carried(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")
