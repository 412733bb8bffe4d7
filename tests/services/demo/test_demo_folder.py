from __future__ import annotations

import json

import pytest

from perdure.config import load_settings
from perdure.dataset import read_rows
from perdure.errors import SettingError, StoreBusy, UsageError
from perdure_services.demo.folder import MADE, PRODUCT, DemoFolder, identity


@pytest.fixture
def folder(tmp_path):
    with DemoFolder(tmp_path / "var" / "demo") as opened:
        yield opened


def test_everything_lies_in_the_folder(folder):
    settings = folder.settings([])
    root = folder.path.resolve()
    assert settings.stream.url == f"sqlite:{root / 'stream.db'}"
    assert settings.registry.url == str(root / "registry")
    assert settings.memory.path == str(root / "memory")
    assert settings.lora.epochs == PRODUCT["lora.epochs"] == 2


def test_overrides_come_over_the_demos_settings_and_the_environment_does_not(folder, monkeypatch):
    monkeypatch.setenv("PERDURE_SEED", "9")
    monkeypatch.setenv("PERDURE_STREAM__URL", "kafka://real:9092")
    settings = folder.settings(["memory.per_class=7", "serving.port=8123"])
    assert (settings.memory.per_class, settings.serving.port, settings.seed) == (7, 8123, 0)
    assert settings.stream.url.startswith("sqlite:")


@pytest.mark.parametrize("name", ["stream.url", "registry.url", "memory.path"])
def test_places_cannot_be_changed(folder, name):
    with pytest.raises(UsageError, match="--out"):
        folder.settings([f"{name}=elsewhere"])


def test_a_misspelt_setting_is_refused(folder):
    with pytest.raises(SettingError, match=r"memory\.per_class"):
        folder.settings(["memory.per_clas=3"])


def test_a_model_in_a_folder_is_found_from_elsewhere(folder, tmp_path, monkeypatch):
    (tmp_path / "encoder").mkdir()
    monkeypatch.chdir(tmp_path)
    assert folder.settings(["model.name=encoder"]).model.name == str(tmp_path / "encoder")
    assert folder.settings(["model.name=some-name"]).model.name == "some-name"


def test_what_the_processes_read_is_what_was_set(folder, scenario):
    settings = folder.settings(["memory.per_class=7"])
    config, data = folder.write(settings, scenario)
    assert load_settings(config, environ={}) == settings
    rows = read_rows(data)
    assert [(row.text, row.label, row.id) for row in rows] == [
        ("where is my order", "order", "opening-0"),
        ("refund please", "refund", "opening-1"),
    ]
    assert {path.name for path in folder.path.iterdir()} == {"settings.yaml", "session-0.jsonl", "demo.lock"}


def test_fresh_removes_what_the_demo_made_and_nothing_else(folder, scenario):
    folder.write(folder.settings([]), scenario)
    (folder.path / "registry" / "versions").mkdir(parents=True)
    (folder.path / "mine.txt").write_text("keep")
    folder.fresh()
    assert {path.name for path in folder.path.iterdir()} == {"mine.txt", "demo.lock"}
    folder.fresh()
    assert "demo.lock" not in MADE


def test_two_demos_in_one_folder(folder):
    with pytest.raises(StoreBusy, match="another demo runs"):
        DemoFolder(folder.path)
    folder.close()
    reopened = DemoFolder(folder.path)
    folder._lock = reopened._lock


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="--out"):
        DemoFolder(tmp_path / "file" / "demo")


def test_a_demo_is_its_data_and_settings_not_its_place(folder, scenario, tmp_path, data):
    mine = identity(folder.settings([]), scenario)
    with DemoFolder(tmp_path / "other") as other:
        assert identity(other.settings(["serving.port=8123"]), scenario) == mine
        assert identity(other.settings(["memory.per_class=7"]), scenario) != mine
    assert json.loads(json.dumps(mine)) == mine
