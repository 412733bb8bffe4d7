from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from perdure.model.encoder import Encoder
from perdure.model.trunk_cache import TrunkCache

SIZES = (9, 3, 1, 12, 5, 5, 2, 7, 4)
ARCHITECTURES = ("bert", "distilbert", "roberta", "mpnet")


def tokens(sizes: tuple[int, ...] = SIZES) -> list[list[int]]:
    rng = np.random.default_rng(6)
    return [[int(one) for one in rng.integers(5, 60, size)] for size in sizes]


def of_architecture(kind: str) -> Encoder:
    """A tiny encoder with random weights, cut below its last two layers."""
    from transformers import (
        BertConfig,
        BertModel,
        DistilBertConfig,
        DistilBertModel,
        MPNetConfig,
        MPNetModel,
        RobertaConfig,
        RobertaModel,
    )

    sizes: dict[str, Any] = {
        "vocab_size": 60,
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 40,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(8)
        if kind == "bert":
            model: Any = BertModel(BertConfig(**sizes))
        elif kind == "roberta":
            model = RobertaModel(RobertaConfig(**sizes))
        elif kind == "mpnet":
            model = MPNetModel(MPNetConfig(**sizes))
        else:
            model = DistilBertModel(
                DistilBertConfig(
                    vocab_size=60, dim=32, n_layers=3, n_heads=2, hidden_dim=64, max_position_embeddings=40
                )
            )
    pad = int(model.config.pad_token_id)
    tokenizer = SimpleNamespace(pad_token_id=pad, model_max_length=32)
    return Encoder(model.eval(), tokenizer, name=kind, fingerprint=kind, max_tokens=32, adapted_layers=2)


def alone(encoder: Encoder, sequence: list[int]) -> Tensor:
    """The embedding of one text without any padding, from the model as a whole."""
    with torch.no_grad():
        return encoder.trunk([sequence], length=len(sequence)).embed(encoder.top)[0]


@pytest.mark.parametrize("kind", ARCHITECTURES)
@pytest.mark.parametrize("limit", [2**20, 4 * 32 * 16, 0])
def test_batches_from_the_cache_are_those_of_the_whole_encoder(kind: str, limit: int) -> None:
    encoder = of_architecture(kind)
    cache = TrunkCache(encoder, tokens(), limit=limit)
    assert cache.rows == {2**20: 9, 4 * 32 * 16: 5, 0: 0}[limit]
    assert cache.nbytes <= limit + 4 * 32
    for rows in ([3, 0, 2], [7, 4, 5, 1, 6, 8], [2], [0, 0, 3]):
        cut = cache.batch(rows)
        longest = max(SIZES[row] for row in rows)
        assert cut.hidden.shape == (len(rows), longest, 32)
        assert cut.mask.sum(dim=1).tolist() == [SIZES[row] for row in rows]
        if cache.rows == len(SIZES):
            assert not cut.hidden[cut.mask == 0].any()
        with torch.no_grad():
            found = cut.embed(encoder.top)
        for row, embedding in zip(rows, found, strict=True):
            torch.testing.assert_close(embedding, alone(encoder, tokens()[row]), rtol=0, atol=2e-6)


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_the_encoder_runs_all_its_layers_again_afterwards(kind: str) -> None:
    encoder = of_architecture(kind)
    before = encoder.trunk(tokens())
    encoder.cut(tokens(), before.hidden)
    assert torch.equal(encoder.trunk(tokens()).hidden, before.hidden)
    assert before.means.shape == (9, 2, 32)


def test_the_encoder_is_whole_again_after_an_error() -> None:
    encoder = of_architecture("bert")
    before = encoder.trunk(tokens())
    with pytest.raises(IndexError):
        encoder.cut([[10_000]], torch.zeros(1, 1, 32))
    assert torch.equal(encoder.trunk(tokens()).hidden, before.hidden)


def test_only_rows_that_will_be_asked_for_are_computed() -> None:
    encoder = of_architecture("bert")
    cache = TrunkCache(encoder, tokens(), rows=[4, 1, 0])
    assert cache.rows == 3
    assert cache.nbytes == 4 * 32 * (5 + 3 + 9 + 1)
    with torch.no_grad():
        torch.testing.assert_close(
            cache.batch([3, 4]).embed(encoder.top)[0], alone(encoder, tokens()[3]), rtol=0, atol=2e-6
        )


def test_states_below_the_cut_come_in_bfloat16_where_that_is_wanted() -> None:
    encoder = of_architecture("bert")
    exact = TrunkCache(encoder, tokens()).batch([0, 3]).hidden
    rough = TrunkCache(encoder, tokens(), dtype=torch.bfloat16).batch([0, 3]).hidden
    assert rough.dtype == torch.float32
    assert 0 < float((rough - exact).norm() / exact.norm()) < 0.02


def test_no_gradient_flows_below_the_cut() -> None:
    cut = TrunkCache(of_architecture("bert"), tokens()).batch([0, 1])
    assert not cut.hidden.requires_grad


def test_an_encoder_on_its_device_is_itself_and_elsewhere_a_copy() -> None:
    encoder = of_architecture("bert")
    assert encoder.on(torch.device("cpu")) is encoder
    other = encoder.on(torch.device("meta"))
    assert (other.device.type, encoder.device.type) == ("meta", "cpu")
    assert all(parameter.device.type == "meta" for parameter in other.top.parameters())
    assert all(parameter.device.type == "cpu" for parameter in encoder.top.parameters())
    assert other.cut.__self__ is other
    assert other._whole[-1] is other._capture is not encoder._capture
    assert other._owner is not encoder._owner
    assert (other.dim, other.depth, other.fingerprint) == (encoder.dim, encoder.depth, encoder.fingerprint)
