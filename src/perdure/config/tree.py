"""Settings as a tree of plain values, while they are put together."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Any

from perdure.errors import SettingError


def leaves(tree: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted name (`section.name`) and value of all that `tree` holds."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def put(tree: dict[str, Any], name: str, value: Any, origin: str | None = None) -> None:
    """Replaces the leaf `name` of a tree that holds every setting.

    Args:
        origin: what the setting was called where it was found, for the error.

    Raises:
        SettingError: there is no such setting; the message has the nearest.
    """
    *sections, leaf = name.split(".")
    branch: Any = tree
    for section in sections:
        branch = branch.get(section) if isinstance(branch, dict) else None
    if not isinstance(branch, dict) or leaf not in branch or isinstance(branch[leaf], dict):
        known = [known for known, _ in leaves(tree)]
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
        raise SettingError(f"unknown setting {origin or name!r}: did you mean {near[0]!r}?")
    branch[leaf] = value
