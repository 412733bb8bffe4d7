"""FAISS alone, over the very vectors that Perdure's memory kept: no texts, no labels, no bound, no choice."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import faiss
import numpy as np

from memories.base import Answering
from memories.workload import DIMENSIONS, Page, Vectors

LINKS = 32
"""HNSW's M; its efConstruction, 40, is FAISS's default."""
SEARCH = 64
"""efSearch; with FAISS's default of 16 it misses more."""


class Bare(Answering):
    """An index, and a file of it."""

    def create(self) -> None:
        self._index = self.index()

    @abstractmethod
    def index(self) -> Any:
        """An empty one."""

    def take(self, prepared: Any) -> None:
        page: Page = prepared
        self._index.add(page.vectors)

    def save(self) -> int:
        faiss.write_index(self._index, str(self.folder / "index"))
        return int(self._index.ntotal)

    def open(self) -> None:
        self._index = faiss.read_index(str(self.folder / "index"))
        self._numbers = np.load(self.folder / "numbers.npy")

    def kept(self) -> Sequence[int]:
        found: list[int] = self._numbers.tolist()
        return found

    def neighbours(self, query: Vectors, k: int) -> Sequence[int]:
        _, rows = self._index.search(query, k)
        found: list[int] = self._numbers[rows[0]].tolist()
        return found


class Flat(Bare):
    """`IndexFlatIP`: looks at every vector, in float32."""

    def index(self) -> Any:
        return faiss.IndexFlatIP(DIMENSIONS)


class Half(Bare):
    """`IndexScalarQuantizer` with float16: looks at every vector. Perdure's own kind."""

    def index(self) -> Any:
        return faiss.IndexScalarQuantizer(DIMENSIONS, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)


class Graph(Bare):
    """`IndexHNSWFlat`: follows links, and may miss some."""

    def index(self) -> Any:
        index = faiss.IndexHNSWFlat(DIMENSIONS, LINKS, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efSearch = SEARCH
        return index
