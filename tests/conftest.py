"""What tests of several packages share: a clean environment, and an encoder small enough to train in a second."""

from __future__ import annotations

import os
import string
from pathlib import Path

import pytest

WORDS = """
refund order parcel late broken card pay invoice password login account close open change address phone email where is
my the a i want to please help can you not work does money back lost stolen limit raise delete update
""".split()


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
