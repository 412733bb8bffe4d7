"""What a worker is told when it is started, in one JSON object on its standard input."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Hello:
    """Who a worker is, and what it is to do."""

    place: int
    """Its number among the workers, from 0; whoever is started in its stead has it too."""
    processes: int
    """How many workers there are."""
    restarts: int
    """How often the worker of this place was started again."""
    folder: str
    """A folder that only this user can enter, and all workers share; it is gone when they have ended."""
    given: Mapping[str, Any]
    """What it is to do: not the parent's business."""

    def encode(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def decode(cls, text: str) -> Hello:
        """From JSON."""
        return cls(**json.loads(text))
