"""The header `Retry-After` (RFC 9110, 10.2.3)."""

from __future__ import annotations

import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime


def seconds_of(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait, 0 or more; None where the header is missing or says nothing.

    A date is compared with the answer's own `Date`, so that clocks that differ do no harm.
    """
    said = headers.get("retry-after", "").strip()
    if said.isascii() and said.isdigit():
        return float(said)
    when = _timestamp(said)
    if when is None:
        return None
    sent = _timestamp(headers.get("date", ""))
    return max(when - (time.time() if sent is None else sent), 0.0)


def _timestamp(date: str) -> float | None:
    try:
        return parsedate_to_datetime(date).timestamp()
    except (ValueError, OverflowError):
        return None
