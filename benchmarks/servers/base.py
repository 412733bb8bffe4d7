"""What the benchmark knows of a server."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Answers = Literal["transformer", "version", "two_spaces"]
"""Whose answers are the right ones: the transformer's, or those of a version of Perdure."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a server runs, and with what."""

    folder: Path
    """Its working folder, empty at the start."""
    python: Path
    """The Python of its environment."""
    port: int
    threads: int
    transformer: Path
    """The folder of the transformer."""
    export: Path
    """The folder of the exported version."""
    registry: Path
    """The registry whose champion is the version."""
    two_spaces: Path
    """The registry whose champion has two feature spaces."""


@dataclass(frozen=True, slots=True)
class Launch:
    """How a server is started."""

    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Server:
    """One contestant that is asked over HTTP."""

    name: str
    launch: Callable[[Place], Launch]
    path: str
    """Where it is asked."""
    answers: Answers
    settings: Mapping[str, object]
    """What it was told, and why; for whoever reads the figures."""
    requirements: str | None = None
    """Its environment; None for the one that the benchmark itself runs in."""
    sees_ours: bool = False
    """Its environment sees the packages of the benchmark's, behind its own."""
    body: Callable[[str], str] = lambda text: json.dumps({"text": text})
    """The request for one text."""
    mark: Callable[[str], str] = lambda label: f'"label":{json.dumps(label)}'
    """What an answer with that label contains."""
