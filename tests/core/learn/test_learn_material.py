from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from perdure.learn import material as module
from perdure.learn.material import Encodings, Labelled, Material
from perdure.model.adapter import Adapter, AdapterShape, linear_names
from perdure.model.classifier import encode
from perdure.model.encoder import Encoder
from perdure.records import sample_key

TEXTS = ("refund my order", "where is my parcel", "card", "reset password login")
MaterialOf = Callable[..., Material]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The texts of each call of the encoder."""
    calls: list[list[str]] = []

    def spy(encoder: Encoder, adapter: Adapter | None, texts: Sequence[str], *rest: Any) -> Any:
        calls.append(list(texts))
        return encode(encoder, adapter, texts, *rest)

    monkeypatch.setattr(module, "encode", spy)
    return calls


# ── encodings ──
def test_each_text_is_encoded_once(encoder: Encoder, asked: list[list[str]]) -> None:
    encodings = Encodings(encoder, None, 4)
    encodings([TEXTS[0], TEXTS[1], TEXTS[0]])
    encodings([TEXTS[1], TEXTS[0]])
    encodings([TEXTS[2], TEXTS[0], TEXTS[3], TEXTS[2]])
    assert asked == [[TEXTS[0], TEXTS[1]], [TEXTS[2], TEXTS[3]]]


def adapter_of(encoder: Encoder, size: float = 0.1) -> Adapter:
    shape = AdapterShape(rank=1, alpha=1, layers=2, targets=linear_names(encoder.top))
    layers: dict[str, Any] = dict(encoder.top.named_modules())
    weights = {f"{name}.A": size * torch.ones(1, layers[name].in_features) for name in shape.targets}
    weights |= {f"{name}.B": torch.linspace(-1, 1, layers[name].out_features).unsqueeze(1) for name in shape.targets}
    return Adapter(encoder, shape, weights)


@pytest.mark.parametrize("adapted", [False, True])
def test_encodings_are_what_the_encoder_says_in_the_order_asked(encoder: Encoder, adapted: bool) -> None:
    adapter = adapter_of(encoder) if adapted else None
    encodings = Encodings(encoder, adapter, 4)
    encodings(TEXTS[2:])
    order = [3, 0, 2, 0, 1]
    found, wanted = encodings([TEXTS[row] for row in order]), encode(encoder, adapter, TEXTS, 4)
    assert np.array_equal(found.features, wanted.features[order])
    assert np.array_equal(found.last, wanted.last[order])
    if adapted:
        assert found.adapted is not None
        assert wanted.adapted is not None
        assert np.array_equal(found.adapted, wanted.adapted[order])
    else:
        assert found.adapted is None


@pytest.mark.parametrize("before", [False, True])
def test_beside_others_only_the_adapters_part_is_new(encoder: Encoder, asked: list[list[str]], before: bool) -> None:
    first, adapter = Encodings(encoder, adapter_of(encoder) if before else None, 4), adapter_of(encoder, 0.3)
    first([TEXTS[2], TEXTS[0]])
    asked.clear()
    order = [0, 3, 2, 0]
    found = first.beside(adapter)([TEXTS[row] for row in order])
    assert asked == [[TEXTS[3]]]
    wanted = encode(encoder, adapter, TEXTS, 4)
    assert found.adapted is not None
    assert wanted.adapted is not None
    assert np.array_equal(found.features, wanted.features[order])
    assert np.array_equal(found.adapted, wanted.adapted[order])
    assert np.array_equal(found.last, wanted.last[order])


def test_no_texts_have_no_encodings(encoder: Encoder) -> None:
    encodings = Encodings(encoder, None, 4)
    assert encodings([]).features.shape == (0, encoder.inputs)
    assert encodings(TEXTS).last.shape == (4, encoder.dim)


# ── labelled rows ──
def test_a_pair_counts_once_however_it_is_written() -> None:
    rows = Labelled.of([("Refund  me", "refund"), ("card", "card"), ("refund me", "refund"), ("refund me", "card")])
    assert len(rows) == 3
    assert rows.labels == ("refund", "card", "card")
    assert rows.keys == tuple(sample_key(label, text) for text, label in zip(rows.texts, rows.labels, strict=True))


def test_rows_can_be_picked_and_joined() -> None:
    rows = Labelled.of([("a", "x"), ("b", "y"), ("c", "x")])
    picked = rows.where([True, False, True])
    assert (picked.texts, picked.labels) == (("a", "c"), ("x", "x"))
    assert picked.keys == (rows.keys[0], rows.keys[2])
    assert picked + rows.where([False, True, False]) == Labelled.of([("a", "x"), ("c", "x"), ("b", "y")])


# ── a turn's material ──
def test_fresh_rows_are_labelled_and_not_doubtful(material_of: MaterialOf) -> None:
    material = material_of(
        [("a", "x"), ("b", None), ("c", "y"), ("d", "x"), ("A", "x")],
        actions=["learn", "ignore", "quarantine", "skip", "learn"],
    )
    assert material.fresh().keys == (sample_key("x", "a"), sample_key("x", "d"))
    assert material.doubtful() == {sample_key("y", "c")}


def test_remembered_rows_are_those_of_earlier_turns(material_of: MaterialOf) -> None:
    material = material_of(
        [("a", "x"), ("c", "y"), ("e", None)],
        [("p", "x"), ("A", "x"), ("C", "y"), ("e", "x")],
        actions=["learn", "quarantine", "ignore"],
    )
    assert set(material.remembered().keys) == {sample_key("x", "p"), sample_key("x", "e")}
