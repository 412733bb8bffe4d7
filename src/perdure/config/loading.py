"""Where settings come from: a file, the environment, the command line."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from perdure.config.settings import Settings, setting_names, validated
from perdure.config.tree import leaves, put
from perdure.errors import SettingError

ENV_PREFIX = "PERDURE_"


def load_settings(
    file: Path | None = None, overrides: Iterable[str] = (), environ: Mapping[str, str] | None = None
) -> Settings:
    """The settings from defaults, `file`, the environment and `section.name=value` overrides.

    Raises:
        SettingError: the file cannot be read, or a setting is unknown or out of range.
    """
    tree = Settings().model_dump()
    for name, value in _from_file(file):
        put(tree, name, value)
    for key, text in (os.environ if environ is None else environ).items():
        if names_setting(key):
            put(tree, key.removeprefix(ENV_PREFIX).lower().replace("__", "."), _parse(text), origin=key)
    for override in overrides:
        name, equals, text = override.partition("=")
        if not equals:
            raise SettingError(f"--set needs section.name=value, but got {override!r}")
        put(tree, name.strip(), _parse(text))
    return validated(tree)


def names_setting(variable: str) -> bool:
    """Whether the environment's `variable` gives a setting a value; `PERDURE_DATA`, say, is for others."""
    name = variable.removeprefix(ENV_PREFIX)
    return name != variable and ("__" in name or name.lower() in _plain_names())


def _plain_names() -> frozenset[str]:
    """Settings that stand in no section."""
    return frozenset(name for name in setting_names() if "." not in name)


def _parse(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _from_file(file: Path | None) -> Iterator[tuple[str, Any]]:
    if file is None:
        return
    try:
        tree = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise SettingError(f"cannot read the settings file {file}: {error.strerror or error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingError(f"the settings file {file} is not YAML: {error}") from error
    if not isinstance(tree, dict):
        raise SettingError(f"the settings file {file} must hold sections, but holds {type(tree).__name__}")
    for name, value in leaves(tree):
        # A section whose settings are all commented out.
        if value is not None or name not in Settings.model_fields:
            yield name, value
