"""What processes have used: CPU time and memory of each with all that it started."""

from __future__ import annotations

import os
from collections.abc import Iterable

from servers.process import family, proportional_bytes, stat_fields

TICKS = os.sysconf("SC_CLK_TCK")
UTIME, STIME = 11, 12
"""Places in `stat_fields`."""


def cpu_seconds(roots: Iterable[int]) -> float:
    """User and system time of the processes `roots` and of those that came from them and live, to a tick."""
    total = 0
    for root in roots:
        for pid in family(root):
            if fields := stat_fields(pid):
                total += int(fields[UTIME]) + int(fields[STIME])
    return total / TICKS


def memory_bytes(roots: Iterable[int]) -> int:
    """What they hold, pages that they share divided among those that share them."""
    return sum(proportional_bytes(pid) for root in roots for pid in family(root))
