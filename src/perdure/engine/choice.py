"""What runs a version: its exported graphs, or torch, which the base install does without."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Literal

from perdure.errors import ExtraMissing

Choice = Literal["auto", "onnx", "torch"]

BY_TORCH = ("torch", "transformers")
"""What runs a version that was not exported; no part of the base install."""


def check_choice(engine: Choice) -> None:
    """Refuses an engine that cannot run here, before anything is loaded.

    Raises:
        ExtraMissing: torch is asked for by name, and is not installed.
    """
    if engine == "torch":
        check_torch("serving.engine=torch")


def check_torch(what: str) -> None:
    """Looks for torch without importing it.

    Args:
        what: would be run by it; begins the sentence of the error.

    Raises:
        ExtraMissing: it is not installed.
    """
    for package in BY_TORCH:
        if find_spec(package) is None:
            raise ExtraMissing(what, package)
