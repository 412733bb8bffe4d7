"""The encoder that every contestant starts from: a plain transformers model with token-mean pooling."""

from __future__ import annotations

import copy
import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from perdure.errors import ModelNotFound
from perdure.model.encoder import PACKAGED


@dataclass(frozen=True, slots=True)
class Batch:
    """n padded token sequences."""

    ids: Tensor
    """n × T."""
    mask: Tensor
    """n × T, 1 where a token stands."""


class Backbone:
    """Weights and tokenizer; contestants train copies.

    Args:
        name: a folder, or a model that a Python package ships (as Perdure's own encoder is found).
        max_tokens: longer texts are cut.

    Raises:
        ModelNotFound: there is none.
    """

    def __init__(self, name: str, *, max_tokens: int = 128) -> None:
        from transformers import AutoModel, AutoTokenizer
        from transformers.utils import logging as transformers_logging

        transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
        transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        source = located(name)
        offline = os.environ.get("HF_HUB_OFFLINE", "1") != "0"
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(source, local_files_only=offline)
            self.model: Any = AutoModel.from_pretrained(
                source, local_files_only=offline, attn_implementation="sdpa"
            ).eval()
        except (OSError, ValueError) as error:
            raise ModelNotFound(
                f"no encoder {name!r}: give --model a folder with a transformers model, or install perdure[demo]"
            ) from error
        self.model.float().requires_grad_(False)
        self.name = name
        self.max_tokens = min(max_tokens, int(self.model.config.max_position_embeddings))
        self.dim = int(self.model.config.hidden_size)
        self.depth = int(self.model.config.num_hidden_layers)

    def copy(self) -> Any:
        """A copy of the model in eval mode (no dropout), nothing in it trainable."""
        return copy.deepcopy(self.model)

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, special tokens included."""
        if not texts:
            return []
        encoded: list[list[int]] = self._tokenizer(list(texts), truncation=True, max_length=self.max_tokens)[
            "input_ids"
        ]
        return encoded

    def batch(self, tokens: Sequence[Sequence[int]], length: int | None = None) -> Batch:
        """`tokens` as one batch, padded to the longest of them or to `length`."""
        longest = length or max(len(ids) for ids in tokens)
        ids = torch.full((len(tokens), longest), int(self._tokenizer.pad_token_id or 0), dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, sequence in enumerate(tokens):
            ids[row, : len(sequence)] = torch.tensor(sequence)
            mask[row, : len(sequence)] = 1
        return Batch(ids, mask)


def embed(model: Any, batch: Batch) -> Tensor:
    """n × d: the mean of the last layer over tokens, of length 1."""
    hidden: Tensor = model(input_ids=batch.ids, attention_mask=batch.mask).last_hidden_state.float()
    weight = batch.mask.unsqueeze(-1).float()
    return nn.functional.normalize((hidden * weight).sum(1) / weight.sum(1), dim=1)


def embed_all_layers(model: Any, batch: Batch) -> Tensor:
    """n × (layers + 1)·d: the means of all hidden states over tokens, all equally long, together of length 1."""
    states = model(input_ids=batch.ids, attention_mask=batch.mask, output_hidden_states=True).hidden_states
    weight = batch.mask.unsqueeze(-1).float()
    means = [nn.functional.normalize((state.float() * weight).sum(1) / weight.sum(1), dim=1) for state in states]
    joined: Tensor = torch.cat(means, dim=1) / len(means) ** 0.5
    return joined


def by_length(tokens: Sequence[Sequence[int]], batch: int) -> list[list[int]]:
    """Row numbers in batches of sequences of like length."""
    order = sorted(range(len(tokens)), key=lambda row: len(tokens[row]))
    return [order[start : start + batch] for start in range(0, len(order), batch)]


def located(name: str) -> str:
    """The folder of a model, or its name in the hub."""
    if Path(name).is_dir():
        return name
    package = PACKAGED.get(name)
    if package and (spec := importlib.util.find_spec(package)) and spec.origin:
        return str(Path(spec.origin).parent / "model")
    return name if "/" in name else f"sentence-transformers/{name}"
