"""Copies of versions that nobody uses any more leave the cache, and none that somebody does."""

from __future__ import annotations

import os
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from perdure.commands import opened
from perdure.config import Settings
from perdure.registry import Card, EncoderCard, Registry
from perdure.registry.cache import SHARED, UNUSED_SECONDS, prune
from perdure.registry.card import FileCard

GRAPH, OTHER = b"a graph", b"another graph"


@pytest.fixture
def registry(place: Any) -> Registry:
    registry = Registry(place.url)
    for name, graph in (("v1", OTHER), ("v2", GRAPH), ("v3", GRAPH)):
        card = Card(name=name, kind="head", encoder=EncoderCard(name="mini", fingerprint="f00"), labels=("a", "b"))
        registry.write(card, {"deep/head": name.encode()}, {"graph": graph})
    return registry


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def age(cache: Path) -> None:
    """As if nothing in the cache had been used for long."""
    long_ago = time.time() - UNUSED_SECONDS - 60
    for path in (cache, *cache.rglob("*")):
        os.utime(path, (long_ago, long_ago))


def kept(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir())


def shared(cache: Path) -> set[str]:
    return {path.name for path in (cache / SHARED).iterdir()}


def test_what_was_fetched_lately_stays_and_the_rest_goes_with_its_files(registry: Registry, cache: Path) -> None:
    for name in ("v1", "v2", "v3"):
        registry.fetch(name, cache)
    assert prune(cache) == ()
    assert kept(cache) == [SHARED, "v1", "v2", "v3"]
    age(cache)
    folder = registry.fetch("v3", cache)
    assert prune(cache) == ("v1", "v2")
    assert kept(cache) == [SHARED, "v3"]
    assert shared(cache) == {FileCard.of(GRAPH).sha256}
    assert (folder / "graph").read_bytes() == GRAPH
    assert (folder / "deep" / "head").read_bytes() == b"v3"


def test_a_shared_file_stays_as_long_as_a_copy_has_it(registry: Registry, cache: Path) -> None:
    registry.fetch("v3", cache)
    age(cache)
    os.utime(cache / "v3")
    assert prune(cache) == ()
    assert shared(cache) == {FileCard.of(GRAPH).sha256}


def test_without_links_a_shared_file_that_was_used_lately_stays(
    registry: Registry, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*paths: Path) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    registry.fetch("v3", cache)
    age(cache)
    registry.fetch("v2", cache)
    assert prune(cache) == ("v3",)
    assert shared(cache) == {FileCard.of(GRAPH).sha256}


def test_a_fetch_marks_its_copy_before_it_looks_at_it(
    registry: Registry, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.fetch("v3", cache)
    age(cache)
    describes, pruned = FileCard.describes, []

    def meanwhile(card: FileCard, data: bytes) -> bool:
        pruned.extend(prune(cache))
        return describes(card, data)

    monkeypatch.setattr(FileCard, "describes", meanwhile)
    registry.fetch("v3", cache)
    assert pruned == []


def test_what_a_killed_process_left_half_written_goes(registry: Registry, cache: Path) -> None:
    registry.fetch("v3", cache)
    half = cache / ".incoming-0123"
    half.write_bytes(b"half")
    prune(cache)
    assert half.exists(), "somebody may be writing it"
    age(cache)
    registry.fetch("v3", cache)
    prune(cache)
    assert kept(cache) == [SHARED, "v3"]


def test_a_cache_that_is_not_there_has_nothing_to_remove(cache: Path) -> None:
    assert prune(cache) == ()


def test_a_turn_begins_without_what_the_trainer_uses_no_more(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings().with_values({"memory.path": str(tmp_path), "registry.url": str(tmp_path / "registry")})
    copies = opened.version_cache(settings)
    registry.fetch("v1", copies)
    age(copies)
    registry.fetch("v2", copies)
    monkeypatch.setattr(opened, "open_memory", nullcontext)
    monkeypatch.setattr(opened, "open_stream", nullcontext)
    monkeypatch.setattr("perdure.loop.Loop", lambda *given, **named: named["cache"])
    with opened.opened_loop(settings) as given:
        assert given == copies
        assert kept(copies) == [SHARED, "v2"]
