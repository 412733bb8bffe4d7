"""Where a registry may be, and what it says when the place is bad: URLs, folders, full disks, credentials."""

from __future__ import annotations

import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

import pytest
from obstore.exceptions import GenericError, PermissionDeniedError, UnauthenticatedError
from obstore.store import LocalStore, MemoryStore

from perdure.errors import RegistryError, VersionDamaged, VersionNotFound
from perdure.registry import Card, EncoderCard, Registry
from perdure.registry.store import redacted

FILES = {"head.safetensors": b"w" * 1000}


def card(name: str) -> Card:
    return Card(name=name, kind="first", encoder=EncoderCard(name="mini", fingerprint="f00"), labels=("a", "b"))


def test_a_folder_is_made_when_missing(tmp_path: Path) -> None:
    registry = Registry(str(tmp_path / "deep" / "registry"))
    registry.write(card("v1"), FILES)
    assert (tmp_path / "deep" / "registry" / "versions" / "v1" / "head.safetensors").read_bytes() == b"w" * 1000
    assert Registry(f"file://{tmp_path}/deep/registry").versions() == ("v1",)


def test_a_relative_folder_stays_where_it_was_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    registry = Registry("var/registry")
    monkeypatch.chdir(tmp_path / "elsewhere")
    registry.write(card("v1"), FILES)
    assert (tmp_path / "var" / "registry" / "versions" / "v1" / "card.json").is_file()


def test_memory_gives_a_new_registry_each_time() -> None:
    one, other = Registry("memory://"), Registry("memory://")
    one.write(card("v1"), FILES)
    assert one.versions() == ("v1",)
    assert other.versions() == ()


@pytest.mark.parametrize("url", ["s3://bucket/prefix", "gs://bucket/prefix"])
def test_remote_urls_open_without_asking_the_network(url: str) -> None:
    assert Registry(url).name == url


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("", "is empty: give a folder"),
        ("  ", "is empty"),
        ("bogus://ann:hunter2@place/x?key=hunter2", r"URL bogus://place/x is of no known kind: give a folder, .*s3://"),
        ("https://ann:hunter2@place/x", "https://place/x is of no known kind"),
        ("memory:", r"starts with 'memory:' but has no '://'"),
        ("s3:ann:hunter2@bucket", r"starts with 's3:' but has no '://'"),
        ("az://ann:hunter2@container/prefix?sig=hunter2", r"az://container/prefix cannot be opened: .*registry\.url"),
        ("s3://", r"cannot be opened"),
        ("s3://ann:hunter2@[bad/x", r"cannot be opened"),
        ("file://host/x", r"cannot be opened"),
    ],
)
def test_a_bad_url_is_refused_without_its_secrets(url: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_CONNECTION_STRING"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(RegistryError, match=says) as caught:
        Registry(url)
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("var/registry", "var/registry"),
        ("s3://bucket/pre/fix", "s3://bucket/pre/fix"),
        ("s3://ann:pw@bucket/x", "s3://bucket/x"),
        ("s3://bucket/x?token=pw#pw", "s3://bucket/x"),
        ("s3://ann:p/w@bucket/x", "s3://bucket/x"),
        ("s3://ann:p?w@bucket/x", "s3://..."),
        ("s3://bucket/x?a=b@pw", "s3://..."),
    ],
)
def test_secrets_are_left_out_of_urls(url: str, shown: str) -> None:
    assert redacted(url) == shown


def test_a_folder_that_cannot_be_made_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RegistryError, match=rf"{tmp_path}/file/registry cannot be made: .*registry\.url"):
        Registry(str(tmp_path / "file" / "registry"))


def test_a_file_in_the_place_of_the_folder_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RegistryError, match=r"/file (cannot be made|failed at)"):
        Registry(str(tmp_path / "file")).write(card("v1"), FILES)


class Failing:
    """A store where some calls raise."""

    def __init__(self, backend: Any, error: Exception, *calls: str) -> None:
        self._backend = backend
        self._error = error
        self._calls = calls

    def __getattr__(self, name: str) -> Any:
        if name in self._calls:
            return self._raise
        return getattr(self._backend, name)

    def _raise(self, *_: Any, **__: Any) -> None:
        raise self._error


BAD_DAYS = [
    (
        GenericError("Generic LocalFileSystem error: Unable to copy data to file: No space left on device"),
        "Free some space",
    ),
    (GenericError("Generic LocalFileSystem error: Read-only file system (os error 30)"), "It is read-only: mount it"),
    (PermissionDeniedError("The operation lacked the necessary privileges"), "the right to read, write, list"),
    (PermissionError(13, "Permission denied"), "the right to read, write, list"),
    (UnauthenticatedError("The operation lacked valid authentication credentials"), "Give credentials for this store"),
    (GenericError("Generic S3 error: missing credential provider"), "Give credentials for this store"),
    (GenericError("Error performing PUT https://x/y?sig=hunter2 in 30s\n\nDebug source: hunter2"), "can be reached"),
]


@pytest.mark.parametrize(("error", "advice"), BAD_DAYS)
def test_a_store_that_cannot_be_written_says_what_to_do(error: Exception, advice: str) -> None:
    backend = MemoryStore()
    good = Registry.over(backend)
    good.write(card("v1"), FILES)
    good.promote("v1", reason="", by="ann")
    bad = Registry.over(Failing(backend, error, "put", "delete"), "s3://bucket/prefix")
    for act in (
        lambda: bad.write(card("v2"), FILES),
        lambda: bad.promote("v1", reason="again", by="ann"),
    ):
        with pytest.raises(RegistryError, match=advice) as caught:
            act()
        assert "registry s3://bucket/prefix failed at writing" in str(caught.value)
        assert "hunter2" not in "".join(traceback.format_exception(caught.value))
    assert good.versions() == ("v1",)
    assert len(good.promotions()) == 1


@pytest.mark.parametrize(("error", "advice"), BAD_DAYS)
def test_a_store_that_cannot_be_read_is_no_missing_version(error: Exception, advice: str, tmp_path: Path) -> None:
    bad = Registry.over(Failing(MemoryStore(), error, "get", "head", "list"), "s3://bucket/prefix")
    for act in (
        lambda: bad.card("v1"),
        bad.versions,
        bad.champion,
        bad.next_number,
        lambda: bad.fetch("v1", tmp_path),
        lambda: bad.write(card("v1"), FILES),
        lambda: bad.collect(1),
    ):
        with pytest.raises(RegistryError, match=advice) as caught:
            act()
        assert not isinstance(caught.value, (VersionNotFound, VersionDamaged))


def test_a_cache_that_cannot_be_written_is_reported(tmp_path: Path) -> None:
    registry = Registry("memory://")
    registry.write(card("v1"), FILES)
    (tmp_path / "cache").write_text("in the way")
    with pytest.raises(RegistryError, match=r"the cache of versions .*/cache cannot be written: .*Free some space"):
        registry.fetch("v1", tmp_path / "cache")


RUNNING_OUT = """
import resource, sys
from perdure.errors import RegistryError
from perdure.registry import Card, EncoderCard, Registry
registry = Registry(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
card = Card(name="v1", kind="first", encoder=EncoderCard(name="m", fingerprint="f"), labels=("a",))
try:
    registry.write(card, {"small": b"x", "big": b"x" * 200_000})
except RegistryError as error:
    print(error)
"""


def test_a_write_that_stops_half_way_leaves_no_version(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", RUNNING_OUT, str(tmp_path / "r")], capture_output=True, text=True, timeout=60, check=True
    )
    assert "failed at writing versions/v1/big" in done.stdout
    registry = Registry(str(tmp_path / "r"))
    assert registry.versions() == ()
    assert not (tmp_path / "r" / "versions" / "v1" / "big").exists()
    registry.write(card("v1"), {"big": b"y"})
    assert registry.read("v1", "big") == b"y"


def test_half_written_files_of_a_killed_writer_go_with_the_version(tmp_path: Path) -> None:
    registry = Registry.over(LocalStore(tmp_path))
    for name in ("v1", "v2"):
        registry.write(card(name), {"deep/head.safetensors": b"w"})
    (tmp_path / "versions" / "v1" / "deep" / "head.safetensors#1").write_bytes(b"half")
    assert registry.collect(retain=1) == ("v1",)
    assert [path.name for path in (tmp_path / "versions").iterdir()] == ["v2"]
