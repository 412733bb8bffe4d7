"""Embeddings of the untouched encoder, made once for each text and kept on disk."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch

from contestants.backbone import Backbone, by_length, embed, embed_all_layers
from perdure.records import Float

logger = logging.getLogger(__name__)

BATCH = 64


class FrozenFeatures:
    """Embeddings by text, and what they cost.

    A contestant is charged the CPU time of the rows that it learns from, whoever had them made.

    Args:
        backbone: the encoder.
        folder: where they are kept between runs.
        all_layers: means of all hidden states, not of the last one alone.
    """

    def __init__(self, backbone: Backbone, folder: Path, *, all_layers: bool = False) -> None:
        self._backbone = backbone
        self._all_layers = all_layers
        self._folder = folder
        self._rows: dict[str, int] = {}
        self._vectors = np.zeros((0, self.dim), dtype=np.float32)
        self._seconds = np.zeros(0)
        self.charged = 0.0
        """CPU-seconds of all rows that were asked for by `learned`."""

    @property
    def dim(self) -> int:
        return self._backbone.dim * (self._backbone.depth + 1 if self._all_layers else 1)

    def prepare(self, texts: Iterable[str]) -> None:
        """Makes the embeddings of `texts`, or finds them in the folder."""
        wanted = sorted(set(texts) - set(self._rows))
        if not wanted:
            return
        named = json.dumps([self._backbone.name, self._backbone.max_tokens, self.dim, wanted], ensure_ascii=False)
        stem = self._folder / hashlib.blake2b(named.encode(), digest_size=8).hexdigest()
        vectors, note = stem.with_suffix(".npy"), stem.with_suffix(".json")
        if not (vectors.exists() and note.exists()):
            logger.info("embedding %d texts", len(wanted))
            began = time.process_time()
            made = self._embed(wanted)
            seconds = time.process_time() - began
            self._folder.mkdir(parents=True, exist_ok=True)
            np.save(vectors, made)
            # Written last: without it the vectors may be half there.
            note.write_text(json.dumps({"rows": len(wanted), "cpu_seconds": seconds}), encoding="utf-8")
        seconds_per_row = json.loads(note.read_text(encoding="utf-8"))["cpu_seconds"] / len(wanted)
        self._rows |= {text: row for row, text in enumerate(wanted, start=len(self._rows))}
        self._vectors = np.concatenate([self._vectors, np.load(vectors)])
        self._seconds = np.concatenate([self._seconds, np.full(len(wanted), seconds_per_row)])

    def learned(self, texts: Sequence[str]) -> Float:
        """n × d, of length 1, to learn from: charged."""
        self.charged += float(self._seconds[[self._rows[text] for text in texts]].sum())
        return self.of(texts)

    def of(self, texts: Sequence[str]) -> Float:
        """n × d, of length 1.

        Raises:
            KeyError: a text was not prepared.
        """
        found: Float = self._vectors[[self._rows[text] for text in texts]]
        return found

    def _embed(self, texts: Sequence[str]) -> Float:
        tokens = self._backbone.tokens(texts)
        made = np.zeros((len(texts), self.dim), dtype=np.float32)
        with torch.no_grad():
            for rows in by_length(tokens, BATCH):
                batch = self._backbone.batch([tokens[row] for row in rows])
                made[rows] = (embed_all_layers if self._all_layers else embed)(self._backbone.model, batch).numpy()
        return made
