"""The cores of the machine, shared out among processes, and in each of them among batches that run at once."""

from __future__ import annotations

import os

from perdure.config import ServingSettings

MOST_AT_ONCE = 4
"""Batches that run at once by default: more than these are not kept busy by one process's event loop."""


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def share_of(settings: ServingSettings) -> int:
    """Cores for one of the processes."""
    return max(cores() // settings.processes, 1)


def batches_at_once(settings: ServingSettings) -> int:
    """Batches that one process runs at once; by default one a core: two on one core each are faster than one on two."""
    return settings.parallel_batches or min(share_of(settings), MOST_AT_ONCE)


def threads_of_batch(settings: ServingSettings) -> int:
    """Cores for one of those batches."""
    return max(share_of(settings) // batches_at_once(settings), 1)
