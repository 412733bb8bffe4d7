"""How long the model takes: what admission, batches and deadlines are reckoned with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

OVERHEAD = 10
"""What a text costs beside its characters, in characters: the tokens that every sequence begins and ends with."""

BEYOND = 64
"""Characters that are read and then cut off cost this many times less than those that the encoder sees."""

CHARS_PER_TOKEN = 5
"""Characters that make up a token, roughly; the encoder cuts texts by tokens."""

NEWEST = 0.2
"""Weight of the newest batch in the running mean for its size."""

PAUSE = 4.0
"""A batch counts as having taken at most this many times the mean: longer was not the model but the machine."""


@dataclass(frozen=True, slots=True)
class TextSize:
    """What the costs of texts depend on."""

    texts: int
    seen: int
    """Characters of the longest text that the encoder sees."""
    own: int
    """Work if no text were padded."""
    beyond: int
    """Work for what is cut off."""

    @property
    def padded(self) -> int:
        """Work if all texts are padded to the longest."""
        return self.texts * (self.seen + OVERHEAD) + self.beyond

    def __add__(self, other: TextSize) -> TextSize:
        return TextSize(
            self.texts + other.texts,
            max(self.seen, other.seen),
            self.own + other.own,
            self.beyond + other.beyond,
        )


def measured(texts: Sequence[str], cut: int) -> TextSize:
    """The size of `texts` (at least one) for an encoder that sees about `cut` characters of each."""
    seen = longest = beyond = 0
    for text in texts:
        length = len(text)
        if length > cut:
            beyond += (length - cut) // BEYOND
            length = cut
        seen += length
        longest = max(longest, length)
    return TextSize(len(texts), longest, seen + beyond + len(texts) * OVERHEAD, beyond)


class Pace:
    """Seconds that a batch takes, as fixed + per_work · work, fitted to the batches that were run.

    One running mean is kept for each size (in powers of two), so that a time of many small batches does not make the
    large ones forgotten. The line has the smallest squared relative errors over these means, and no negative part.
    While only one size is known, all of its time counts as fixed: the rest is found out by trying. For one thread.
    """

    def __init__(self) -> None:
        self._means: dict[int, tuple[float, float]] = {}
        self.fixed = 0.0
        """Seconds that a batch takes whatever is in it."""
        self.per_work = 0.0
        """Seconds for each unit of work."""

    def learn(self, work: int, seconds: float) -> None:
        """A batch of `work` took `seconds`."""
        if seconds <= 0.0:
            return
        size = work.bit_length()
        known = self._means.get(size)
        if known is None:
            self._means[size] = (float(work), seconds)
        else:
            seconds = min(seconds, PAUSE * known[1])
            self._means[size] = (
                known[0] + NEWEST * (work - known[0]),
                known[1] + NEWEST * (seconds - known[1]),
            )
        self._fit()

    def seconds(self, work: int, batches: float = 1.0) -> float:
        """What `work` in that many batches is expected to take; 0 while nothing is known."""
        return self.fixed * batches + self.per_work * work

    def _fit(self) -> None:
        # Both sides are divided by the seconds: fixed · a + per_work · b = 1 for each size, with a = 1/s and b = w/s.
        rows = [(1.0 / seconds, work / seconds) for work, seconds in self._means.values()]
        a = sum(a for a, _ in rows)
        b = sum(b for _, b in rows)
        aa = sum(a * a for a, _ in rows)
        ab = sum(a * b for a, b in rows)
        bb = sum(b * b for _, b in rows)
        fixed, per_work = a / aa, 0.0
        # By Cauchy's inequality above 0 for two sizes, but for rounding.
        if len(rows) > 1 and (determinant := aa * bb - ab * ab) > 1e-9 * aa * bb:
            fixed = (a * bb - b * ab) / determinant
            per_work = (b * aa - a * ab) / determinant
            if fixed < 0.0:
                fixed, per_work = 0.0, b / bb
            elif per_work < 0.0:
                fixed, per_work = a / aa, 0.0
        self.fixed, self.per_work = fixed, per_work
