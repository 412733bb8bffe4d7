"""`perdure demo`."""

from __future__ import annotations


def demo() -> None:
    """The whole loop on one machine, live, ends with a report."""
