"""The stores that a registry is tried over, and what the tests put into it."""

from __future__ import annotations

from pathlib import Path

from obstore.store import LocalStore, MemoryStore

from perdure.registry import Card, EncoderCard, Registry
from perdure.registry.store import Backend

FILES = {"head.safetensors": b"\x00weights" * 100, "labels.json": b"[]", "drift/report.html": b"<html>"}


def a_local_folder(tmp_path: Path) -> Backend:
    return LocalStore(tmp_path / "registry", mkdir=True)


def memory(tmp_path: Path) -> Backend:
    return MemoryStore()


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
STORES = (a_local_folder, memory)
