"""What depends on embeddings: neighbours, near-duplicates, representatives.

Embeddings are in the database; the FAISS index is made from them when it is first asked for, and dropped on change.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from perdure.errors import UsageError
from perdure.records import Float
from perdure_replay.herding import herding
from perdure_replay.store import Store

ROUNDING = 1e-6
"""Slack of similarities, so that the same text twice has a similarity of 1."""


def faiss_module() -> ModuleType:
    """FAISS.

    Raises:
        UsageError: it is not installed.
    """
    try:
        import faiss  # only the views need it
    except ImportError as error:
        raise UsageError("memory's views need FAISS: install perdure[cpu] or perdure[gpu]") from error
    module: ModuleType = faiss
    return module


@dataclass(frozen=True, slots=True)
class _Table:
    keys: tuple[str, ...]
    labels: tuple[str, ...]
    vectors: Float
    """n × d, each of length 1."""


class Views:
    """Similarities among living samples that have an embedding."""

    def __init__(self, store: Store, near_duplicate: float) -> None:
        self._store = store
        self._near_duplicate = near_duplicate
        self._table: _Table | None = None
        self._index: Any = None
        self._groups: tuple[frozenset[str], ...] | None = None

    def drop(self) -> None:
        """Forgets what was derived; it is made again when asked for."""
        self._table = None
        self._index = None
        self._groups = None

    def embedded(self, version: str) -> frozenset[str]:
        return frozenset(
            key
            for (key,) in self._store.rows(
                """
                SELECT p.sample FROM places p JOIN embeddings e ON e.place = p.key
                WHERE p.living = 1 AND e.version = ?
                """,
                (version,),
            )
        )

    def embed(self, version: str, keys: Sequence[str], vectors: Float) -> None:
        """Writes embeddings, inside the caller's transaction; keys that are no living sample's are passed over."""
        matrix = np.asarray(vectors, dtype=np.float32)
        if matrix.ndim != 2 or len(matrix) != len(keys):
            raise UsageError(f"{len(keys)} keys need as many vectors, but got the shape {matrix.shape}")
        if not np.isfinite(matrix).all():
            raise UsageError("an embedding is not finite: check the encoder")
        self._store.write("DELETE FROM embeddings WHERE version <> ?", (version,))
        size = self._store.value("SELECT length(vector) FROM embeddings LIMIT 1")
        if size is not None and len(keys) and size != 2 * matrix.shape[1]:
            raise UsageError(
                f"embeddings of {version} have {size // 2} dimensions, but got {matrix.shape[1]}: "
                "an encoder that changed needs a version of its own"
            )
        places: dict[str, bytes] = dict(
            self._store.rows_in("SELECT sample, key FROM places WHERE sample IN ({})", keys)
        )
        packed = _normalised(matrix).astype("<f2")
        self._store.write_all(
            "INSERT OR REPLACE INTO embeddings (place, version, vector) VALUES (?, ?, ?)",
            [
                (places[key], version, vector.tobytes())
                for key, vector in zip(keys, packed, strict=True)
                if key in places
            ],
        )

    def neighbours(self, vectors: Float, k: int) -> tuple[list[list[str]], list[list[float]]]:
        """Keys and cosine similarities of the k nearest, for each of n queries (n × d)."""
        queries = np.asarray(vectors, dtype=np.float32)
        if queries.ndim != 2 or k < 1:
            raise UsageError(f"neighbours need n × d vectors and k ≥ 1, but got shape {queries.shape} and k = {k}")
        table = self._load()
        if not table.keys or not len(queries):
            return [[] for _ in queries], [[] for _ in queries]
        if queries.shape[1] != table.vectors.shape[1]:
            raise UsageError(
                f"queries have {queries.shape[1]} dimensions, but memory's embeddings {table.vectors.shape[1]}: "
                "embed both with the same version"
            )
        faiss = faiss_module()
        if self._index is None:
            index = faiss.IndexFlatIP(table.vectors.shape[1])
            index.add(table.vectors)
            self._index = index
        found: Float
        similarities, found = self._index.search(_normalised(queries), min(k, len(table.keys)))
        keys = [[table.keys[int(column)] for column in row] for row in found]
        return keys, [[float(value) for value in row] for row in similarities]

    def near_duplicates(self) -> tuple[frozenset[str], ...]:
        """Connected groups of at least two keys of one label, in order of their smallest keys."""
        if self._groups is None:
            table = self._load()
            rows: dict[str, list[int]] = {}
            for row, label in enumerate(table.labels):
                rows.setdefault(label, []).append(row)
            groups = [
                frozenset(table.keys[members[row]] for row in group)
                for members in rows.values()
                if len(members) > 1
                for group in self._connected(table.vectors[members])
            ]
            self._groups = tuple(sorted(groups, key=min))
        return self._groups

    def _connected(self, vectors: Float) -> list[list[int]]:
        index = faiss_module().IndexFlatIP(vectors.shape[1])
        index.add(vectors)
        limits, _, found = index.range_search(vectors, self._near_duplicate - ROUNDING)
        seen: set[int] = set()
        groups = []
        for start in range(len(vectors)):
            if start in seen:
                continue
            seen.add(start)
            group, reach = [start], [start]
            while reach:
                row = reach.pop()
                new = {int(other) for other in found[limits[row] : limits[row + 1]]} - seen
                seen |= new
                group += new
                reach += new
            if len(group) > 1:
                groups.append(group)
        return groups

    def covering(self, keys: Sequence[str], k: int) -> tuple[str, ...]:
        """k of `keys` by herding; those without an embedding come last, in the order given."""
        table = self._load()
        rows = {key: row for row, key in enumerate(table.keys)}
        known = [key for key in keys if key in rows]
        picks = herding(table.vectors[[rows[key] for key in known]], k) if known else ()
        rest = (key for key in keys if key not in rows)
        return (*(known[pick] for pick in picks), *rest)[:k]

    def _load(self) -> _Table:
        if self._table is None:
            rows = self._store.rows(
                """
                SELECT p.sample, p.label, e.vector FROM places p JOIN embeddings e ON e.place = p.key
                WHERE p.living = 1 ORDER BY p.label, p.score, p.key
                """
            )
            raw = [np.frombuffer(vector, dtype="<f2").astype(np.float32) for *_, vector in rows]
            vectors = _normalised(np.stack(raw)) if raw else np.empty((0, 0), dtype=np.float32)
            self._table = _Table(tuple(row[0] for row in rows), tuple(row[1] for row in rows), vectors)
        return self._table


def _normalised(vectors: Float) -> Float:
    """Rows of length 1; a row of zeros stays."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.ascontiguousarray(vectors / np.maximum(lengths, np.finfo(np.float32).tiny), dtype=np.float32)
