"""What an adapter was offered."""

from __future__ import annotations

from pathlib import Path

import pytest

from perdure.errors import VersionDamaged
from perdure.learn.seen import MOST, SEEN_FILE, Seen

A, B, C = ("a" * 32, "b" * 32, "c" * 32)


def test_it_goes_through_its_file(tmp_path: Path) -> None:
    for seen in (Seen(), Seen((A, B))):
        (tmp_path / SEEN_FILE).write_bytes(seen.files()[SEEN_FILE])
        assert Seen.load(tmp_path) == seen


def test_a_version_without_the_file_says_nothing(tmp_path: Path) -> None:
    assert Seen.load(tmp_path) is None


def test_a_damaged_file_is_said_to_be_damaged(tmp_path: Path) -> None:
    (tmp_path / SEEN_FILE).write_bytes(b"{")
    with pytest.raises(VersionDamaged, match="seen"):
        Seen.load(tmp_path)


def test_each_key_stands_once_the_latest_last() -> None:
    assert Seen((A, B)).beside([C, A, C]).keys == (B, C, A)


def test_the_latest_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("perdure.learn.seen.MOST", 2)
    assert Seen((A, B)).beside([C]).keys == (B, C)
    assert MOST * 16 < 4e6
