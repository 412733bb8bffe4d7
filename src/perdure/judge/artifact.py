"""What was measured of the very files that would be served."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Artifact:
    """A candidate, written and read back."""

    finite: bool
    """All weights are finite numbers."""
    agreement: float
    """Share of rows on which the reloaded artifact answers the same label as the candidate in memory."""
    seconds_per_text: float | None
    """None where latency was not measured."""
    champion_seconds_per_text: float | None
