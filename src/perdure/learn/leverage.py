"""Which rows a head was fitted to, and how much each of them pulled.

With it a version can be asked, at any later time, what it would have said of a row without that row: so all of memory,
and all rows of the turn that made the version, are evidence, for the champion as for its challenger.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from perdure.errors import VersionDamaged
from perdure.model.classifier import AnalyticClassifier
from perdure.model.head import Double, leave_one_out
from perdure.records import Float

LEVERAGE_FILE = "leverage.safetensors"


@dataclass(frozen=True, slots=True)
class Leverage:
    """Leverages by `sample_key`, all copies of a row together; a row that is not in here was not seen."""

    of: Mapping[str, float]
    ridge: float | None = None
    """The penalty λ of the solution whose leverages these are."""
    chosen: int = 0
    """Rows that the solution's statistics had when λ was last chosen."""

    def __call__(self, keys: Sequence[str]) -> Double:
        """n leverages; 0 for rows not seen."""
        return np.asarray([self.of.get(key, 0.0) for key in keys], dtype=np.float64)

    def files(self) -> dict[str, bytes]:
        keys = sorted(self.of)
        packed = np.frombuffer(bytes.fromhex("".join(keys)), dtype=np.uint8).reshape(len(keys), 16)
        values = np.asarray([self.of[key] for key in keys], dtype=np.float32)
        tensors: dict[str, NDArray[Any]] = {
            "keys": packed.copy(),
            "leverage": values,
            "chosen": np.asarray([self.chosen]),
        }
        if self.ridge is not None:
            tensors["ridge"] = np.asarray([self.ridge])
        return {LEVERAGE_FILE: save(tensors)}

    @classmethod
    def load(cls, folder: Path) -> Leverage:
        """The leverages of the version in `folder`.

        Raises:
            VersionDamaged: the file is missing or cannot be read.
        """
        try:
            tensors = load_file(folder / LEVERAGE_FILE)
            keys = (row.tobytes().hex() for row in tensors["keys"])
            of = {key: float(value) for key, value in zip(keys, tensors["leverage"], strict=True)}
            # Versions that were made before the penalty was kept have neither: it is chosen anew beside them.
            ridge = float(tensors["ridge"][0]) if "ridge" in tensors else None
            return cls(of, ridge, int(tensors["chosen"][0]) if "chosen" in tensors else 0)
        except (OSError, KeyError, IndexError, ValueError, SafetensorError) as error:
            raise VersionDamaged(f"leverages cannot be read from {folder}: {error}") from error


def unseen_scores(
    classifier: AnalyticClassifier, leverage: Leverage, features: Float, keys: Sequence[str], truth: Sequence[str]
) -> Float:
    """The head's scores of n rows as if it had seen none of them: n × C.

    Args:
        classifier: whose head.
        leverage: of that head.
        features: frozen features, n × inputs.
        keys: n sample keys.
        truth: n labels.
    """
    scores = np.empty((len(features), len(classifier.labels)), dtype=np.float32)
    for rows, grid in classifier.features.blocks(features):
        scores[rows] = grid @ classifier.weights
    return leave_one_out(scores, leverage(keys), truth, classifier.labels)
