"""What gRPC calls a refusal."""

from __future__ import annotations

import grpc

from perdure_services.keys import redacted
from perdure_services.serving.refusal import Refusal

MAX_DETAIL_CHARS = 1000
"""Details travel in a header, which clients bound at 8 KiB, with each byte outside of ASCII as three."""

CODES: dict[int, grpc.StatusCode] = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    409: grpc.StatusCode.FAILED_PRECONDITION,
    413: grpc.StatusCode.INVALID_ARGUMENT,
    422: grpc.StatusCode.INVALID_ARGUMENT,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    501: grpc.StatusCode.UNIMPLEMENTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
"""By the HTTP status of the same refusal over REST."""

RETRY_AFTER = "retry-after"
"""Trailing metadata with the seconds of REST's header of this name."""


def code_of(refusal: Refusal) -> grpc.StatusCode:
    """The status code of `refusal`."""
    return CODES.get(refusal.status_code, grpc.StatusCode.UNKNOWN)


def details_of(refusal: Refusal) -> str:
    """What happened and what to do, without the secrets of API keys."""
    # Halves of surrogate pairs come in values that are shown, and no header carries them.
    text = redacted(f"{refusal.what}: {refusal.do}").encode("utf-8", "replace").decode("utf-8")
    return text if len(text) <= MAX_DETAIL_CHARS else f"{text[:MAX_DETAIL_CHARS]}…"


def trailers_of(refusal: Refusal) -> tuple[tuple[str, str], ...]:
    """The trailing metadata of `refusal`."""
    seconds = (refusal.headers or {}).get("Retry-After")
    return () if seconds is None else ((RETRY_AFTER, seconds),)
