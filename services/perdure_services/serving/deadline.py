"""Until when an answer is wanted.

A client says in `X-Request-Timeout-Ms` how long it will wait. HTTP has no standard header for that: `Prefer: wait`
(RFC 7240) knows whole seconds only, and Triton's parameter `timeout` stands in the body, where it is read too late to
refuse cheaply. Milliseconds in a header of their own are what Envoy sends to those behind it, so its
`x-envoy-expected-rq-timeout-ms` is understood as well; the shorter counts.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from perdure_services.serving.refusal import Refusal

HEADER = "X-Request-Timeout-Ms"

HEADERS = frozenset({HEADER.lower().encode(), b"x-envoy-expected-rq-timeout-ms"})

_deadline: ContextVar[float] = ContextVar("perdure_deadline", default=math.inf)


def deadline_in(headers: Iterable[tuple[bytes, bytes]], most: float) -> float:
    """When the answer must be there, in monotonic seconds: `most` seconds from now, or sooner where `headers` say so.

    Raises:
        Refusal: 422 when a header does not hold a whole number of milliseconds above 0.
    """
    for name, value in headers:
        if name in HEADERS:
            text = value.strip()
            # int() would take signs, underscores and as many digits as it is given.
            if not text.isdigit() or len(text) > 12 or not int(text):
                raise Refusal(
                    422,
                    f"the header {name.decode('latin-1')} is not a whole number of milliseconds above 0",
                    value=value.decode("latin-1"),
                    do="send for example 500 for half a second, or leave it out",
                )
            most = min(most, int(text) / 1000.0)
    return time.monotonic() + most


@contextmanager
def wanted_by(deadline: float) -> Iterator[None]:
    """What is done inside is wanted by `deadline`."""
    token = _deadline.set(deadline)
    try:
        yield
    finally:
        _deadline.reset(token)


def current_deadline() -> float:
    """When the answer to the request that is being answered must be there, in monotonic seconds; infinite if never."""
    return _deadline.get()


def too_late() -> Refusal:
    """The answer to what was not answered in time."""
    return Refusal(
        504,
        "no answer was there in time",
        do=f"send fewer texts in one request, or allow more time: the header {HEADER}, or serving.timeout_seconds",
    )
