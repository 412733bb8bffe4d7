"""What a worker tells its parent, again and again: a line of JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

BEAT_SECONDS = 0.25
"""How often a worker tells it."""

CONNECTION = b"c"
"""The parent's message that a connection comes with."""

ASKED = b"a"
"""The parent's message that somebody has asked another worker for readiness."""


@dataclass(frozen=True, slots=True)
class Beat:
    """How a worker is."""

    live: bool
    """False when only a restart helps."""
    serving: bool
    """Whether it can do what it is there for; connections go to those that can, while there are any."""
    leaving: bool
    """Takes no connections any more."""
    taken: int
    """Connections that it has got from the parent since it was started."""
    open: int
    """Connections that are open."""
    asked: bool
    """Whether somebody has asked it for readiness since its last beat."""
    line: str | None
    """What is to be said when all workers are ready; None until this one is."""

    def encode(self) -> bytes:
        """As a line."""
        return json.dumps(asdict(self)).encode() + b"\n"

    @classmethod
    def decode(cls, line: bytes) -> Beat:
        """From a line."""
        return cls(**json.loads(line))
