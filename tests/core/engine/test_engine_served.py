"""What is served answers like what was trained, without torch."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from perdure.engine.load import load_version
from perdure.engine.served import ServedClassifier, load_served
from perdure.errors import VersionDamaged
from perdure.model.classifier import AnalyticClassifier

TEXTS = (
    "refund my order please",
    "where is my parcel",
    "card",
    "reset password login " * 20,
    "",
    "half a pair \ud83d of a surrogate",
    "مرحبا 🙂 \x00\x07",
)

Make = Callable[..., AnalyticClassifier]
Written = Callable[..., Path]


@pytest.mark.parametrize("adapted", [False, True])
def test_float32_is_the_version_itself(classifier_of: Make, written: Written, adapted: bool) -> None:
    wanted = classifier_of(adapted=adapted).scores(TEXTS)
    found = load_served(written(adapted=adapted, precision="float32"), "v1", batch=16).scores(TEXTS)
    assert found.labels == wanted.labels
    np.testing.assert_allclose(found.probabilities, wanted.probabilities, atol=2e-3)
    assert found.names() == wanted.names()


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize(("precision", "near"), [("float32", 0.9999), ("int8", 0.9)])
def test_embeddings_lie_in_the_space_of_the_version_itself(
    classifier_of: Make, written: Written, adapted: bool, precision: str, near: float
) -> None:
    version = classifier_of(adapted=adapted)
    served = load_served(written(adapted=adapted, precision=precision), "v1", batch=16)
    assert served.space == version.space
    found, wanted = served.embeddings(TEXTS), version.embeddings(TEXTS)
    assert found.shape == wanted.shape
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)
    assert (found * wanted).sum(axis=1).min() > near


@pytest.mark.parametrize("adapted", [False, True])
def test_eight_bits_are_near_it(classifier_of: Make, written: Written, adapted: bool) -> None:
    wanted = classifier_of(adapted=adapted).scores(TEXTS)
    found = load_served(written(adapted=adapted), "v1", batch=16).scores(TEXTS)
    assert 0 < np.abs(found.probabilities - wanted.probabilities).max() < 0.2
    assert found.probabilities.sum(axis=1) == pytest.approx(np.ones(len(TEXTS)), abs=1e-5)


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("precision", ["int8", "float32"])
def test_a_texts_answer_is_its_own(written: Written, adapted: bool, precision: str) -> None:
    """ONNX Runtime's own dynamic quantisation would take one scale from the whole batch."""
    served = load_served(written(adapted=adapted, precision=precision), "v1", batch=4)
    together = served.scores(TEXTS).probabilities
    for row, text in enumerate(TEXTS):
        # A feature on the edge of the grid may fall to the other side with the last bit of a sum.
        np.testing.assert_allclose(served.scores([text]).probabilities[0], together[row], atol=2e-3)


def test_the_adapted_head_counts(written: Written) -> None:
    one, both = (load_served(written(adapted=adapted), "v1", batch=16).scores(TEXTS) for adapted in (False, True))
    assert np.abs(one.probabilities - both.probabilities).max() > 0.01


def test_long_texts_keep_their_beginning_and_end(written: Written) -> None:
    served = load_served(written(), "v1", batch=16)
    long = ["card " * 60, "login " + "card " * 58 + "login", "card " * 30 + "login " * 3 + "card " * 30]
    whole, edges, middle = served.scores(long).probabilities
    assert np.abs(whole - edges).max() > 1e-3
    np.testing.assert_allclose(whole, middle, atol=1e-6)


def test_versions_with_one_encoder_share_what_runs_it(written: Written, tmp_path: Path) -> None:
    first = load_served(written(), "v1", batch=4)
    shutil.copytree(written(), tmp_path / "v2")
    second = load_served(tmp_path / "v2", "v2", batch=4)
    assert first._encoder._frozen is second._encoder._frozen
    assert load_served(written(), "v1", batch=4, threads=1)._encoder._frozen is not first._encoder._frozen
    alone = load_served(written(adapted=False, precision="float32"), "v3", batch=4)
    assert alone._encoder._frozen is not first._encoder._frozen


def test_serving_needs_no_torch(written: Written) -> None:
    code = (
        "import sys; from pathlib import Path; from perdure.engine.load import load_version;"
        "c = load_version(Path(sys.argv[1]), 'v1', batch=4); print(c.scores(['my card']).names()[0]);"
        "print(sorted({'torch', 'transformers', 'onnx', 'scipy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(written())], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[1] == "[]"


def test_the_engine_is_chosen(classifier_of: Make, written: Written, tiny_encoder: Path, tmp_path: Path) -> None:
    encoder = str(tiny_encoder)
    assert isinstance(load_version(written(), "v1", batch=4, encoder=encoder), ServedClassifier)
    assert isinstance(load_version(written(), "v1", batch=4, encoder=encoder, engine="torch"), AnalyticClassifier)
    for name, data in classifier_of().files().items():
        (tmp_path / name).write_bytes(data)
    assert isinstance(load_version(tmp_path, "v1", batch=4, encoder=encoder), AnalyticClassifier)
    with pytest.raises(VersionDamaged, match=r"was not exported: set serving\.engine"):
        load_version(tmp_path, "v1", batch=4, encoder=encoder, engine="onnx")


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "no encoder": lambda folder: (folder / "encoder.onnx").unlink(),
    "no adapter": lambda folder: (folder / "adapter.onnx").unlink(),
    "encoder cut short": lambda folder: (folder / "encoder.onnx").write_bytes(b"short"),
    "no tokenizer": lambda folder: (folder / "tokenizer.json").unlink(),
    "tokenizer is none": lambda folder: (folder / "tokenizer.json").write_text("{}"),
    "engine is no JSON": lambda folder: (folder / "engine.json").write_text("{"),
    "engine lacks its key": lambda folder: changed(folder / "engine.json", lambda fields: fields.pop("key")),
    "newer format": lambda folder: changed(folder / "engine.json", lambda fields: fields.update(format=2)),
    "head cut short": lambda folder: (folder / "head.safetensors").write_bytes(b"short"),
    "no labels": lambda folder: changed(folder / "model.json", lambda fields: fields.pop("labels")),
    "fewer labels": lambda folder: changed(folder / "model.json", lambda fields: fields["labels"].pop()),
    "other features": lambda folder: changed(folder / "model.json", lambda fields: fields["features"].update(kind="x")),
    "more features": lambda folder: changed(folder / "model.json", lambda fields: fields["features"].update(count=128)),
    "no adapted weights": lambda folder: (folder / "adapter.safetensors").unlink(),
}


def changed(file: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    fields = json.loads(file.read_text())
    change(fields)
    file.write_text(json.dumps(fields))


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_damaged_says_so(written: Written, tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "v1"
    shutil.copytree(written(), folder)
    DAMAGES[damage](folder)
    with pytest.raises(VersionDamaged, match="v1"):
        load_served(folder, "v1", batch=4)


def test_weights_that_are_no_numbers_are_found(written: Written) -> None:
    served = load_served(written(), "v1", batch=4)
    assert served.finite()
    served._weights = np.full_like(served._weights, np.nan)
    assert not served.finite()


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are counted in /proc")
def test_the_runtime_tells_nobody_anything():
    code = "import os, perdure.engine.onnx_encoder; print(len(os.listdir('/proc/self/task')))"
    named = ("ORT_DISABLE_TELEMETRY", "CI", "GITHUB_ACTIONS", "JENKINS_URL")
    environ = {name: value for name, value in os.environ.items() if name not in named}
    told = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        env={**environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    )
    assert told.stdout == "1\n", told.stderr
