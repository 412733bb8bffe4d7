"""The stores that a registry is tried over, and what the tests put into it."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import Any

import pytest
from obstore.store import LocalStore, MemoryStore

from perdure.registry import Card, EncoderCard, Registry
from perdure.registry.store import Backend

FILES = {"head.safetensors": b"\x00weights" * 100, "labels.json": b"[]", "drift/report.html": b"<html>"}


def a_local_folder(request: pytest.FixtureRequest) -> Backend:
    folder: Path = request.getfixturevalue("tmp_path") / "registry"
    return LocalStore(folder, mkdir=True)


def memory(request: pytest.FixtureRequest) -> Backend:
    return MemoryStore()


_buckets = count(1)


def an_s3_bucket(request: pytest.FixtureRequest) -> Backend:
    server: Any = request.getfixturevalue("s3_server")
    bucket = f"suite-{next(_buckets)}"
    server.make_bucket(bucket)
    store: Backend = server.store(bucket, prefix="some/where")
    return store


def card(name: str, *, parent: str | None = None) -> Card:
    return Card(
        name=name, parent=parent, kind="head", encoder=EncoderCard(name="mini", fingerprint="f00"), labels=("a", "b")
    )


def put(registry: Registry, *names: str) -> None:
    for name in names:
        registry.write(card(name), FILES)


def log_of(registry: Registry) -> list[str]:
    return [entry.version for entry in registry.promotions()]


# One line for each store.
STORES = (a_local_folder, memory, pytest.param(an_s3_bucket, marks=pytest.mark.s3))
