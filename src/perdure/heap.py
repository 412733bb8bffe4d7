"""Freed memory, given back to the system."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any


def trim() -> None:
    """Gives the system what has been freed; where the C library cannot, nothing happens.

    glibc keeps what is freed between what is still in use, and takes ever larger blocks from there the more it has seen
    of them. A process that trains in turns grows so by some hundred megabytes a turn, until its pod's limit ends it.
    """
    if (library := _library()) is not None:
        library.malloc_trim(0)


@cache
def _library() -> Any:
    """The C library, where it is glibc."""
    library = ctypes.CDLL(None)
    return library if hasattr(library, "malloc_trim") else None
