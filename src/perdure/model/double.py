"""A classifier without a network: for tests of whatever stands around a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from perdure.model.base import Classifier, Scores
from perdure.records import Float


class KeywordClassifier(Classifier):
    """Answers the label whose keyword stands in the text; the first label when none does.

    A text lies where its keywords are: one dimension for each, and one for a text with none of them.
    """

    def __init__(self, version: str, keywords: Mapping[str, str], confidence: float = 0.9) -> None:
        if not keywords:
            raise ValueError("keywords are empty: give at least one label with its keyword")
        self.version = version
        self.labels = tuple(keywords)
        self._keywords = tuple(keywords.values())
        self._confidence = confidence

    def scores(self, texts: Sequence[str]) -> Scores:
        rest = (1 - self._confidence) / max(len(self.labels) - 1, 1)
        probabilities = np.full((len(texts), len(self.labels)), rest, dtype=np.float32)
        for row, text in enumerate(texts):
            found = (column for column, word in enumerate(self._keywords) if word in text.casefold())
            probabilities[row, next(found, 0)] = self._confidence
        return Scores(self.labels, probabilities / probabilities.sum(axis=1, keepdims=True))

    @property
    def space(self) -> str:
        return f"keywords {' '.join(self._keywords)}"

    def embeddings(self, texts: Sequence[str]) -> Float:
        found = np.asarray([[word in text.casefold() for word in self._keywords] for text in texts], dtype=np.float32)
        vectors = np.concatenate([found, 1 - found.max(axis=1, keepdims=True)], axis=1)
        units: Float = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return units
