"""Memory that was freed goes back to the system."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import pytest

from perdure import heap


def resident() -> int:
    """Bytes of this process in memory."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * 4096


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="the C library is not glibc")
def test_what_is_freed_between_what_is_kept_is_given_back() -> None:
    heap.trim()
    # A freed block of this size teaches glibc to take others of up to it from the heap.
    np.ones(30_000_000, dtype=np.uint8)
    blocks = [(np.ones(1_000_000, dtype=np.uint8), np.ones(2_000, dtype=np.uint8)) for _ in range(300)]
    kept = [small for _, small in blocks]
    blocks.clear()
    before = resident()
    heap.trim()
    assert before - resident() > 200_000_000
    assert len(kept) == 300


def test_without_glibc_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heap, "_library", lambda: None)
    heap.trim()
