"""What tests of several packages share: a clean environment, an encoder small enough to train in a second, brokers."""

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
def broker_module() -> ModuleType:
    """`deploy/kafka/broker.py`, which no package holds."""
    file = Path(__file__).parents[1] / "deploy" / "kafka" / "broker.py"
    spec = importlib.util.spec_from_file_location("perdure_kafka_broker", file)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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
