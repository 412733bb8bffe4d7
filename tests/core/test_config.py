from __future__ import annotations

from pathlib import Path

import pytest

from perdure.config import Settings, describe_settings, load_settings, setting_names
from perdure.errors import SettingError


def loaded(tmp_path: Path, text: str, overrides=(), environ=None) -> Settings:
    file = tmp_path / "perdure.yaml"
    file.write_text(text, encoding="utf-8")
    return load_settings(file, overrides, environ or {})


def test_without_anything_the_defaults_hold():
    assert load_settings(environ={}) == Settings()
    assert Settings().stream.url == "sqlite:var/perdure/stream.db"
    assert Settings().model.name == "all-MiniLM-L6-v2"


def test_file_environment_and_command_line_come_one_over_the_other(tmp_path):
    text = "seed: 1\nlora:\n  rank: 2\n  alpha: 2\n  epochs: 2\n  batch: 2\n"
    environ = {
        "PERDURE_LORA__ALPHA": "3",
        "PERDURE_LORA__EPOCHS": "3",
        "PERDURE_LORA__BATCH": "3",
        "PERDURE_SEED": "3",
        "PERDURE_DEVICE": "cpu",
        "PERDURE_DATA": "x",
    }
    settings = loaded(tmp_path, text, ["lora.epochs=4", "lora.batch=5", "lora.batch=6"], environ)
    assert (settings.lora.rank, settings.lora.alpha, settings.lora.epochs, settings.lora.batch) == (2, 3, 4, 6)
    assert (settings.seed, settings.device) == (3, "cpu")
    assert settings.lora.layers == Settings().lora.layers


def test_the_environment_of_the_process_is_used(monkeypatch):
    monkeypatch.setenv("PERDURE_SERVING__PORT", "8123")
    monkeypatch.setenv("PERDURE_DATA", "/not/a/setting")
    assert load_settings().serving.port == 8123


@pytest.mark.parametrize(
    ("given", "value"),
    [
        ("gate.pseudo_labels=false", False),
        ("model.ridge=[0.5, 1]", (0.5, 1.0)),
        ("lora.learning_rate=5e-4", 5e-4),
        ("trainer.cron=*/5 * * * *", "*/5 * * * *"),
        ("trainer.cron=null", None),
        (" lora.rank =7", 7),
        ("registry.url=s3://bucket/a=b", "s3://bucket/a=b"),
        ("stream.url=sqlite:/a/b.db", "sqlite:/a/b.db"),
    ],
)
def test_values_are_read_as_yaml(given, value):
    section, name = given.partition("=")[0].strip().split(".")
    assert getattr(getattr(load_settings(None, [given], {}), section), name) == value


@pytest.mark.parametrize(
    ("given", "nearest"),
    [
        ("lora.rnak=3", "lora.rank"),
        ("model.nam=x", "model.name"),
        ("sed=3", "seed"),
        ("judge.margn=1", "judge.margin"),
    ],
)
def test_a_misspelt_setting_names_the_nearest(given, nearest, tmp_path):
    name, _, value = given.partition("=")
    with pytest.raises(SettingError, match=rf"unknown setting '{name}': did you mean '{nearest}'\?"):
        load_settings(None, [given], {})
    key = f"PERDURE_{name.upper().replace('.', '__')}"
    if "." in name:
        with pytest.raises(SettingError, match=rf"unknown setting '{key}'.*'{nearest}'".replace("'P", "'?P")):
            load_settings(None, (), {key: value})
        section, leaf = name.split(".")
        with pytest.raises(SettingError, match=f"did you mean '{nearest}'"):
            loaded(tmp_path, f"{section}:\n  {leaf}: {value}\n")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("lora.rank=0", "setting lora.rank cannot be 0: Input should be greater than or equal to 1"),
        ("lora.rank=many", "setting lora.rank cannot be 'many'"),
        ("lora.rank=", "setting lora.rank cannot be None"),
        ("judge.margin=1.5", "setting judge.margin cannot be 1.5: Input should be less than or equal to 1"),
        ("judge.margin=.nan", "setting judge.margin cannot be nan"),
        (
            "serving.on_record_failure=shrug",
            "on_record_failure cannot be 'shrug'.*'answer' or 'refuse'",
        ),
        ("model.ridge=[0.1, 0]", "setting model.ridge.1 cannot be 0"),
        ("stream.url={a: b}", "setting stream.url cannot be"),
    ],
)
def test_a_wrong_value_is_told_with_name_and_value(given, told):
    with pytest.raises(SettingError, match=told):
        load_settings(None, [given], {})


@pytest.mark.parametrize("given", ["lora=3", "lora.rank.x=3", "=3", "nothing.at.all=3"])
def test_what_is_no_setting_is_refused(given):
    with pytest.raises(SettingError, match="unknown setting"):
        load_settings(None, [given], {})


def test_an_override_needs_a_value():
    with pytest.raises(SettingError, match=r"--set needs section.name=value, but got 'lora.rank'"):
        load_settings(None, ["lora.rank"], {})


def test_a_file_that_is_not_there_is_told(tmp_path):
    with pytest.raises(SettingError, match=r"cannot read the settings file .*absent.yaml: No such file"):
        load_settings(tmp_path / "absent.yaml", (), {})


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a: [1", "is not YAML"),
        ("- 1\n- 2\n", "must hold sections, but holds list"),
        ("just words", "must hold sections, but holds str"),
        ("lora: 3\n", "unknown setting 'lora'"),
    ],
)
def test_a_file_that_holds_something_else_is_told(tmp_path, text, told):
    with pytest.raises(SettingError, match=told):
        loaded(tmp_path, text)


def test_a_file_that_is_not_utf8_is_told(tmp_path):
    file = tmp_path / "perdure.yaml"
    file.write_bytes(b"seed: \xff\n")
    with pytest.raises(SettingError, match="is not YAML"):
        load_settings(file, (), {})


def test_empty_files_and_sections_change_nothing(tmp_path):
    assert loaded(tmp_path, "") == Settings()
    assert loaded(tmp_path, "lora:\n  # rank: 3\nstream: {}\n") == Settings()


def test_settings_with_values_are_checked_too():
    assert Settings().with_values({"lora.rank": 3, "seed": 2}).lora.rank == 3
    with pytest.raises(SettingError, match=r"lora.rank cannot be 0"):
        Settings().with_values({"lora.rank": 0})
    with pytest.raises(SettingError, match=r"did you mean 'lora\.rank'"):
        Settings().with_values({"lora.rnk": 1})


def test_every_setting_is_described_once():
    described = list(describe_settings())
    assert tuple(name for name, _, _ in described) == setting_names()
    undocumented = [name for name, _, meaning in described if len(meaning) < 10 or not meaning.rstrip().endswith(".")]
    assert undocumented == []
    found = {name: (default, meaning) for name, default, meaning in described}
    assert found["lora.rank"][0] == Settings().lora.rank
    assert found["serving.on_record_failure"][1].endswith("One of answer, refuse.")
    assert found["seed"] == (0, "Everything random follows from it.")
