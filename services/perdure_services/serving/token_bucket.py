"""How many requests a key may make."""

from __future__ import annotations

from typing import Protocol


class Bucket(Protocol):
    """Holds up to `burst` tokens, gains `rate` a second, and every request takes one."""

    rate: float
    burst: float

    def take(self, now: float) -> float:
        """Takes a token and returns 0; where there is none, the seconds until there is one. `now` in seconds."""


class TokenBucket:
    """A bucket of this process. For one thread."""

    __slots__ = ("_at", "_tokens", "burst", "rate")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self.rate = rate
        self.burst = burst
        self._tokens = burst
        self._at = now

    def take(self, now: float) -> float:
        """As `Bucket`."""
        self._tokens, seconds = taken(self._tokens, now - self._at, rate=self.rate, burst=self.burst)
        self._at = now
        return seconds


def taken(tokens: float, seconds: float, *, rate: float, burst: float) -> tuple[float, float]:
    """The tokens of a bucket that held `tokens` some `seconds` ago when one has been taken, and how long to wait for
    one where there was none."""
    tokens = min(burst, tokens + seconds * rate)
    if tokens >= 1.0:
        return tokens - 1.0, 0.0
    return tokens, (1.0 - tokens) / rate
