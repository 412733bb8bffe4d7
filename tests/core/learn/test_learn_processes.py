from __future__ import annotations

import dataclasses
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from perdure import torchrun
from perdure.config import LoraSettings, Settings
from perdure.errors import UsageError
from perdure.learn.job import EncoderName, Job
from perdure.learn.lora import LoraLearner, Origin, TrainingSet
from perdure.learn.processes import Processes
from perdure.model.encoder import Encoder

LABELS = ("card", "login", "parcel")


@pytest.fixture
def job(encoder: Encoder, settings: Settings, requests: Callable[..., list[tuple[str, str]]]) -> Job:
    """An update from a champion, with all that may belong to one."""
    pairs = requests(LABELS, 9)
    order = np.random.default_rng(0).permutation(len(pairs))
    texts, labels = tuple(pairs[row][0] for row in order), tuple(pairs[row][1] for row in order)
    lora = LoraSettings.model_validate({**settings.lora.model_dump(), "precision": "float32", "ewc": 20.0})
    before = LoraLearner(encoder, lora, seed=1).update(TrainingSet(texts, labels, len(texts)), None)
    return Job(
        EncoderName(encoder.name, encoder.max_tokens, encoder.adapted_layers, encoder.fingerprint),
        lora,
        3,
        "cpu",
        TrainingSet(texts, labels, 15),
        Origin(before.shape, before.weights, before.labels, before.anchor),
    )


# ── what is sent ──
def assert_same(one: Any, other: Any) -> None:
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, np.ndarray):
        assert np.array_equal(one, other)
    elif isinstance(one, dict):
        assert set(one) == set(other)
        for key, value in one.items():
            assert_same(value, other[key])
    elif dataclasses.is_dataclass(one):
        for field in dataclasses.fields(one):
            assert_same(getattr(one, field.name), getattr(other, field.name))
    else:
        assert one == other


def test_a_job_arrives_as_it_was_sent(job: Job) -> None:
    assert_same(Job.from_bytes(job.to_bytes()), job)
    assert job.origin is not None
    for other in (
        dataclasses.replace(job, origin=None),
        dataclasses.replace(job, origin=dataclasses.replace(job.origin, anchor=None)),
    ):
        assert_same(Job.from_bytes(other.to_bytes()), other)


# ── shares ──
@pytest.mark.parametrize("count", [1, 2, 3])
def test_every_row_is_one_processs_and_long_ones_are_shared_out(count: int) -> None:
    lengths = [int(value) for value in np.random.default_rng(5).integers(1, 60, 100)]
    shares = [Processes(rank, count).share(lengths) for rank in range(count)]
    assert sorted(row for share in shares for row in share) == list(range(100))
    tokens = [sum(lengths[row] for row in share) for share in shares]
    assert max(tokens) - min(tokens) <= 60


def test_alone_nothing_is_added() -> None:
    assert Processes.current() == Processes(0, 1)
    tensor = torch.ones(3)
    Processes().add_up(tensor)
    assert torch.equal(tensor, torch.ones(3))


# ── together ──
def test_two_processes_make_the_update_of_one(encoder: Encoder, job: Job, tmp_path: Path) -> None:
    (tmp_path / "job").write_bytes(job.to_bytes())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": "2",
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    script = str(Path(__file__).parent / "two_processes.py")
    started = [
        subprocess.Popen(
            [sys.executable, script, encoder.name, str(tmp_path / "job"), str(tmp_path / f"result-{rank}")],
            env={**environment, "RANK": str(rank)},
        )
        for rank in range(2)
    ]
    try:
        assert [process.wait(timeout=120) for process in started] == [0, 0]
    finally:
        for process in started:
            process.kill()
            process.wait()
    # The second took part in both updates.
    assert (tmp_path / "result-1").read_text() == "2"
    found = load_file(tmp_path / "result-0")
    learner = LoraLearner(encoder, job.settings, seed=job.seed)
    for name, champion in (("first", None), ("second", job.origin)):
        alone = learner.update(job.data, champion)
        assert float(found[f"{name}/loss"]) == pytest.approx(alone.loss, rel=1e-4)
        for key, value in alone.weights.items():
            torch.testing.assert_close(found[f"{name}/{key}"], value, rtol=0, atol=2e-4)
        moved = LoraLearner(encoder, job.settings, seed=job.seed + 1).update(job.data, champion)
        apart = max(float((moved.weights[key] - value).abs().max()) for key, value in alone.weights.items())
        assert apart > 50 * 2e-4


def test_another_encoder_is_refused(job: Job) -> None:
    other = dataclasses.replace(job, encoder=dataclasses.replace(job.encoder, fingerprint="another"))
    with pytest.raises(UsageError, match="other weights in process 1 than in the first one"):
        torchrun.follow(SimpleNamespace(rank=1, hear=other.to_bytes))  # type: ignore[arg-type]
