"""The replay memory: an order-free reservoir in SQLite, with views served by FAISS."""

from __future__ import annotations

from perdure.config import Settings
from perdure_replay.herding import herding
from perdure_replay.replay_memory import ReplayMemory

__all__ = ["ReplayMemory", "herding", "open_memory"]


def open_memory(settings: Settings, *, read_only: bool = False) -> ReplayMemory:
    """The memory in the folder `settings.memory.path`; made when there is none and it is not opened for reading.

    Raises:
        StoreBusy: another process writes it.
        StoreCorrupt: its database cannot be read.
        UsageError: the folder cannot be used, has no memory to read, or was written by a newer version.
    """
    return ReplayMemory(settings, read_only=read_only)
