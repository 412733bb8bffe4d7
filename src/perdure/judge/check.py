"""One question of a judgement, and its answer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that a candidate must show."""

    name: str
    passed: bool | None
    """None: too little evidence to say."""
    value: float | None
    """What was found; None where there is no number, or none could be had."""
    limit: float | None
    """What `value` was held against."""
    rows: int
    """Rows that `value` rests on; 0 where it rests on none."""
    sentence: str
    """The same in words, without a full stop."""

    def to_json(self) -> dict[str, Any]:
        """JSON types only; numbers that are not finite become null."""
        return {
            "name": self.name,
            "passed": self.passed,
            "value": _finite(self.value),
            "limit": _finite(self.limit),
            "rows": self.rows,
            "sentence": self.sentence,
        }


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


def percent(share: float) -> str:
    """A share as percent: one decimal, none where it is 0."""
    return f"{100 * share:.1f}".removesuffix(".0") + " %"


def points(difference: float) -> str:
    """A difference of shares as signed percentage points."""
    return f"{100 * difference + 0.0:+.1f}".replace("-0.0", "+0.0") + " points"


def counted(count: int, noun: str) -> str:
    """`1 row`, `2 rows`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
