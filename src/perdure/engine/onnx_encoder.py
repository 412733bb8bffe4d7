"""The encoder and an adapter's layers, run by ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from tokenizers import Tokenizer

from perdure.engine.grouping import groups
from perdure.engine.kept import Kept
from perdure.errors import VersionDamaged
from perdure.model.excerpt import Excerpts
from perdure.model.layout import ADAPTER_GRAPH, ENCODER_GRAPH, TOKENIZER
from perdure.records import Float, whole_characters

ERRORS_ONLY = 3
"""ONNX Runtime's level of logging."""

SLOWER = ["SkipLayerNormFusion"]
"""Fusions that cost more than they save: this one's kernel is slower than what it stands for (release 1.32)."""

LEAST_LENGTH = 2
"""The graphs take no sequence of one token."""


@dataclass(frozen=True, slots=True)
class Vectors:
    """What the encoder says of n texts."""

    features: Float
    """Frozen features, n × inputs."""
    adapted: Float | None
    """Adapted embeddings, n × d; None without an adapter."""


class OnnxEncoder:
    """Texts to vectors, in batches of texts of similar length.

    Args:
        folder: has `encoder.onnx`, `tokenizer.json` and, with an adapter, `adapter.onnx`.
        adapted: there is an adapter.
        max_tokens: longer texts are cut in the middle.
        pad: token id that fills shorter rows.
        batch: texts in one pass.
        threads: of ONNX Runtime in one pass; 0 for as many as there are cores.

    Raises:
        VersionDamaged: a file cannot be read.
    """

    def __init__(self, folder: Path, *, adapted: bool, max_tokens: int, pad: int, batch: int, threads: int) -> None:
        try:
            self._tokenizer = _tokenizers.of(folder / TOKENIZER)
            self._frozen = _sessions.of(folder / ENCODER_GRAPH, threads)
            self._adapted = _sessions.of(folder / ADAPTER_GRAPH, threads) if adapted else None
        except OSError as error:
            raise VersionDamaged(f"{error.filename} cannot be read: {error.strerror or error}") from error
        self._excerpts = Excerpts(partial(_ids, self._tokenizer.value), self._tokenizer.value, max_tokens)
        self._pad = pad
        self._batch = batch

    @property
    def dim(self) -> int:
        """Dimensions d of one layer's states."""
        (hidden,) = (output for output in self._frozen.value.get_outputs() if output.name == "hidden")
        return int(hidden.shape[-1])

    def __call__(self, texts: Sequence[str]) -> Vectors:
        """Vectors of n texts, at least one."""
        tokens = self._excerpts([whole_characters(text) for text in texts])
        features: Float | None = None
        adapted: Float | None = None
        for rows in groups([len(ids) for ids in tokens], self._batch):
            part = self._run([tokens[row] for row in rows])
            if features is None:
                features = np.empty((len(texts), part.features.shape[1]), dtype=np.float32)
            features[rows] = part.features
            if part.adapted is not None:
                if adapted is None:
                    adapted = np.empty((len(texts), part.adapted.shape[1]), dtype=np.float32)
                adapted[rows] = part.adapted
        assert features is not None
        return Vectors(features, adapted)

    def _run(self, tokens: Sequence[Sequence[int]]) -> Vectors:
        length = max(LEAST_LENGTH, *(len(ids) for ids in tokens))
        ids = np.full((len(tokens), length), self._pad, dtype=np.int64)
        mask = np.zeros((len(tokens), length), dtype=np.int64)
        for row, sequence in enumerate(tokens):
            ids[row, : len(sequence)] = sequence
            mask[row, : len(sequence)] = 1
        inputs: dict[str, NDArray[Any]] = {"input_ids": ids, "attention_mask": mask}
        if self._adapted is None:
            (features,) = self._frozen.value.run(["features"], inputs)
            return Vectors(features, None)
        features, hidden = self._frozen.value.run(["features", "hidden"], inputs)
        (embedding,) = self._adapted.value.run(["embedding"], {"hidden": hidden, "attention_mask": mask})
        return Vectors(features, embedding)


def _ids(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    return [one.ids for one in tokenizer.encode_batch_fast(texts)]


def _tokenizer(content: bytes, file: Path) -> Tokenizer:
    try:
        made: Tokenizer = Tokenizer.from_buffer(content)
    except Exception as error:
        raise VersionDamaged(f"{file} is no tokenizer: {error}") from error
    made.no_truncation()
    made.no_padding()
    return made


def _session(content: bytes, file: Path, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = ERRORS_ONLY
    # Threads that spin while they wait would take the cores from whatever else answers requests.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(
            content, options, providers=["CPUExecutionProvider"], disabled_optimizers=SLOWER
        )
    except Exception as error:
        raise VersionDamaged(f"{file} is no graph that can be run: {error}") from error


_tokenizers = Kept(_tokenizer)
_sessions = Kept(_session)
