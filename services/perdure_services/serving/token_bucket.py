"""How many requests a key may make."""

from __future__ import annotations


class TokenBucket:
    """Holds up to `burst` tokens, gains `rate` a second, and every request takes one. For one thread."""

    __slots__ = ("_at", "_tokens", "burst", "rate")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self.rate = rate
        self.burst = burst
        self._tokens = burst
        self._at = now

    def take(self, now: float) -> float:
        """Takes a token and returns 0; where there is none, the seconds until there is one. `now` in seconds."""
        tokens = min(self.burst, self._tokens + (now - self._at) * self.rate)
        self._at = now
        if tokens >= 1.0:
            self._tokens = tokens - 1.0
            return 0.0
        self._tokens = tokens
        return (1.0 - tokens) / self.rate
