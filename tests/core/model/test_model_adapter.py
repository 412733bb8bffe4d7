from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from perdure.errors import VersionDamaged
from perdure.model.adapter import Adapter, AdapterShape, linear_names
from perdure.model.classifier import encode
from perdure.model.encoder import Encoder, load_encoder, pool

TEXTS = ("refund my order please", "where is my parcel", "card", "login password reset email phone change address")


@pytest.fixture(scope="module")
def shape(encoder: Encoder) -> AdapterShape:
    return AdapterShape(rank=4, alpha=12, layers=2, targets=linear_names(encoder.top))


@pytest.fixture(scope="module")
def weights(encoder: Encoder, shape: AdapterShape) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    modules = dict(encoder.top.named_modules())
    found = {}
    for name in shape.targets:
        layer = modules[name]
        assert isinstance(layer, nn.Linear)
        found[f"{name}.A"] = 0.2 * torch.randn(4, layer.in_features, generator=generator)
        found[f"{name}.B"] = 0.2 * torch.randn(layer.out_features, 4, generator=generator)
    return found


def test_targets_are_all_linear_maps_above_the_cut(shape: AdapterShape) -> None:
    assert len(shape.targets) == 2 * 6
    assert shape.targets[0] == "0.attention.self.query"
    assert shape.targets[-1] == "1.output.dense"


def test_merged_weights_answer_as_peft_does(encoder: Encoder, shape: AdapterShape, weights: dict[str, Tensor]) -> None:
    top = encoder.copy_top()
    config = LoraConfig(r=4, lora_alpha=12, target_modules=list(shape.targets), lora_dropout=0.0)
    inject_adapter_in_model(config, top)
    modules: dict[str, Any] = dict(top.named_modules())
    trunk = encoder.trunk(encoder.tokens(TEXTS))
    with torch.no_grad():
        for name in shape.targets:
            modules[name].lora_A["default"].weight.copy_(weights[f"{name}.A"])
            modules[name].lora_B["default"].weight.copy_(weights[f"{name}.B"])
        hidden = trunk.hidden
        for layer in top:
            hidden = trunk.call(layer, hidden)
        wanted = nn.functional.normalize(pool(hidden, trunk.mask), dim=1)
    found = Adapter(encoder, shape, weights).embed(trunk)
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    np.testing.assert_allclose(found.norm(dim=1), 1, atol=1e-5)
    assert np.abs(found.numpy() - encode(encoder, None, TEXTS, 4).last).max() > 0.05


def test_an_adapter_with_b_0_is_the_frozen_encoder(
    encoder: Encoder, shape: AdapterShape, weights: dict[str, Tensor]
) -> None:
    zero = {name: torch.zeros_like(value) if name.endswith(".B") else value for name, value in weights.items()}
    found = encode(encoder, Adapter(encoder, shape, zero), TEXTS, 4).last
    np.testing.assert_allclose(found, encode(encoder, None, TEXTS, 4).last, atol=1e-6)


def test_the_encoder_itself_stays_as_it_was(encoder: Encoder, shape: AdapterShape, weights: dict[str, Tensor]) -> None:
    before = encoder.features(TEXTS, 4)
    encoded = encode(encoder, Adapter(encoder, shape, weights), TEXTS, 4)
    assert np.array_equal(encoded.features, before)
    assert np.array_equal(encoder.features(TEXTS, 4), before)
    assert encoded.adapted is not None
    assert np.array_equal(encoded.last, encoded.adapted)


def test_embeddings_are_the_adapted_part_to_the_last_bit(
    encoder: Encoder, shape: AdapterShape, weights: dict[str, Tensor]
) -> None:
    adapter = Adapter(encoder, shape, weights)
    found = adapter.embeddings(TEXTS, 4)
    assert np.array_equal(found, encode(encoder, adapter, TEXTS, 4).last)
    assert np.array_equal(adapter.embeddings([TEXTS[2]], 4)[0], found[2])
    assert adapter.embeddings([], 4).shape == (0, 32)


def test_an_adapter_brings_its_own_cut_along(
    encoder: Encoder, tiny_encoder: Path, shape: AdapterShape, weights: dict[str, Tensor]
) -> None:
    other = load_encoder(str(tiny_encoder), max_tokens=32, adapted_layers=1)
    adapter = Adapter(encoder, shape, weights)
    found, wanted = encode(other, adapter, TEXTS, 4), encode(encoder, adapter, TEXTS, 4)
    assert np.array_equal(found.last, wanted.last)
    assert np.array_equal(found.features, wanted.features)


def test_only_the_factors_of_its_targets_are_kept(
    encoder: Encoder, shape: AdapterShape, weights: dict[str, Tensor]
) -> None:
    adapter = Adapter(encoder, shape, {**weights, "head": torch.zeros(2, 32)})
    assert set(adapter.weights) == set(weights) == set(shape.factors())


@pytest.mark.parametrize("factor", ["A", "B"])
def test_a_factor_of_another_shape_is_refused(
    encoder: Encoder, shape: AdapterShape, weights: dict[str, Tensor], factor: str
) -> None:
    name = f"0.attention.self.query.{factor}"
    with pytest.raises(VersionDamaged, match=r"0\.attention\.self\.query.*not \(\(4, 32\), \(32, 4\)\)"):
        Adapter(encoder, shape, {**weights, name: weights[name][:3]})


def test_a_rank_that_its_factors_do_not_have_is_refused(
    encoder: Encoder, shape: AdapterShape, weights: dict[str, Tensor]
) -> None:
    with pytest.raises(VersionDamaged, match=r"not \(\(8, 32\), \(32, 8\)\)"):
        Adapter(encoder, dataclasses.replace(shape, rank=8), weights)


@pytest.mark.parametrize("missing", ["0.attention.self.query.A", "1.output.dense.B"])
def test_a_missing_factor_is_named(
    encoder: Encoder, shape: AdapterShape, weights: dict[str, Tensor], missing: str
) -> None:
    with pytest.raises(VersionDamaged, match=missing[:-2]):
        Adapter(encoder, shape, {name: value for name, value in weights.items() if name != missing})


def test_a_target_that_the_encoder_does_not_have_is_named(
    encoder: Encoder, shape: AdapterShape, weights: dict[str, Tensor]
) -> None:
    targets = (*shape.targets, "7.attention.self.query")
    with pytest.raises(VersionDamaged, match=r"7\.attention\.self\.query"):
        Adapter(encoder, dataclasses.replace(shape, targets=targets), weights)


def test_an_adapter_for_another_cut_is_refused(
    encoder: Encoder, shape: AdapterShape, weights: dict[str, Tensor]
) -> None:
    with pytest.raises(VersionDamaged, match=r"covers 1 layers.*cut for 2.*lora\.layers"):
        Adapter(encoder, dataclasses.replace(shape, layers=1), weights)


def test_a_shape_goes_through_json(shape: AdapterShape) -> None:
    assert AdapterShape.from_json(shape.to_json()) == shape
    assert shape.scale == 3.0


def test_what_changed_is_said_in_a_few_words() -> None:
    before = AdapterShape(8, 16, 2, ("0.query", "0.key", "1.query", "1.key"))
    assert before.changes_from(before) == ""
    assert AdapterShape(4, 8, 2, before.targets).changes_from(before) == "rank was 8 and is 4; alpha was 16 and is 8"
    assert AdapterShape(8, 16, 1, ("1.query", "1.key")).changes_from(before) == "layers was 2 and is 1"
    others = AdapterShape(8, 16, 2, ("0.query", "0.value"))
    assert others.changes_from(before) == "targets lost 3 maps and gained 1 (0.key, 0.value, 1.key …)"
