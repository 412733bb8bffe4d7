"""Versions, cards and the cache: the same over every store."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from perdure.errors import RegistryError, VersionDamaged, VersionNotFound
from perdure.registry import Card, EncoderCard, Registry
from perdure.registry.card import FileCard
from perdure.registry.store import Backend

from .registry_suite import FILES, STORES, card, put


@pytest.fixture(params=STORES)
def backend(request: pytest.FixtureRequest) -> Backend:
    make: Callable[[pytest.FixtureRequest], Backend] = request.param
    return make(request)


@pytest.fixture
def registry(backend: Backend) -> Registry:
    return Registry.over(backend)


# ── versions ──
def test_a_version_comes_back_as_it_was_written(registry: Registry) -> None:
    full = Card(
        name="v000002-lora",
        parent="v000001-head",
        kind="lora",
        created=12.5,
        encoder=EncoderCard(name="mini", fingerprint="f00"),
        labels=("refund", "naïve 日本 \u2028"),
        offset={"0": 17},
        memory_digest="abc",
        turn=3,
        seed=4,
        config={"lora": {"rank": 8, "ridge": [0.1, 1e-300]}},
        metrics={"acc": 0.1 + 0.2, "ece": 1e-17},
        verdict={"outcome": "promote", "sentence": "better", "checks": [{"name": "gain", "passed": True}]},
    )
    written = registry.write(full, FILES)
    assert registry.card("v000002-lora") == written
    assert written.model_copy(update={"files": {}}) == full
    assert {name: file.size for name, file in written.files.items()} == {n: len(data) for n, data in FILES.items()}
    assert written.files["labels.json"].sha256 == hashlib.sha256(b"[]").hexdigest()
    for name, data in FILES.items():
        assert registry.read("v000002-lora", name) == data


def test_versions_are_those_with_a_card_in_order(registry: Registry, backend: Backend) -> None:
    assert registry.versions() == ()
    put(registry, "v000010-head", "v000009-lora", "v000009-head")
    backend.put("versions/v000011-head/head.safetensors", b"half")
    backend.put("versions/v000012-head/deep/card.json", b"{}")
    assert registry.versions() == ("v000009-head", "v000009-lora", "v000010-head")


def test_the_card_is_written_last(backend: Backend) -> None:
    order: list[str] = []

    class Watching:
        def __getattr__(self, name: str) -> object:
            return getattr(backend, name)

        def put(self, path: str, file: bytes, *, mode: object = None) -> object:
            order.append(f"{mode or 'overwrite'} {path}")
            return backend.put(path, file, mode=mode)

    Registry.over(Watching()).write(card("v1"), FILES)  # type: ignore[arg-type]
    assert sorted(order[:-1]) == sorted(f"overwrite versions/v1/{name}" for name in FILES)
    assert order[-1] == "create versions/v1/card.json"


def test_writing_the_same_again_changes_nothing(registry: Registry) -> None:
    first = registry.write(card("v1").model_copy(update={"created": 1.0}), FILES)
    again = registry.write(card("v1").model_copy(update={"created": 2.0}), FILES)
    assert again == first == registry.card("v1")


@pytest.mark.parametrize(
    "other", [{**FILES, "labels.json": b"[1]"}, {**FILES, "more": b""}, {"labels.json": b"[]"}, {}], ids=len
)
def test_a_version_never_changes(registry: Registry, other: dict[str, bytes]) -> None:
    put(registry, "v1")
    with pytest.raises(RegistryError, match=r"version v1 exists .* with other content .*new name"):
        registry.write(card("v1"), other)
    for name, data in FILES.items():
        assert registry.read("v1", name) == data


def test_a_writer_that_was_killed_before_its_card_starts_over(registry: Registry, backend: Backend) -> None:
    backend.put("versions/v1/labels.json", b"from a run that did not finish")
    put(registry, "v1")
    assert registry.read("v1", "labels.json") == b"[]"


def test_two_writers_of_one_name_end_with_one_card(backend: Backend) -> None:
    """The second card is refused, even by a writer that looked before the first was there."""
    other = Registry.over(backend)

    class Late:
        def __getattr__(self, name: str) -> object:
            return getattr(backend, name)

        def put(self, path: str, file: bytes, *, mode: object = None) -> object:
            if path.endswith("card.json"):
                other.write(card("v1"), {"other": b"1"})
            return backend.put(path, file, mode=mode)

    with pytest.raises(RegistryError, match="exists"):
        Registry.over(Late()).write(card("v1"), FILES)  # type: ignore[arg-type]
    assert list(other.card("v1").files) == ["other"]


@pytest.mark.parametrize(
    "name", ["../up", "a//b", "/abs", "card.json", ".hidden", "a/../b", "", "a\\b", "a b", "x" * 101]
)
def test_file_names_that_lead_elsewhere_are_refused(registry: Registry, name: str) -> None:
    with pytest.raises(RegistryError, match="cannot name a file of version v1"):
        registry.write(card("v1"), {name: b"x"})
    assert registry.versions() == ()


@pytest.mark.parametrize("name", ["../up", "a/b", ".", "", "v 1"])
def test_version_names_that_lead_elsewhere_are_refused(registry: Registry, name: str) -> None:
    with pytest.raises(ValueError, match="cannot name a version"):
        card(name)
    with pytest.raises(VersionNotFound):
        registry.card(name)
    with pytest.raises(VersionNotFound):
        registry.promote(name, reason="", by="ann")


def test_an_unknown_version_is_answered_with_the_nearest(registry: Registry) -> None:
    put(registry, "v000001-head", "v000002-lora")
    with pytest.raises(VersionNotFound, match=r"no version 'v000002-head'.*did you mean .*v000002-lora"):
        registry.card("v000002-head")
    for use in (
        lambda: registry.read("v3", "x"),
        lambda: registry.fetch("v3", Path("/nowhere")),
        lambda: registry.promote("v3", reason="", by="ann"),
    ):
        with pytest.raises(VersionNotFound):
            use()


def test_a_file_that_a_version_never_had_is_no_damage(registry: Registry) -> None:
    put(registry, "v1")
    with pytest.raises(RegistryError, match=r"no file 'report.html': it has drift/report.html, head.safetensors") as it:
        registry.read("v1", "report.html")
    assert not isinstance(it.value, VersionDamaged)


# ── cards ──
def change_card(backend: Backend, name: str, change: Callable[[dict[str, object]], None], *, sealed: bool) -> None:
    path = f"versions/{name}/card.json"
    fields = json.loads(bytes(backend.get(path).bytes()))
    change(fields)
    if sealed:
        del fields["sha256"]
        canonical = json.dumps(fields, sort_keys=True, separators=(",", ":"))
        fields["sha256"] = hashlib.sha256(canonical.encode()).hexdigest()
    backend.put(path, json.dumps(fields).encode())


def test_fields_of_a_later_version_are_ignored(registry: Registry, backend: Backend) -> None:
    put(registry, "v1")
    before = registry.card("v1")
    change_card(backend, "v1", lambda fields: fields.update(mood={"deep": [1.5]}), sealed=True)
    assert registry.card("v1") == before


@pytest.mark.parametrize("sealed", [True, False])
def test_a_card_of_a_newer_schema_is_refused(registry: Registry, backend: Backend, sealed: bool) -> None:
    put(registry, "v1")
    change_card(backend, "v1", lambda fields: fields.update(schema=2, labels="?"), sealed=sealed)
    with pytest.raises(
        RegistryError, match=r"card of version v1 has schema 2, newer than the 1 .*upgrade Perdure"
    ) as it:
        registry.card("v1")
    assert not isinstance(it.value, VersionDamaged)
    assert registry.versions() == ("v1",)


@pytest.mark.parametrize(
    ("change", "sealed", "says"),
    [
        (lambda fields: fields.update(labels=["b", "a"]), False, "sha256"),
        (lambda fields: fields.pop("sha256"), False, "not None as was written"),
        (lambda fields: fields.update(kind="magic"), True, "field kind"),
        (lambda fields: fields.update(name="v2"), True, "card of version v2"),
        (
            lambda fields: fields["files"].update({"../../etc": fields["files"]["labels.json"]}),
            True,
            "cannot name a file",
        ),
    ],
)
def test_an_altered_card_is_damage(
    registry: Registry, backend: Backend, change: Callable[[dict[str, object]], None], sealed: bool, says: str
) -> None:
    put(registry, "v1")
    change_card(backend, "v1", change, sealed=sealed)
    for use in (lambda: registry.card("v1"), lambda: registry.promote("v1", reason="", by="ann")):
        with pytest.raises(VersionDamaged, match=says):
            use()
    assert registry.champion() is None


@pytest.mark.parametrize("content", [b"", b"{ half", b"[]", b"\xff"])
def test_a_card_that_is_no_card_is_damage(registry: Registry, backend: Backend, content: bytes) -> None:
    backend.put("versions/v1/card.json", content)
    with pytest.raises(VersionDamaged, match=r"card\.json of version v1 is damaged"):
        registry.card("v1")


# ── damage and the cache ──
def test_fetch_brings_exactly_the_files(registry: Registry, tmp_path: Path) -> None:
    put(registry, "v1")
    folder = registry.fetch("v1", tmp_path / "deep" / "cache")
    assert folder == tmp_path / "deep" / "cache" / "v1"
    (folder / "stranger.safetensors").write_bytes(b"from another registry")
    assert registry.fetch("v1", tmp_path / "deep" / "cache") == folder
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert Card.decode("v1", found.pop("card.json")) == registry.card("v1")
    assert found == FILES
    assert [path.name for path in folder.parent.iterdir()] == ["v1"]


def test_an_altered_file_is_refused_with_both_hashes(registry: Registry, backend: Backend, tmp_path: Path) -> None:
    put(registry, "v1")
    altered = b"\x00wEights" * 100
    backend.put("versions/v1/head.safetensors", altered)
    wanted, found = (hashlib.sha256(data).hexdigest() for data in (FILES["head.safetensors"], altered))
    for use in (lambda: registry.read("v1", "head.safetensors"), lambda: registry.fetch("v1", tmp_path / "cache")):
        with pytest.raises(VersionDamaged, match=r"head\.safetensors of version v1 is altered") as caught:
            use()
        assert wanted in str(caught.value)
        assert found in str(caught.value)
    assert not (tmp_path / "cache" / "v1" / "head.safetensors").exists()
    assert not (tmp_path / "cache" / "v1" / "card.json").exists()


def test_a_missing_file_is_refused_with_its_hash(registry: Registry, backend: Backend, tmp_path: Path) -> None:
    put(registry, "v1")
    backend.delete("versions/v1/labels.json")
    for use in (
        lambda: registry.read("v1", "labels.json"),
        lambda: registry.fetch("v1", tmp_path / "cache"),
        lambda: registry.promote("v1", reason="", by="ann"),
    ):
        with pytest.raises(
            VersionDamaged, match=rf"labels\.json of version v1 is missing.*{hashlib.sha256(b'[]').hexdigest()}"
        ):
            use()
    assert registry.champion() is None


def test_a_file_of_another_size_cannot_be_promoted(registry: Registry, backend: Backend) -> None:
    put(registry, "v1")
    backend.put("versions/v1/labels.json", b"[] ")
    with pytest.raises(VersionDamaged, match=r"labels\.json of version v1 is altered: it has 3 bytes, but 2"):
        registry.promote("v1", reason="", by="ann")


@pytest.mark.parametrize("damage", [b"\x00wEights" * 100, b"", b"short"])
def test_a_damaged_cache_is_read_afresh(registry: Registry, tmp_path: Path, damage: bytes) -> None:
    put(registry, "v1")
    folder = registry.fetch("v1", tmp_path / "cache")
    (folder / "head.safetensors").write_bytes(damage)
    (folder / "labels.json").unlink()
    (folder / "labels.json").mkdir()
    registry.fetch("v1", tmp_path / "cache")
    assert {name: (folder / name).read_bytes() for name in FILES} == FILES


def test_what_lies_in_the_cache_unchanged_is_not_read_again(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(registry, "v1")
    folder = registry.fetch("v1", tmp_path / "cache")
    registry.fetch("v1", tmp_path / "cache")
    monkeypatch.setattr(FileCard, "describes", None)
    registry.fetch("v1", tmp_path / "cache")
    monkeypatch.undo()
    time.sleep(0.02)
    # Of the same length, and in place.
    damaged = bytes(reversed(FILES["head.safetensors"]))
    (folder / "head.safetensors").write_bytes(damaged)
    registry.fetch("v1", tmp_path / "cache")
    assert (folder / "head.safetensors").read_bytes() == FILES["head.safetensors"] != damaged


def test_a_damaged_cache_over_a_damaged_registry_is_refused(
    registry: Registry, backend: Backend, tmp_path: Path
) -> None:
    put(registry, "v1")
    folder = registry.fetch("v1", tmp_path / "cache")
    backend.put("versions/v1/labels.json", b"{}")
    assert registry.fetch("v1", tmp_path / "cache") == folder, "a sound copy is enough"
    (folder / "labels.json").write_bytes(b"xx")
    with pytest.raises(VersionDamaged, match=r"labels\.json"):
        registry.fetch("v1", tmp_path / "cache")
