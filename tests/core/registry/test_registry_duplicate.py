"""A registry copied whole: what names something is read before what it names, and written after it."""

from __future__ import annotations

from pathlib import Path

import pytest

from perdure.errors import RegistryError, UsageError, VersionDamaged
from perdure.registry import Card, EncoderCard, Registry
from perdure.registry.duplicate import copy_in, copy_out
from perdure.registry.store import Store


def write(registry: Registry, name: str, content: bytes = b"weights") -> None:
    card = Card(name=name, kind="head", encoder=EncoderCard(name="mini", fingerprint="f00"), labels=("a", "b"))
    registry.write(card, {"head.bin": content + name.encode()}, {"encoder.bin": b"shared by all"})


@pytest.fixture
def filled(tmp_path: Path) -> Registry:
    registry = Registry(str(tmp_path / "from"))
    for number in (1, 2, 3):
        write(registry, f"v00000{number}-head")
        registry.promote(f"v00000{number}-head", reason="r", by="b")
    registry.rollback(by="b", reason="worse")
    registry.add_erasures({"ab12": 5.0})
    shard = tmp_path / "from" / "shards" / "t" / "0"
    (shard / "log").mkdir(parents=True)
    (shard / "files").mkdir()
    (shard / "log" / "00000001.json").write_text("{}", encoding="utf-8")
    (shard / "files" / "abc").write_bytes(b"database")
    return registry


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_there_and_back_it_is_the_same(filled: Registry, tmp_path: Path) -> None:
    copy_out(str(tmp_path / "from"), tmp_path / "copy")
    copy_in(tmp_path / "copy", str(tmp_path / "back"))
    assert files(tmp_path / "copy") == files(tmp_path / "back") == files(tmp_path / "from")
    back = Registry(str(tmp_path / "back"))
    assert back.promotions() == filled.promotions()
    assert back.rolled_back() == {"v000003-head"}
    assert back.erasures() == {"ab12": 5.0}
    with pytest.raises(UsageError, match="is in use, something was promoted there"):
        copy_in(tmp_path / "copy", str(tmp_path / "back"))


def test_what_names_is_read_first_and_written_last(
    filled: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    written: list[str] = []
    get, create = Store.get, Store.create
    with monkeypatch.context() as patch:
        patch.setattr(Store, "get", lambda self, path: read.append(path) or get(self, path))
        copy_out(str(tmp_path / "from"), tmp_path / "copy")
    with monkeypatch.context() as patch:
        patch.setattr(Store, "create", lambda self, path, data: written.append(path) or create(self, path, data))
        copy_in(tmp_path / "copy", str(tmp_path / "back"))
    for before, after in (
        ("promotions/00000004.json", "versions/v000001-head/card.json"),
        ("versions/v000003-head/card.json", "versions/v000001-head/head.bin"),
        ("versions/v000003-head/card.json", "shared/"),
        ("shards/t/0/log/00000001.json", "shards/t/0/files/abc"),
    ):
        for order, first, last in ((read, before, after), (written, after, before)):
            places = [[n for n, path in enumerate(order) if path.startswith(name)] for name in (first, last)]
            assert max(places[0][:1]) < min(places[1]), (first, last)
    promotions = [path for path in written if path.startswith("promotions/")]
    assert promotions == sorted(promotions) == written[-4:]


def test_a_version_that_is_collected_meanwhile_is_left_out(
    filled: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    get = Store.get

    def gone(name: str) -> object:
        return lambda self, path: None if path == f"versions/{name}/head.bin" else get(self, path)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "get", gone("v000003-head"))
        copy_out(str(tmp_path / "from"), tmp_path / "copy")
    assert Registry(str(tmp_path / "copy")).versions() == ("v000001-head", "v000002-head")
    with monkeypatch.context() as patch:
        patch.setattr(Store, "get", gone("v000002-head"))
        with pytest.raises((VersionDamaged, RegistryError), match="v000002-head"):
            copy_out(str(tmp_path / "from"), tmp_path / "other")


def test_what_is_no_erasure_is_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    registry = Registry(str(tmp_path))
    registry.add_erasures({"ab": 1.5, "cd": -2.0})
    registry.add_erasures({"ab": 3.25, "cd": -7.0})
    for name in ("nonsense", "nan-ab", "9.0-", "e-ab"):
        (tmp_path / "erasures" / name).write_text("{}", encoding="utf-8")
    assert registry.erasures() == {"ab": 3.25, "cd": -2.0}
    assert caplog.text.count("names no erasure") == 4
