"""Writes the chart's files that follow from others.

    python helm/documents.py

- `perdure/values.schema.json`: from `values.schema.yaml`, with Perdure's own settings under `config`
- `perdure/files/defaults.json`: the defaults of those settings, which templates compute with
- `perdure/README.md`: the values, from the comments in `perdure/values.yaml`
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from perdure.config import ALLOW_ANONYMOUS, Settings
from perdure.config.tree import leaves

HERE = Path(__file__).resolve().parent
CHART = HERE / "perdure"

_KEY = re.compile(r"^( *)([A-Za-z]\w*):(.*)$")


@dataclass(frozen=True)
class Value:
    """One value of the chart."""

    name: str
    """Dotted."""
    default: Any
    """None for a group of values."""
    meaning: str


def schema() -> dict[str, Any]:
    """What the values may be, as JSON Schema."""
    tree: dict[str, Any] = yaml.safe_load((HERE / "values.schema.yaml").read_text(encoding="utf-8"))
    anonymous = tree["properties"]["serving"]["properties"]["allowAnonymous"]
    anonymous["enum"] = ["", ALLOW_ANONYMOUS]
    settings = Settings.model_json_schema(ref_template="#/definitions/{model}")
    tree["definitions"] |= _without_defaults(settings.pop("$defs"))
    tree["properties"]["config"] = _without_defaults(settings)
    return tree


def defaults() -> dict[str, Any]:
    """Default of every setting of Perdure by its dotted name."""
    return dict(leaves(Settings().model_dump(mode="json")))


def values() -> Iterator[Value]:
    """The values with what their comments say, in the order of the file."""
    text = (CHART / "values.yaml").read_text(encoding="utf-8")
    tree = yaml.safe_load(text)
    path: list[str] = []
    comment: list[str] = []
    for line in text.splitlines():
        stripped = line.strip()
        if stripped.startswith("#"):
            comment.append(stripped.removeprefix("#").strip())
            continue
        found = _KEY.match(line)
        if found is not None:
            path = [*path[: len(found[1]) // 2], found[2]]
            value = _at(tree, path)
            group = isinstance(value, Mapping) and not found[3].strip()
            if comment or not group:
                yield Value(".".join(path), None if group else value, " ".join(comment))
        comment = []


def readme() -> str:
    """The chart's README."""
    rows = []
    for value in values():
        default = "" if value.default is None else f"`{json.dumps(value.default, ensure_ascii=False)}`"
        rows.append(f"| `{value.name}` | {default} | {value.meaning.replace('|', chr(92) + '|')} |")
    text = (HERE / "README.md.in").read_text(encoding="utf-8")
    return text.replace("@VALUES@", "\n".join(("| value | default | |", "|---|---|---|", *rows)))


def documents() -> dict[Path, str]:
    """Text of every file that is written here."""
    return {
        CHART / "values.schema.json": json.dumps(schema(), indent=1, ensure_ascii=False) + "\n",
        CHART / "files" / "defaults.json": json.dumps(defaults(), indent=1) + "\n",
        CHART / "README.md": readme(),
    }


def _without_defaults(node: Any) -> Any:
    """`node` without titles and defaults: those of the settings are Perdure's, and stand in its code."""
    if isinstance(node, dict):
        return {
            key: _named(value) if key == "properties" else _without_defaults(value)
            for key, value in node.items()
            if key not in ("title", "default")
        }
    return [_without_defaults(each) for each in node] if isinstance(node, list) else node


def _named(properties: Mapping[str, Any]) -> dict[str, Any]:
    """Here `title` and `default` would be names."""
    return {name: _without_defaults(value) for name, value in properties.items()}


def _at(tree: Any, path: list[str]) -> Any:
    for key in path:
        tree = tree[key]
    return tree


if __name__ == "__main__":
    for file, text in documents().items():
        file.write_text(text, encoding="utf-8")
