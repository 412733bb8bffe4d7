"""What depends on embeddings: neighbours, near-duplicates, representatives.

Embeddings are in the database; the FAISS index is made from them when it is first asked for, and dropped on change. It
looks at every vector, so what it finds is exact; it holds them as the database does, in float16, which takes half the
memory of a flat index and half the time of a query.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perdure.config import Device
from perdure.errors import ExtraMissing, SettingError, UsageError
from perdure.records import Float
from perdure_replay.herding import herding
from perdure_replay.store import Store

QUERIES = 1000
"""Queries answered at once; more would only take more memory."""

COPIED = 65_536
"""Vectors copied to a GPU at once: in float32 they take twice the room."""

ROUNDING = 1e-6
"""Slack of similarities, so that the same text twice has a similarity of 1."""


def faiss_module() -> ModuleType:
    """FAISS.

    Raises:
        ExtraMissing: it is not installed.
    """
    try:
        import faiss  # only the views need it
    except ImportError as error:
        raise ExtraMissing("searching memory", "FAISS") from error
    module: ModuleType = faiss
    return module


def on_device(index: Any, device: Device) -> Any:
    """`index` itself, or a copy of it on a GPU, which is searched in its place; both hold float16.

    Raises:
        SettingError: a GPU is wanted, and FAISS finds none.
    """
    faiss = faiss_module()
    found = hasattr(faiss, "StandardGpuResources") and faiss.get_num_gpus() > 0
    if device == "cuda" and not found:
        raise SettingError(
            "setting device cannot be 'cuda': FAISS finds no GPU here. Set it to auto or cpu, or install perdure[gpu] "
            "and a driver"
        )
    if device == "cpu" or not found:
        return index
    config = faiss.GpuIndexFlatConfig()
    config.useFloat16 = True
    copy = faiss.GpuIndexFlatIP(faiss.StandardGpuResources(), index.d, config)
    for start in range(0, index.ntotal, COPIED):
        copy.add(index.reconstruct_n(start, min(COPIED, index.ntotal - start)))
    return copy


@dataclass(frozen=True, slots=True)
class _Table:
    keys: tuple[str, ...]
    rows: dict[str, list[int]]
    """Rows of each label."""
    index: Any
    """FAISS index of n vectors; None where there are none."""
    searched: Any
    """The same, where it is searched."""

    def vectors(self, rows: Sequence[int] | NDArray[np.int64]) -> Float:
        """Vectors of m rows, m × d, each of length 1."""
        return _normalised(self.index.reconstruct_batch(np.asarray(rows, dtype=np.int64)))


class Views:
    """Similarities among living samples that have an embedding."""

    def __init__(self, store: Store, near_duplicate: float, device: Device) -> None:
        self._store = store
        self._device = device
        self._near_duplicate = near_duplicate
        self._table: _Table | None = None
        self._groups: dict[str, tuple[frozenset[str], ...]] = {}

    def drop(self) -> None:
        """Forgets what was derived; it is made again when asked for."""
        self._table = None
        self._groups = {}

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

    def version(self) -> str | None:
        """What all embeddings were made by; None where there are none."""
        found = self._store.value("SELECT version FROM embeddings LIMIT 1")
        return None if found is None else str(found)

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
        if queries.shape[1] != table.index.d:
            raise UsageError(
                f"queries have {queries.shape[1]} dimensions, but memory's embeddings {table.index.d}: "
                "embed both with the same version"
            )
        keys: list[list[str]] = []
        similarities: list[list[float]] = []
        for start in range(0, len(queries), QUERIES):
            rows, cosines = _search(table, _normalised(queries[start : start + QUERIES]), min(k, len(table.keys)))
            keys += [[table.keys[row] for row in found] for found in rows.tolist()]
            similarities += cosines.tolist()
        return keys, similarities

    def near_duplicates(self) -> tuple[frozenset[str], ...]:
        """Connected groups of at least two keys of one label, in order of their smallest keys."""
        return tuple(sorted((group for label in self._load().rows for group in self._groups_of(label)), key=min))

    def weights(self, labels: Iterable[str]) -> dict[str, float]:
        """Of samples of `labels`, those that share their weight with near-duplicates: its part for each."""
        return {key: 1.0 / len(group) for label in labels for group in self._groups_of(label) for key in group}

    def _groups_of(self, label: str) -> tuple[frozenset[str], ...]:
        if label not in self._groups:
            table = self._load()
            rows = table.rows.get(label, [])
            self._groups[label] = (
                tuple(
                    frozenset(table.keys[rows[row]] for row in group) for group in self._connected(table.vectors(rows))
                )
                if len(rows) > 1
                else ()
            )
        return self._groups[label]

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

    def covering(self, label: str, keys: Sequence[str], k: int) -> tuple[str, ...]:
        """k of `keys`, all of `label`, by herding; those without an embedding come last, in the order given."""
        table = self._load()
        rows = {table.keys[row]: row for row in table.rows.get(label, [])}
        known = [key for key in keys if key in rows]
        picks = herding(table.vectors([rows[key] for key in known]), k) if known else ()
        rest = (key for key in keys if key not in rows)
        return (*(known[pick] for pick in picks), *rest)[:k]

    def _load(self) -> _Table:
        if self._table is None:
            keys: list[str] = []
            rows: dict[str, list[int]] = {}
            index: Any = None
            # In the order of the keys, which is that of both tables on disk.
            for found in self._store.each(
                """
                SELECT p.sample, p.label, e.vector FROM places p JOIN embeddings e ON e.place = p.key
                WHERE p.living = 1 ORDER BY p.key
                """
            ):
                for row, (_, label, _) in enumerate(found, start=len(keys)):
                    rows.setdefault(label, []).append(row)
                keys += [key for key, *_ in found]
                packed = np.frombuffer(b"".join(vector for *_, vector in found), dtype="<f2").reshape(len(found), -1)
                if index is None:
                    index = _empty_index(packed.shape[1])
                index.add(packed.astype(np.float32))
            searched = None if index is None else on_device(index, self._device)
            self._table = _Table(tuple(keys), rows, index, searched)
        return self._table


def _empty_index(dimensions: int) -> Any:
    faiss = faiss_module()
    return faiss.IndexScalarQuantizer(dimensions, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)


def _search(table: _Table, queries: Float, k: int) -> tuple[NDArray[np.int64], Float]:
    """Rows and cosines of the k nearest to each of n queries (n × d, of length 1), nearest first.

    What float16 has left of a vector is not quite of length 1: the cosines are taken anew.
    """
    _, rows = table.searched.search(queries, k)
    vectors = table.vectors(rows.ravel()).reshape(*rows.shape, -1)
    cosines = np.einsum("nkd,nd->nk", vectors, queries)
    order = np.argsort(-cosines, axis=1, kind="stable")
    return np.take_along_axis(rows, order, axis=1), np.take_along_axis(cosines, order, axis=1)


def _normalised(vectors: Float) -> Float:
    """Rows of length 1; a row of zeros stays."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.ascontiguousarray(vectors / np.maximum(lengths, np.finfo(np.float32).tiny), dtype=np.float32)
