from __future__ import annotations

import gc
import shutil
from pathlib import Path

import pytest

from perdure.engine import kept as module
from perdure.engine.kept import Kept


class Made:
    def __init__(self, content: bytes, file: Path, *more: object) -> None:
        self.content, self.more = content, more


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    names: list[str] = []
    read = Path.read_bytes

    def counted(self: Path) -> bytes:
        names.append(self.name)
        return read(self)

    monkeypatch.setattr(Path, "read_bytes", counted)
    return names


def test_the_same_is_given_while_somebody_holds_it(tmp_path: Path, reads: list[str]) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"one")
    (tmp_path / "link").hardlink_to(file)
    kept = Kept(Made)
    first = kept.of(file, 1)
    assert kept.of(file, 1) is first
    assert kept.of(tmp_path / "link", 1) is first
    assert reads == ["a"], "a file that has not changed is not read again"
    other = kept.of(file, 2)
    assert (other.value.more, first.value.more) == ((2,), (1,))


def test_a_copy_is_the_same(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"one")
    shutil.copyfile(tmp_path / "a", tmp_path / "b")
    kept = Kept(Made)
    held = kept.of(tmp_path / "a")
    assert kept.of(tmp_path / "b") is held


def test_what_nobody_holds_is_let_go(tmp_path: Path, reads: list[str]) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"one")
    kept = Kept(Made)
    kept.of(file)
    gc.collect()
    assert not kept._held
    kept.of(file)
    assert reads == ["a", "a"]


def test_a_file_that_changed_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"one")
    kept = Kept(Made)
    first = kept.of(file)
    file.write_bytes(b"another")
    assert (first.value.content, kept.of(file).value.content) == (b"one", b"another")


def test_hashes_do_not_pile_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REMEMBERED", 3)
    kept = Kept(Made)
    for number in range(10):
        (tmp_path / str(number)).write_bytes(b"%d" % number)
        kept.of(tmp_path / str(number))
    assert len(kept._hashes) == 3


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Kept(Made).of(tmp_path / "none")
