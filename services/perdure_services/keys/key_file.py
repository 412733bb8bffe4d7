"""The file of keys: JSON, written whole or not at all, readable by its owner only."""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from perdure.errors import SettingError, UsageError
from perdure_services.keys.key import Key, redacted


class KeyDocument(BaseModel):
    """What stands in the file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1]
    keys: tuple[Key, ...]

    @model_validator(mode="after")
    def _each_once(self) -> KeyDocument:
        for what in ("id", "name"):
            seen: set[str] = set()
            for key in self.keys:
                value = getattr(key, what)
                if value in seen:
                    raise ValueError(f"two keys have the {what} {value}")
                seen.add(value)
        return self


def read_keys(file: Path) -> tuple[Key, ...]:
    """The keys of `file`, in the order in which they were made.

    Raises:
        SettingError: it cannot be read, or is no file of keys; nothing of what it holds is shown.
    """
    try:
        text = file.read_bytes()
    except OSError as error:
        raise SettingError(
            f"cannot read the file of keys {file} ({error.strerror or error}): check serving.keys and who may read "
            "the file, or make its first key with `perdure keys create NAME --scopes predict`"
        ) from error
    try:
        return KeyDocument.model_validate_json(text).keys
    except ValidationError as error:
        # No value and no cause: whoever mistakes the file for a place to put keys must not find them in a log.
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        reason = redacted(f"{place}: {first['msg']}" if place else str(first["msg"]))
    raise SettingError(
        f"the file {file} holds no keys that can be used ({reason}): restore it, or remove it and make new keys with "
        "`perdure keys create`"
    )


def add_key(file: Path, key: Key) -> None:
    """Adds `key`; the file and its folder are made where they are missing.

    Raises:
        UsageError: there is a key of that name or id.
        SettingError: the file cannot be used.
        OSError: it cannot be written.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with _alone(file):
        keys = read_keys(file) if file.exists() else ()
        if any(key.name == other.name for other in keys):
            raise UsageError(
                f"there is a key {key.name!r} in {file} already: choose another name (to rotate, make the new key "
                f"first, hand it out, and then revoke the old one), or revoke it with `perdure keys revoke {key.name}`"
            )
        _write(file, (*keys, key))


def remove_key(file: Path, name: str) -> Key:
    """Removes the key called `name`, and returns what was kept of it.

    Raises:
        UsageError: there is none.
        SettingError: the file cannot be used.
        OSError: it cannot be written.
    """
    if not file.exists():
        read_keys(file)
    with _alone(file):
        keys = read_keys(file)
        found = next((key for key in keys if key.name == name), None)
        if found is None:
            known = ", ".join(key.name for key in keys) or "none"
            raise UsageError(f"there is no key {name!r} in {file} (there are: {known}): see `perdure keys list`")
        _write(file, tuple(key for key in keys if key is not found))
    return found


@contextmanager
def _alone(file: Path) -> Iterator[None]:
    # On the folder: the file itself is replaced by every write, and a lock on it would go with it.
    folder = os.open(file.resolve().parent, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _write(file: Path, keys: tuple[Key, ...]) -> None:
    # Where it is a link, what it points to is replaced, and not the link.
    target = file.resolve()
    content = KeyDocument(format=1, keys=keys).model_dump(mode="json", exclude_none=True)
    # mkstemp makes files that only their owner may read and write.
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as out:
            out.write(json.dumps(content, indent=1) + "\n")
            out.flush()
            os.fsync(out.fileno())
        Path(name).replace(target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    folder = os.open(target.parent, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
