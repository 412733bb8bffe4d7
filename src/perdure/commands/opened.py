"""The loop with everything that it needs, opened from settings and closed again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from perdure.config import Settings
from perdure.memory import open_memory
from perdure.registry import Fence, Registry
from perdure.registry.cache import prune
from perdure.stream import open_stream

if TYPE_CHECKING:
    from perdure.loop import Loop


@contextmanager
def opened_loop(
    settings: Settings,
    *,
    stage: Callable[[str], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
    term: int | None = None,
) -> Iterator[Loop]:
    """The loop over the stream, memory and registry that `settings` name.

    What it writes to the registry is fenced by `term`, a trainer's.

    Raises:
        StoreBusy: another process writes the memory.
        PerdureError: one of them cannot be opened.
    """
    from perdure.loop import Loop

    # Whoever does not get the memory has no business with the rest.
    with open_memory(settings) as memory, open_stream(settings.stream) as stream:
        # One more copy with every turn would fill the disk.
        prune(version_cache(settings))
        yield Loop(
            settings,
            stream=stream,
            memory=memory,
            registry=Registry(settings.registry.url, Fence(settings.registry.url, term) if term else None),
            cache=version_cache(settings),
            stage=stage,
            progress=progress,
        )


def version_cache(settings: Settings) -> Path:
    """The trainer's local copies of versions."""
    return Path(settings.memory.path) / "versions"
