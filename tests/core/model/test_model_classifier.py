from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from perdure.errors import ModelNotFound, VersionDamaged
from perdure.model.adapter import Adapter, AdapterShape, linear_names
from perdure.model.classifier import (
    ADAPTER_FILE,
    HEAD_FILE,
    MODEL_FILE,
    AdaptedHead,
    AnalyticClassifier,
    load_classifier,
    shared_features,
)
from perdure.model.encoder import Encoder, load_encoder

TEXTS = ("refund my order please", "where is my parcel", "card", "reset password login")
LABELS = ("card", "login", "parcel", "refund")
D = 64

Make = Callable[..., AnalyticClassifier]


def softmax(logits: NDArray[Any]) -> NDArray[Any]:
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    result: NDArray[Any] = shifted / shifted.sum(axis=1, keepdims=True)
    return result


@pytest.fixture
def head(adapter: Adapter) -> AdaptedHead:
    """An adapted head that knows two of the labels, and one that the classifier does not."""
    weights = np.random.default_rng(3).normal(size=(3, 32)).astype(np.float32)
    return AdaptedHead(adapter, ("refund", "gone", "card"), weights, temperature=4.0, share=0.3, sharpness=1.5)


@pytest.fixture
def make(encoder: Encoder) -> Make:
    def classifier(adapted: AdaptedHead | None = None, *, version: str = "v1", batch: int = 8) -> AnalyticClassifier:
        return AnalyticClassifier(
            version,
            encoder,
            shared_features(encoder.inputs, D, 0.8, 7),
            feature_seed=7,
            bandwidth=0.8,
            labels=LABELS,
            weights=np.random.default_rng(0).normal(size=(D, 4)).astype(np.float32),
            temperature=0.7,
            adapted=adapted,
            batch=batch,
        )

    return classifier


def write(classifier: AnalyticClassifier, folder: Path) -> None:
    for name, data in classifier.files().items():
        (folder / name).write_bytes(data)


# ── embeddings ──
def test_embeddings_lie_where_memory_compares_and_have_length_one(make: Make, head: AdaptedHead) -> None:
    for classifier in (make(), make(head)):
        found = classifier.embeddings(TEXTS)
        last = classifier.encode(TEXTS).last
        np.testing.assert_allclose(found, last / np.linalg.norm(last, axis=1, keepdims=True), atol=1e-5)
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)
        assert found.dtype == np.float32
    assert not np.allclose(make().embeddings(TEXTS), make(head).embeddings(TEXTS), atol=1e-2)


# ── two heads ──
def test_without_an_adapter_the_head_speaks_alone(make: Make) -> None:
    classifier = make()
    scores = np.random.default_rng(1).normal(size=(5, 4)).astype(np.float32)
    answer = classifier.combine(scores, None)
    assert answer.labels == LABELS
    np.testing.assert_allclose(answer.probabilities, softmax(0.7 * scores), rtol=1e-5)


def test_the_answer_is_the_sharpened_geometric_mean_over_shared_labels(make: Make, head: AdaptedHead) -> None:
    rng = np.random.default_rng(1)
    scores, embeddings = rng.normal(size=(5, 4)).astype(np.float32), rng.normal(size=(5, 32)).astype(np.float32)
    found = make(head).combine(scores, embeddings).probabilities
    frozen = softmax(0.7 * scores)
    shared, theirs = [0, 3], [2, 0]
    inside = frozen[:, shared].sum(axis=1, keepdims=True)
    adapted = softmax((4.0 * embeddings @ head.weights.T)[:, theirs])
    mean = ((frozen[:, shared] / inside) ** 0.7 * adapted**0.3) ** 1.5
    wanted = frozen.copy()
    wanted[:, shared] = inside * mean / mean.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(found, wanted, rtol=1e-4)
    np.testing.assert_allclose(found[:, [1, 2]], frozen[:, [1, 2]], rtol=1e-5)
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-5)


def test_share_0_is_the_head_and_share_1_the_adapter(make: Make, head: AdaptedHead) -> None:
    rng = np.random.default_rng(1)
    scores, embeddings = rng.normal(size=(5, 4)).astype(np.float32), rng.normal(size=(5, 32)).astype(np.float32)
    frozen = softmax(0.7 * scores)
    none = make(dataclasses.replace(head, share=0.0, sharpness=1.0)).combine(scores, embeddings)
    np.testing.assert_allclose(none.probabilities, frozen, rtol=1e-4)
    alone = make(dataclasses.replace(head, share=1.0, sharpness=1.0)).combine(scores, embeddings).probabilities
    within = alone[:, [0, 3]] / alone[:, [0, 3]].sum(axis=1, keepdims=True)
    np.testing.assert_allclose(within, softmax((4.0 * embeddings @ head.weights.T)[:, [2, 0]]), rtol=1e-4)


def test_an_adapted_head_of_other_labels_says_nothing(make: Make, head: AdaptedHead) -> None:
    scores = np.random.default_rng(1).normal(size=(5, 4)).astype(np.float32)
    stranger = dataclasses.replace(head, labels=("x", "y", "z"))
    found = make(stranger).combine(scores, np.ones((5, 32), dtype=np.float32))
    np.testing.assert_allclose(found.probabilities, softmax(0.7 * scores), rtol=1e-5)


def test_certain_heads_stay_finite(make: Make, head: AdaptedHead) -> None:
    scores = np.array([[1e4, 0, 0, 0], [0, 0, 0, -1e4]], dtype=np.float32)
    found = make(head).combine(scores, 1e3 * np.ones((2, 32), dtype=np.float32)).probabilities
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-5)


def test_texts_are_answered_by_both(make: Make, head: AdaptedHead) -> None:
    classifier = make(head)
    encoded = classifier.encode(TEXTS)
    assert encoded.adapted is not None
    wanted = classifier.combine(classifier.features(encoded.features) @ classifier.weights, encoded.adapted)
    np.testing.assert_allclose(classifier.scores(TEXTS).probabilities, wanted.probabilities, atol=1e-3)
    assert np.array_equal(classifier.answer(encoded).probabilities, wanted.probabilities)
    alone = classifier.answer(encoded.frozen())
    assert np.array_equal(alone.probabilities, make().answer(make().encode(TEXTS)).probabilities)
    assert not np.allclose(alone.probabilities, wanted.probabilities, atol=1e-3)


def test_another_adapted_head_leaves_the_frozen_one(make: Make, head: AdaptedHead) -> None:
    found = make().with_adapted("v2", head)
    assert (found.version, found.adapted, found.labels) == ("v2", head, LABELS)
    assert np.array_equal(found.scores(TEXTS).probabilities, make(head).scores(TEXTS).probabilities)


def test_an_adapter_of_another_cut_can_be_put_beside_a_head(
    make: Make, head: AdaptedHead, tiny_encoder: Path, tmp_path: Path
) -> None:
    other = load_encoder(str(tiny_encoder), max_tokens=32, adapted_layers=1)
    shape = AdapterShape(rank=1, alpha=1, layers=1, targets=linear_names(other.top))
    layers: dict[str, Any] = dict(other.top.named_modules())
    weights = {f"{name}.A": torch.ones(1, layers[name].in_features) for name in shape.targets}
    weights |= {f"{name}.B": 0.1 * torch.ones(layers[name].out_features, 1) for name in shape.targets}
    classifier = make().with_adapted("v2", dataclasses.replace(head, adapter=Adapter(other, shape, weights)))
    write(classifier, tmp_path)
    read = load_classifier(tmp_path, "v2", batch=8)
    np.testing.assert_allclose(read.scores(TEXTS).probabilities, classifier.scores(TEXTS).probabilities, atol=1e-6)


# ── the space of embeddings ──
def test_a_space_is_the_encoder_and_the_adapter(make: Make, head: AdaptedHead, adapter: Adapter) -> None:
    plain, adapted = make(), make(head)
    assert plain.space == make(version="v9").space != adapted.space
    assert adapted.space == make(dataclasses.replace(head, labels=("a", "b", "c"), share=0.9)).space
    moved = {**adapter.weights, "1.output.dense.B": adapter.weights["1.output.dense.B"] + 1e-3}
    other = dataclasses.replace(head, adapter=Adapter(adapter.encoder, adapter.shape, moved))
    assert make(other).space != adapted.space
    louder = Adapter(adapter.encoder, dataclasses.replace(adapter.shape, alpha=7), adapter.weights)
    assert make(dataclasses.replace(head, adapter=louder)).space != adapted.space


# ── finite ──
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_weight_that_is_no_number_is_seen(make: Make, head: AdaptedHead, adapter: Adapter, value: float) -> None:
    assert make().finite()
    assert make(head).finite()
    broken = make(head)
    broken.weights[3, 1] = value
    assert not broken.finite()
    weights = head.weights.copy()
    weights[0, 0] = value
    assert not make(dataclasses.replace(head, weights=weights)).finite()
    factor = adapter.weights["0.output.dense.A"].clone()
    factor[0, 0] = value
    factors = {**adapter.weights, "0.output.dense.A": factor}
    assert not make(dataclasses.replace(head, adapter=Adapter(adapter.encoder, adapter.shape, factors))).finite()


# ── files ──
@pytest.mark.parametrize("with_adapter", [False, True])
def test_what_is_read_back_answers_the_same(make: Make, head: AdaptedHead, tmp_path: Path, with_adapter: bool) -> None:
    classifier = make(head if with_adapter else None)
    write(classifier, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {HEAD_FILE, MODEL_FILE} | (
        {ADAPTER_FILE} if with_adapter else set()
    )
    read = load_classifier(tmp_path, "v1", batch=8)
    assert np.array_equal(read.scores(TEXTS).probabilities, classifier.scores(TEXTS).probabilities)
    assert (read.version, read.labels, read.space) == ("v1", LABELS, classifier.space)
    assert read.files() == classifier.files()


def test_labels_of_any_kind_go_through_the_files(make: Make, head: AdaptedHead, tmp_path: Path) -> None:
    labels = ("Rückgabe", "two\nlines", "a\0b", '"🙂"')
    classifier = make(dataclasses.replace(head, labels=labels[:3]))
    classifier.labels = labels
    write(classifier, tmp_path)
    read = load_classifier(tmp_path, "v1", batch=8)
    assert read.labels == labels
    assert read.adapted is not None
    assert read.adapted.labels == labels[:3]


@pytest.mark.parametrize("file", [MODEL_FILE, HEAD_FILE, ADAPTER_FILE])
@pytest.mark.parametrize("damage", ["missing", "cut short", "empty", "garbage"])
def test_a_file_that_is_not_whole_is_refused(
    make: Make, head: AdaptedHead, tmp_path: Path, file: str, damage: str
) -> None:
    write(make(head), tmp_path)
    path = tmp_path / file
    data = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes({"cut short": data[: len(data) // 2], "empty": b"", "garbage": b"\xff\xfe" * 400}[damage])
    with pytest.raises(VersionDamaged, match="version v1 cannot be read"):
        load_classifier(tmp_path, "v1", batch=8)


def rewrite(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    description = json.loads((folder / MODEL_FILE).read_text(encoding="utf-8"))
    change(description)
    (folder / MODEL_FILE).write_text(json.dumps(description), encoding="utf-8")


CHANGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "no labels": lambda fields: fields.pop("labels"),
    "a label less": lambda fields: fields["labels"].pop(),
    "no seed": lambda fields: fields["features"].pop("seed"),
    "features of before": lambda fields: fields["features"].pop("kind"),
    "more features": lambda fields: fields["features"].update(count=128),
    "count is no number": lambda fields: fields["features"].update(count=None),
    "encoder is text": lambda fields: fields.update(encoder="all-MiniLM-L6-v2"),
    "no shape": lambda fields: fields["adapted"].pop("shape"),
    "no rank": lambda fields: fields["adapted"]["shape"].pop("rank"),
    "another rank": lambda fields: fields["adapted"]["shape"].update(rank=3),
    "other targets": lambda fields: fields["adapted"]["shape"].update(targets=["nothing"]),
    "an adapted label more": lambda fields: fields["adapted"]["labels"].append("extra"),
    "no share": lambda fields: fields["adapted"].pop("share"),
    "share is no number": lambda fields: fields["adapted"].update(share=None),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_description_that_does_not_fit_is_refused(make: Make, head: AdaptedHead, tmp_path: Path, change: str) -> None:
    write(make(head), tmp_path)
    rewrite(tmp_path, CHANGES[change])
    with pytest.raises(VersionDamaged):
        load_classifier(tmp_path, "v1", batch=8)


@pytest.mark.parametrize("name", ["head", "1.output.dense.A"])
def test_an_adapter_file_without_all_its_tensors_is_refused(
    make: Make, head: AdaptedHead, tmp_path: Path, name: str
) -> None:
    write(make(head), tmp_path)
    tensors = load_file(tmp_path / ADAPTER_FILE)
    del tensors[name]
    save_file(tensors, tmp_path / ADAPTER_FILE)
    with pytest.raises(VersionDamaged, match=name.removesuffix(".A")):
        load_classifier(tmp_path, "v1", batch=8)


def test_another_encoder_under_the_same_name_is_refused(make: Make, tmp_path: Path) -> None:
    write(make(), tmp_path)
    rewrite(tmp_path, lambda fields: fields["encoder"].update(fingerprint="0" * 64))
    with pytest.raises(VersionDamaged, match=r"made with encoder .* 000000000000, but the one found here"):
        load_classifier(tmp_path, "v1", batch=8)


def test_an_encoder_is_found_where_this_machine_has_it(make: Make, tmp_path: Path, encoder: Encoder) -> None:
    write(make(), tmp_path)
    rewrite(tmp_path, lambda fields: fields["encoder"].update(name="it/lies-elsewhere"))
    with pytest.raises(ModelNotFound):
        load_classifier(tmp_path, "v1", batch=8)
    read = load_classifier(tmp_path, "v1", batch=8, encoder=encoder.name)
    assert np.array_equal(read.scores(TEXTS).probabilities, make().scores(TEXTS).probabilities)
