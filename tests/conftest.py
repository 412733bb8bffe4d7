"""What tests of several packages share: a clean environment, a tiny encoder, brokers, and places for a registry."""

from __future__ import annotations

import importlib.util
import os
import shutil
import string
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import count
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

WORDS = """
refund order parcel late broken card pay invoice password login account close open change address phone email where is
my the a i want to please help can you not work does money back lost stolen limit raise delete update
""".split()

GIVEN_BROKER = os.environ.get("PERDURE_TEST_KAFKA")
"""`host:port` of a broker that is there already; read before tests begin, since each of them cleans the environment."""


# Tests in several processes are given one, which would fix the width of tables before a test can.
os.environ.pop("COLUMNS", None)


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings of whoever runs the tests must not reach them."""
    for name in list(os.environ):
        if name.startswith("PERDURE_") and name != "PERDURE_DATA":
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a BERT of three layers and 32 dimensions, with random weights that are always the same."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("tiny-encoder")
    letters = list(string.ascii_lowercase + string.digits)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *letters, *(f"##{one}" for one in letters)]
    (folder / "vocab.txt").write_text("\n".join(dict.fromkeys(vocabulary)), encoding="utf-8")
    torch.manual_seed(7)
    model = BertModel(
        BertConfig(
            vocab_size=len(dict.fromkeys(vocabulary)),
            hidden_size=32,
            num_hidden_layers=3,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=64,
        )
    )
    model.save_pretrained(folder)
    BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


@dataclass(frozen=True)
class GivenBroker:
    """A broker that somebody else runs."""

    address: str


@cache
def deployed(folder: str, file: str) -> ModuleType:
    """A module below `deploy`, which no package holds."""
    path = Path(__file__).parents[1] / "deploy" / folder / file
    spec = importlib.util.spec_from_file_location(f"perdure_{folder}_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def broker_module() -> ModuleType:
    """`deploy/kafka/broker.py`."""
    return deployed("kafka", "broker.py")


def running(broker: Any) -> Any:
    """`broker`, started. Where Java or Maven is missing the test is skipped, but in CI it fails."""
    try:
        return broker.start()
    except broker_module().ProgramMissing as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def kafka_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One broker for all tests, at `.address`; each test takes topics and groups of its own.

    The environment's PERDURE_TEST_KAFKA=host:port names one that is there already.
    """
    if GIVEN_BROKER:
        yield GivenBroker(GIVEN_BROKER)
        return
    broker = running(broker_module().Broker(tmp_path_factory.mktemp("kafka")))
    yield broker
    broker.stop()


@pytest.fixture
def own_broker(tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Starts brokers that a test may kill or pause; takes what `Broker` takes, and its folder where none is given."""
    made: list[Any] = []

    def start(folder: Path | None = None, **values: Any) -> Any:
        made.append(broker_module().Broker(folder or tmp_path / f"broker-{len(made)}", **values))
        return running(made[-1])

    yield start
    for broker in made:
        broker.kill()


@dataclass(frozen=True)
class Place:
    """Where a registry may lie, and what a test may do to it behind its back."""

    url: str
    """For `Registry`."""
    backend: Any
    """An obstore store of the same place."""
    folder: Path
    """Where its objects lie as files of the same names; a file's time is its object's."""
    environment: dict[str, str]
    """What a process needs to open the URL."""

    def names(self, prefix: str) -> list[str]:
        """Paths of what lies under `prefix`, without it."""
        found = (item["path"] for batch in self.backend.list(prefix) for item in batch)
        return sorted(path.removeprefix(f"{prefix}/") for path in found)

    def age(self, prefix: str, seconds: float) -> None:
        """Makes all that lies under `prefix` older."""
        for file in (self.folder / prefix).rglob("*"):
            at = file.stat().st_mtime - seconds
            os.utime(file, (at, at))


def _s3_started(server: Any) -> Any:
    """`server`, started. Where Go is missing the test is skipped, but in CI it fails."""
    try:
        return server.start()
    except deployed("s3", "server.py").ProgramMissing as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One S3 server for all tests; each test takes a bucket of its own."""
    server = _s3_started(deployed("s3", "server.py").Server(tmp_path_factory.mktemp("s3")))
    yield server
    server.stop()


@pytest.fixture
def own_s3_server(tmp_path: Path) -> Iterator[Any]:
    """An S3 server that a test may stop, pause or kill."""
    server = _s3_started(deployed("s3", "server.py").Server(tmp_path / "s3"))
    yield server
    server.kill()


_buckets = count(1)


def s3_place(server: Any) -> Place:
    """A new bucket of `server`, in which the registry lies below a prefix."""
    bucket = f"bucket-{next(_buckets)}"
    server.make_bucket(bucket)
    folder = server.folder / "objects" / bucket / "models"
    return Place(f"s3://{bucket}/models", server.store(bucket, prefix="models"), folder, server.environment)


@pytest.fixture
def s3_bucket(s3_server: Any) -> Place:
    """A bucket of its own, of the server for all tests."""
    return s3_place(s3_server)


@pytest.fixture
def own_s3_bucket(own_s3_server: Any) -> Place:
    """A bucket of a server that a test may stop, pause or kill."""
    return s3_place(own_s3_server)


@pytest.fixture(params=["folder", pytest.param("s3", marks=pytest.mark.s3)])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """A folder, and a bucket of a real S3 server, for whoever opens a registry by its URL."""
    if request.param == "folder":
        from obstore.store import LocalStore

        folder = tmp_path / "registry"
        return Place(str(folder), LocalStore(folder, mkdir=True), folder, {})
    made: Place = request.getfixturevalue("s3_bucket")
    for name, value in made.environment.items():
        monkeypatch.setenv(name, value)
    return made


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Mounts file systems of so many bytes, which only root may; others skip."""
    mounted: list[Path] = []

    def mount(size: int) -> Path:
        place = tmp_path / f"disk{len(mounted)}"
        place.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
        if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("only root may mount a small file system")
        mounted.append(place)
        return place

    yield mount
    for place in mounted:
        subprocess.run(["umount", "-l", str(place)], check=True)
