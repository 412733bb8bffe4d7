"""Files that versions have in common stand once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from perdure.errors import RegistryError, VersionDamaged
from perdure.registry import Card, EncoderCard, Registry
from perdure.registry.card import FileCard
from perdure.registry.store import Store
from perdure.registry.versions import LEFTOVER_SECONDS

GRAPH = b"a large graph" * 1000


def card(name: str) -> Card:
    return Card(name=name, kind="head", encoder=EncoderCard(name="mini", fingerprint="f00"), labels=("a", "b"))


@pytest.fixture
def registry(place: Any) -> Registry:
    return Registry(place.url)


def age(place: Any) -> None:
    """Makes all shared files too old to be anybody's work."""
    place.age("shared", LEFTOVER_SECONDS + 60)


def shared(place: Any) -> list[str]:
    return place.names("shared")


def test_one_file_serves_many_versions(registry: Registry, place: Any, tmp_path: Path) -> None:
    for name in ("v1", "v2"):
        registry.write(card(name), {"head": name.encode()}, {"graph": GRAPH})
    assert shared(place) == [FileCard.of(GRAPH).sha256]
    assert place.names("versions/v1") == ["card.json", "head"]
    assert registry.read("v2", "graph") == GRAPH
    folders = [registry.fetch(name, tmp_path / "cache") for name in ("v1", "v2")]
    assert [(folder / "graph").read_bytes() for folder in folders] == [GRAPH, GRAPH]
    assert (folders[0] / "graph").samefile(folders[1] / "graph")
    assert sorted(path.name for path in folders[0].iterdir()) == ["card.json", "graph", "head"]


def test_it_is_not_sent_again_for_a_version_that_has_it_too(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    put, sent = Store.put, []

    def watched(store: Store, path: str, data: bytes) -> None:
        sent.append(path)
        put(store, path, data)

    monkeypatch.setattr(Store, "put", watched)
    for name in ("v1", "v2"):
        registry.write(card(name), {"head": name.encode()}, {"graph": GRAPH})
    assert sent == ["versions/v1/head", f"shared/{FileCard.of(GRAPH).sha256}", "versions/v2/head"]


def test_writing_again_changes_nothing_and_other_content_is_refused(registry: Registry) -> None:
    first = registry.write(card("v1"), {"head": b"h"}, {"graph": GRAPH})
    assert registry.write(card("v1"), {"head": b"h"}, {"graph": GRAPH}).files == first.files
    with pytest.raises(RegistryError, match="other content"):
        registry.write(card("v1"), {"head": b"h"}, {"graph": GRAPH + b"!"})
    with pytest.raises(RegistryError, match="cannot name a file"):
        registry.write(card("v2"), {}, {"../graph": GRAPH})


def test_a_damaged_one_is_noticed_and_made_whole(registry: Registry, place: Any, tmp_path: Path) -> None:
    registry.write(card("v1"), {}, {"graph": GRAPH})
    folder = registry.fetch("v1", tmp_path / "cache")
    (folder / "graph").write_bytes(b"damaged in the cache")
    assert (registry.fetch("v1", tmp_path / "cache") / "graph").read_bytes() == GRAPH
    place.backend.put(f"shared/{FileCard.of(GRAPH).sha256}", b"x" * len(GRAPH))
    with pytest.raises(VersionDamaged, match="graph of version v1 is altered"):
        registry.read("v1", "graph")
    place.backend.delete(f"shared/{FileCard.of(GRAPH).sha256}")
    with pytest.raises(VersionDamaged, match="graph of version v1 is missing"):
        registry.promote("v1", reason="try", by="somebody")


def test_it_goes_with_the_last_version_that_has_it(registry: Registry, place: Any) -> None:
    registry.write(card("v1"), {}, {"graph": GRAPH})
    registry.write(card("v2"), {}, {"graph": GRAPH})
    registry.write(card("v3"), {}, {"graph": b"another"})
    age(place)
    assert registry.collect(2) == ("v1",)
    assert len(shared(place)) == 2
    assert registry.collect(1) == ("v2",)
    assert shared(place) == [FileCard.of(b"another").sha256]


def test_what_somebody_may_be_about_to_use_stays(registry: Registry, place: Any) -> None:
    registry.write(card("v1"), {}, {"graph": GRAPH})
    registry.write(card("v2"), {}, {"graph": b"another"})
    # Young: its writer may not have come to the card yet.
    registry.collect(1)
    assert len(shared(place)) == 2
    # Nobody knows what a card that cannot be read names.
    age(place)
    place.backend.put("versions/v2/card.json", b"{}")
    registry.collect(1)
    assert len(shared(place)) == 2


def test_a_cache_on_a_file_system_without_links(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*paths: Path) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    registry.write(card("v1"), {}, {"graph": GRAPH})
    assert (registry.fetch("v1", tmp_path / "cache") / "graph").read_bytes() == GRAPH
    assert (registry.fetch("v1", tmp_path / "cache") / "graph").read_bytes() == GRAPH
