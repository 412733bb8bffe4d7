"""How many batches run at once, and on how many cores each."""

from __future__ import annotations

import os

from perdure.config import ServingSettings

MOST = 4
"""Batches that run at once by default: more than these are not kept busy by one process's event loop."""


def workers_of(settings: ServingSettings) -> int:
    """Batches that run at once; by default one a core, as one batch on two cores is slower than two on one each."""
    return settings.workers or min(cores(), MOST)


def threads_of(settings: ServingSettings) -> int:
    """Cores for one batch."""
    return max(cores() // workers_of(settings), 1)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
