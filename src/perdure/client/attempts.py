"""How often a request is sent, and how long is waited in between, without a connection or a clock of its own.

A generator asks for one try or one pause after the other; `Client` and `AsyncClient` do them.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

from perdure.client.operation import Operation, Reply
from perdure.client.refusal import refusal
from perdure.client.retry_after import seconds_of
from perdure.errors import ApiError, ApiOutcomeUnknown, ApiTimeout, ApiUnreachable, UsageError

FIRST_PAUSE = 0.1
LONGEST_PAUSE = 5.0
"""Seconds; the longest possible pause doubles from the first to this."""

LATER = frozenset({408, 429, 502, 503, 504})
"""Statuses that another try may change. After 429 nothing was done; after the others it may have been."""

TOO_MANY = 429

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Patience:
    """How long is waited.

    Args:
        timeout: seconds for one try, connecting included.
        deadline: seconds for a whole call, with all tries and pauses.
        tries: most tries of one call.
    """

    timeout: float
    deadline: float
    tries: int

    def __post_init__(self) -> None:
        for name in ("timeout", "deadline"):
            seconds = getattr(self, name)
            # More than this, some 300 years, no lock and no socket takes.
            if not 0 < seconds <= threading.TIMEOUT_MAX:
                raise UsageError(
                    f"{name} must be a number of seconds above 0, at most {threading.TIMEOUT_MAX:.0f}, got {seconds!r}"
                )
        if self.tries < 1:
            raise UsageError(f"tries must be at least 1, got {self.tries!r}")


@dataclass(frozen=True, slots=True)
class Try:
    """Send it, and give up after `seconds`."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait for `seconds`."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Fault:
    """No answer."""

    reason: str
    sent: bool
    """Whether a byte of the request may have arrived."""
    timed_out: bool
    stale: bool = False
    """Whether a connection that had been used before broke before a byte of the answer: the API closed it while it
    idled, and says nothing about this request by it."""


Steps = Generator[Try | Pause, Reply | Fault | None, Reply]


def attempts(
    operation: Operation[Any],
    patience: Patience,
    url: str,
    *,
    clock: Callable[[], float] = time.monotonic,
    jitter: Callable[[float, float], float] = random.uniform,
) -> Steps:
    """The steps of one call; returns the answer that says yes.

    A pause is drawn evenly between 0 and a bound that doubles ("full jitter", Brooker, "Exponential Backoff and
    Jitter", 2015), after what `Retry-After` asks for. One that would end after the deadline is not begun.

    Raises:
        ApiError: what else became of it.
    """
    begun = clock()
    end = begun + patience.deadline
    tries = 1 if operation.once else patience.tries
    made = counted = 0
    arrived = False
    while True:
        made += 1
        outcome = yield Try(min(patience.timeout, end - clock()))
        assert outcome is not None
        if isinstance(outcome, Reply) and 200 <= outcome.status < 300:
            return outcome
        arrived = arrived or isinstance(outcome, Reply) or outcome.sent
        wait = 0.0
        if not (isinstance(outcome, Fault) and outcome.stale):
            counted += 1
            bound = min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(counted - 1, 16))
            wait = _asked_for(outcome) + jitter(0.0, bound)
        if counted >= tries or clock() + wait >= end or not _repeatable(operation, outcome):
            spent = f"{made} {'try' if made == 1 else 'tries'} in {clock() - begun:.1f} s"
            raise _error(operation, outcome, url, spent, arrived=arrived)
        _log.info("%s: %s; again in %.2f s", operation.name, _reason(outcome), wait)
        if wait:
            yield Pause(wait)


def _repeatable(operation: Operation[Any], outcome: Reply | Fault) -> bool:
    if isinstance(outcome, Fault):
        return operation.repeatable or not outcome.sent
    return outcome.status in LATER and (operation.repeatable or outcome.status == TOO_MANY)


def _asked_for(outcome: Reply | Fault) -> float:
    return seconds_of(outcome.headers) or 0.0 if isinstance(outcome, Reply) else 0.0


def _reason(outcome: Reply | Fault) -> str:
    return f"status {outcome.status}" if isinstance(outcome, Reply) else outcome.reason


def _error(operation: Operation[Any], outcome: Reply | Fault, url: str, spent: str, *, arrived: bool) -> ApiError:
    if isinstance(outcome, Reply):
        return refusal(operation, outcome, url)
    if not outcome.sent:
        before = "An earlier try may have arrived" if arrived else "Nothing was sent"
        return ApiUnreachable(
            f"{operation.name}: no connection to the API at {url} ({outcome.reason}; {spent}). {before}. "
            "See that `perdure serve` runs there, and that the URL is right"
        )
    if not operation.repeatable:
        return ApiOutcomeUnknown(
            f"{operation.name}: it was sent to the API at {url}, but no answer came ({outcome.reason}; {spent}). It "
            "may have been done, and is not sent twice: look at versions() before it is asked again"
        )
    if outcome.timed_out:
        return ApiTimeout(
            f"{operation.name}: no answer from the API at {url} in time ({outcome.reason}; {spent}). See how busy it "
            "is, send fewer texts in one request, or give it more time with timeout and deadline"
        )
    return ApiUnreachable(
        f"{operation.name}: the connection to the API at {url} broke before the answer was there ({outcome.reason}; "
        f"{spent}). See the API's log, and try again later"
    )
