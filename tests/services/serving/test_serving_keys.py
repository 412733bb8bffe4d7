"""Keys, the file they stand in, and the commands that make and revoke them."""

from __future__ import annotations

import hashlib
import json
import re
import stat
import tomllib
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from perdure import cli
from perdure.errors import SettingError, UsageError
from perdure_services import keys as package
from perdure_services.keys import add_key, digest, issue, read_keys, redacted, remove_key
from perdure_services.keys.command import keys as app

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
SHAPE = re.compile(r"perdure_[0-9a-f]{12}_[0-9a-f]{64}")


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def run():
    """Runs `perdure keys ARGUMENTS`; errors come as they are raised, for `perdure.cli` to say."""

    def call(*arguments):
        result = CliRunner().invoke(app, [str(one) for one in arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return call


def made(name="web", scopes=("predict",), **named):
    return issue(name, scopes, created=NOW, **named)


def test_a_key_has_256_random_bits_and_is_kept_as_its_hash_only():
    first, second = made(), made()
    assert SHAPE.fullmatch(first.text)
    assert first.text != second.text
    assert first.key.id != second.key.id
    assert first.key.sha256 == hashlib.sha256(first.text.encode()).hexdigest() == digest(first.text.encode()).hex()
    secret = first.text.rsplit("_", 1)[1]
    assert secret not in repr(first)
    assert secret not in first.key.model_dump_json()


def test_redaction_leaves_the_id_and_nothing_of_the_secret():
    text = made().text
    id = text[8:20]
    for form in (text, text.upper().replace("PERDURE", "perdure"), text[:60]):
        shown = redacted(f"a {form}, a {form}")
        assert form[21:30] not in shown
        assert shown.lower() == f"a perdure_{id}_…, a perdure_{id}_…"
    assert redacted("perdure_services") == "perdure_services"


def test_what_was_added_is_read_back_and_only_its_owner_may_read_it(tmp_path):
    file = tmp_path / "deep" / "keys.json"
    web = made(expires=NOW + timedelta(days=1), rate=2.5, burst=7).key
    add_key(file, web)
    admin = made("admin", ("admin", "metrics")).key
    add_key(file, admin)
    assert read_keys(file) == (web, admin)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert remove_key(file, "web") == web
    assert read_keys(file) == (admin,)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [one.name for one in file.parent.iterdir()] == ["keys.json"]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_beside(tmp_path, monkeypatch):
    file = tmp_path / "keys.json"
    add_key(file, made().key)
    before = file.read_bytes()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("perdure_services.keys.key_file.os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        add_key(file, made("other").key)
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


def test_a_link_is_followed_and_stays_a_link(tmp_path):
    (tmp_path / "secrets").mkdir()
    link = tmp_path / "keys.json"
    link.symlink_to(tmp_path / "secrets" / "real.json")
    add_key(link, made().key)
    assert link.is_symlink()
    assert [key.name for key in read_keys(tmp_path / "secrets" / "real.json")] == ["web"]


def _add(file, name):
    for number in range(5):
        add_key(file, made(f"{name}-{number}").key)


def test_two_who_write_at_once_lose_nothing(tmp_path):
    file = tmp_path / "keys.json"
    with ThreadPoolExecutor(3) as writers:
        list(writers.map(lambda name: _add(file, name), ("a", "b", "c")))
    assert len(read_keys(file)) == 15


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"", "EOF"),
        (b"\xff\xfe", "Invalid JSON"),
        (b"[]", "object"),
        (b'{"keys": []}', "format: Field required"),
        (b'{"format": 2, "keys": []}', "format"),
        (b'{"format": 1, "keys": [{}]}', "keys.0.id"),
    ],
)
def test_a_file_that_holds_something_else_is_refused_in_words(tmp_path, content, part):
    file = tmp_path / "keys.json"
    file.write_bytes(content)
    with pytest.raises(SettingError) as error:
        read_keys(file)
    assert part in str(error.value)
    assert "keys.json" in str(error.value)
    assert "perdure keys create" in str(error.value)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"scopes": []}, "scopes"),
        ({"scopes": ["all"]}, "scopes"),
        ({"sha256": "SECRET"}, "sha256"),
        ({"id": "SECRET"}, "id"),
        ({"expires": "SECRET"}, "expires"),
        ({"expires": "2026-11-22T12:00:00"}, "expires"),
        ({"expire": "2026-11-22T12:00:00Z"}, "expire"),
        ({"name": "a b"}, "name"),
        ({"rate": 0}, "rate"),
        ({"burst": 3}, "a burst needs a rate"),
        ({"burst": 0, "rate": 1}, "burst"),
    ],
)
def test_a_key_with_something_wrong_is_refused_and_not_shown(tmp_path, change, part):
    file = tmp_path / "keys.json"
    kept = made().key.model_dump(mode="json", exclude_none=True)
    file.write_text(json.dumps({"format": 1, "keys": [kept | change]}))
    with pytest.raises(SettingError) as error:
        read_keys(file)
    assert part in str(error.value)
    assert "SECRET" not in str(error.value)
    assert error.value.__cause__ is None
    assert error.value.__context__ is None


def test_a_key_pasted_into_the_file_is_not_shown(tmp_path):
    file, text = tmp_path / "keys.json", made().text
    for content in ({"format": 1, "keys": [], text: 1}, {"format": 1, "keys": [text]}, {"format": text, "keys": []}):
        file.write_text(json.dumps(content))
        with pytest.raises(SettingError) as error:
            read_keys(file)
        assert text[21:] not in str(error.value)


@pytest.mark.parametrize("same", ["id", "name"])
def test_two_keys_of_one_id_or_name_are_refused(tmp_path, same):
    one, two = (made(name).key.model_dump(mode="json", exclude_none=True) for name in ("a", "b"))
    (tmp_path / "keys.json").write_text(json.dumps({"format": 1, "keys": [one, two | {same: one[same]}]}))
    with pytest.raises(SettingError, match=f"two keys have the {same}"):
        read_keys(tmp_path / "keys.json")


def test_the_command_prints_the_key_once_and_keeps_its_hash(run):
    result = run("create", "web", "--scopes", "feedback, predict", "--rate", "10", "--burst", 20, "--file", "keys.json")
    text = result.stdout.strip()
    assert SHAPE.fullmatch(text)
    assert text not in result.stderr
    assert "predict, feedback" in result.stderr
    (key,) = read_keys(Path("keys.json"))
    assert (key.name, key.scopes, key.rate, key.burst, key.expires) == ("web", ("predict", "feedback"), 10.0, 20, None)
    assert key.sha256 == digest(text.encode()).hex()
    assert abs(key.created - datetime.now(UTC)) < timedelta(minutes=1)
    assert text[21:] not in Path("keys.json").read_text()


def test_the_file_is_the_one_that_serving_reads(run, monkeypatch):
    Path("perdure.yaml").write_text("serving:\n  keys: a.json\n")
    run("create", "web", "--scopes", "predict", "--config", "perdure.yaml")
    run("create", "web", "--scopes", "predict", "--set", "serving.keys=b.json")
    monkeypatch.setenv("PERDURE_SERVING__KEYS", "c.json")
    run("create", "web", "--scopes", "predict")
    assert sorted(one.name for one in Path().glob("*.json")) == ["a.json", "b.json", "c.json"]
    assert len({read_keys(Path(name))[0].id for name in ("a.json", "b.json", "c.json")}) == 3


def test_keys_are_listed_without_what_proves_them(run):
    text = run("create", "web", "--scopes", "predict", "--expires-days", "2", "--file", "k.json").stdout.strip()
    run("create", "ops", "--scopes", "admin,metrics", "--rate", "3", "--file", "k.json")
    (web, _) = read_keys(Path("k.json"))
    table = run("list", "--file", "k.json").stdout
    for part in ("web", "ops", "never", text[8:20], "admin, metrics", "3"):
        assert part in table
    assert web.sha256[:12] not in table
    told = json.loads(run("list", "--json", "--file", "k.json").stdout)
    assert [key["name"] for key in told["keys"]] == ["web", "ops"]
    assert "sha256" not in told["keys"][0]
    assert web.expires is not None
    assert web.expires - web.created == timedelta(days=2)
    old = made("old", expires=NOW - timedelta(days=9)).key
    add_key(Path("k.json"), old)
    assert "(expired)" in run("list", "--file", "k.json").stdout


def test_revoking_takes_the_key_out(run):
    run("create", "web", "--scopes", "predict", "--file", "k.json")
    result = run("revoke", "web", "--file", "k.json")
    assert "web" in result.stdout
    assert read_keys(Path("k.json")) == ()
    assert "nobody may do anything" in run("list", "--file", "k.json").stdout


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["create", "web", "--scopes", "predikt"], "did you mean 'predict'"),
        (["create", "web", "--scopes", ""], "choose of predict, feedback, explain, admin, metrics"),
        (["create", "web", "--scopes", "predict", "--rate", "0"], "--rate cannot be 0.0"),
        (["create", "web", "--scopes", "predict", "--rate", "inf"], "--rate cannot be inf"),
        (["create", "web", "--scopes", "predict", "--burst", "2"], "give --rate R too"),
        (["create", "web", "--scopes", "predict", "--rate", "1", "--burst", "0"], "--burst cannot be 0"),
        (["create", "web", "--scopes", "predict", "--expires-days", "0"], "--expires-days cannot be 0"),
        (["create", "web", "--scopes", "predict", "--expires-days", "nan"], "--expires-days cannot be nan"),
        (["create", "web", "--scopes", "predict", "--expires-days", "1e9"], "--expires-days cannot be 1e+09"),
        (["create", "a b", "--scopes", "predict"], "name cannot be 'a b'"),
        (["create", "there", "--scopes", "predict"], "perdure keys revoke there"),
        (["revoke", "absent"], "there are: there"),
    ],
)
def test_wrong_usage_is_told_with_what_to_do(run, arguments, part):
    add_key(Path("k.json"), made("there").key)
    before = Path("k.json").read_bytes()
    with pytest.raises(UsageError) as error:
        run(*arguments, "--file", "k.json")
    assert part in str(error.value)
    assert "sha256" not in str(error.value)
    assert Path("k.json").read_bytes() == before


@pytest.mark.parametrize("arguments", [["list"], ["revoke", "web"]])
def test_without_a_file_the_first_key_is_to_be_made(run, arguments):
    with pytest.raises(UsageError, match="perdure keys create"):
        run(*arguments, "--file", "absent/k.json")
    with pytest.raises(UsageError, match=r"set serving\.keys"):
        run(*arguments)


def test_the_command_line_finds_its_commands(monkeypatch, capsys):
    pyproject = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())
    value = pyproject["project"]["entry-points"]["perdure.commands"]["keys"]
    point = EntryPoint("keys", value, cli.ENTRY_POINTS)
    monkeypatch.setattr(cli, "entry_points", lambda group: [point])
    monkeypatch.setattr(cli, "app", typer.Typer(callback=cli.app.registered_callback.callback))
    built = cli.build.__wrapped__()
    result = CliRunner().invoke(built, ["keys", "--help"])
    assert result.exit_code == 0
    for name in ("create", "list", "revoke"):
        assert f"│ {name} " in result.stdout
    result = CliRunner().invoke(built, ["keys", "create", "web", "--scopes", "predict", "--file", "k.json"])
    assert result.exit_code == 0
    assert read_keys(Path("k.json"))[0].name == "web"
    assert set(package.__all__) <= set(dir(package))
