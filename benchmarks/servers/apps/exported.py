"""The exported model, run by ONNX Runtime."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

MAX_TOKENS = 512


class Exported:
    """Texts in, labels and their probabilities out.

    Args:
        folder: where `servers.export` has put the model.
        threads: for one call.
    """

    def __init__(self, folder: Path, threads: int) -> None:
        self._labels: list[str] = json.loads((folder / "labels.json").read_text(encoding="utf-8"))
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.enable_truncation(MAX_TOKENS)
        self._tokenizer.enable_padding()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self._session = onnxruntime.InferenceSession(
            str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"]
        )

    def __call__(self, texts: Sequence[str]) -> list[tuple[str, float]]:
        """The most probable label of each text, and its probability."""
        encoded = self._tokenizer.encode_batch_fast(list(texts))
        ids = np.asarray([one.ids for one in encoded], dtype=np.int64)
        mask = np.asarray([one.attention_mask for one in encoded], dtype=np.int64)
        (probabilities,) = self._session.run(["probabilities"], {"input_ids": ids, "attention_mask": mask})
        best = probabilities.argmax(axis=1)
        return [(self._labels[column], float(row[column])) for row, column in zip(probabilities, best, strict=True)]
