"""What was served last is remembered, or it is nothing."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from perdure.errors import RegistryError
from perdure.registry import Promotion, Remembered

PROMOTION = Promotion(number=3, version="v2", at=12.5, by="judge", reason="better", rolled_back=("v1",))


def test_what_was_written_last_is_read(tmp_path: Path) -> None:
    remembered = Remembered(tmp_path / "deep" / "cache", "s3://bucket/models")
    assert remembered.read() is None
    remembered.write(PROMOTION.model_copy(update={"number": 2}))
    remembered.write(PROMOTION)
    assert Remembered(tmp_path / "deep" / "cache", "s3://bucket/models").read() == PROMOTION
    assert [path.name for path in (tmp_path / "deep" / "cache").iterdir()] == ["champion.json"]


def test_what_belongs_to_another_registry_is_nothing(tmp_path: Path) -> None:
    Remembered(tmp_path, "s3://bucket/models").write(PROMOTION)
    assert Remembered(tmp_path, "s3://bucket/others").read() is None


@pytest.mark.parametrize(
    "content", [b"", b"{ half", b"[]", b"\xff", b'{"registry": "r"}', b'{"registry": "r", "promotion": {"number": 0}}']
)
def test_what_cannot_be_read_is_nothing(tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "champion.json").write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert Remembered(tmp_path, "r").read() is None
    assert not content.startswith(b'{"registry"') or "nothing is remembered" in caplog.text


def test_a_folder_that_cannot_be_written_is_reported(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("in the way")
    with pytest.raises(RegistryError, match=r"cache/champion\.json cannot be written: .*free some space"):
        Remembered(tmp_path / "cache", "r").write(PROMOTION)
