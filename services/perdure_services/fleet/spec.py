"""What a fleet is started with: a file in its folder, since the parent is a program of its own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from perdure.logs import LogFormat

FILE = "spec.json"


@dataclass(frozen=True, slots=True)
class Spec:
    """Who is started, how often, and what it is given."""

    command: tuple[str, ...]
    """What starts a worker; the number of a file descriptor, its line to the parent, is added."""
    processes: int
    """How many workers."""
    given: Mapping[str, Any]
    """What each is given (see `Hello`)."""
    listener: int
    """File descriptor of the socket that is listened at."""
    stop_seconds: float
    """How long a worker may take to end before it is killed."""
    level: int
    """From which level on the parent logs."""
    log: LogFormat
    """What its log lines look like; in JSON the line that all are ready is one of them, else it is printed."""

    def write(self, folder: Path) -> None:
        """Into the folder of the fleet.

        Raises:
            OSError: it cannot be written.
        """
        (folder / FILE).write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Spec:
        """From the folder of the fleet.

        Raises:
            OSError: there is none.
        """
        found = json.loads((folder / FILE).read_text(encoding="utf-8"))
        return cls(**{**found, "command": tuple(found["command"])})
