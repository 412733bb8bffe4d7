"""The analytic head: ridge regression on random features, in closed form.

With features H (n × D) and one-hot labels Y (n × C), the statistics G = HᵀH and Q = HᵀY are all that the solution
W = (G + λI)⁻¹Q needs. They are sums over rows, so rows may come in any order, one at a time, and leave again.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save
from scipy.linalg import blas

from perdure.errors import StoreCorrupt, StoreFull
from perdure.records import Float

Double = NDArray[np.float64]

REFINEMENTS = 8
"""Times that a solution may be refined."""

FACTORED = 1e-2
"""Largest share of an error that a step of refinement may leave. It tells how near the factor is to the matrix, and
leverages, which nobody refines, are no nearer."""

REFINED = 1e-6
"""Change of a solution, as a share of its largest weight, that makes no difference in single precision."""

LEVERAGE_ROWS = 4096
"""Rows whose leverages are computed at once; each takes 8·D bytes meanwhile."""


class Statistics:
    """G and Q, exact sums of grid features (see `perdure.model.features.GRID`).

    Args:
        features: D.
    """

    def __init__(self, features: int) -> None:
        self.features = features
        self.gram: Double = np.zeros((features, features))
        """Of the symmetric G the triangle below the diagonal, and the diagonal; above it 0."""
        self.sums: dict[str, Double] = {}
        """For each label the sum of its rows' features: a column of Q."""
        self.counts: dict[str, int] = {}

    @property
    def rows(self) -> int:
        return sum(self.counts.values())

    def update(self, features: Float, labels: Sequence[str], signs: Sequence[int]) -> None:
        """Adds (sign +1) or takes out (−1) n rows.

        Args:
            features: n × D, as `RandomFeatures` makes them with fixed shapes.
            labels: n labels.
            signs: n times +1 or −1.
        """
        exact = features.astype(np.float64)
        sign = np.asarray(signs, dtype=np.float64)
        for value in (1.0, -1.0):
            part = exact[sign == value]
            if len(part):
                # In place, one triangle: half the work of a matrix product, and no second matrix of that size. What
                # is the upper one for BLAS, which counts by columns, is the lower one here.
                blas.dsyrk(value, part.T, beta=1.0, c=self.gram.T, overwrite_c=1)
        rows: dict[str, list[int]] = {}
        for row, label in enumerate(labels):
            rows.setdefault(label, []).append(row)
        for label, mine in rows.items():
            total = self.sums.get(label, np.zeros(self.features)) + sign[mine] @ exact[mine]
            count = self.counts.get(label, 0) + int(sign[mine].sum())
            self.sums[label], self.counts[label] = total, count
            if count == 0 and not total.any():
                del self.sums[label], self.counts[label]

    def add(self, other: Statistics) -> None:
        """Adds the sums of other rows; exact, so that the order of additions does not matter.

        Raises:
            ValueError: `other` has another number of features.
        """
        if other.features != self.features:
            raise ValueError(f"statistics of {other.features} features cannot be added to those of {self.features}")
        self.gram += other.gram
        for label, part in other.sums.items():
            total = self.sums.get(label, np.zeros(self.features)) + part
            count = self.counts.get(label, 0) + other.counts[label]
            self.sums[label], self.counts[label] = total, count
            if count == 0 and not total.any():
                del self.sums[label], self.counts[label]

    def save(self, path: Path) -> None:
        """Writes the statistics to `path`, whole or not at all; the triangle of G row by row.

        Raises:
            StoreFull: they cannot be written.
        """
        labels = sorted(self.sums)
        tensors: dict[str, NDArray[Any]] = {
            "gram": np.concatenate([self.gram[row, : row + 1] for row in range(self.features)]),
            "sums": np.stack([self.sums[label] for label in labels]) if labels else np.zeros((0, self.features)),
            "counts": np.asarray([self.counts[label] for label in labels], dtype=np.int64),
            # Labels may hold any character, so none can stand between them.
            "labels": np.frombuffer(json.dumps(labels).encode("ascii"), dtype=np.uint8).copy(),
        }
        partial = path.with_name(f"{path.name}.partial")
        try:
            with partial.open("wb") as file:
                file.write(save(tensors))
                file.flush()
                # Memory points to this file next; after a power cut the pointer must not outlive the bytes.
                os.fsync(file.fileno())
            partial.replace(path)
        except OSError as error:
            # Half of it would take the room that is missing.
            partial.unlink(missing_ok=True)
            raise StoreFull(
                f"the head's statistics {path} cannot be written ({error.strerror or error}): free some space and make "
                "the folder writable; what was learned before is whole, and the next turn goes on from there"
            ) from error

    @classmethod
    def load(cls, path: Path) -> Statistics:
        """The statistics in `path`.

        Raises:
            StoreCorrupt: the file is missing or not whole.
        """
        try:
            tensors = load_file(path)
            sums, counts = tensors["sums"], tensors["counts"]
            statistics = cls(sums.shape[1])
            triangle = np.split(tensors["gram"], np.cumsum(np.arange(1, statistics.features)))
            for row, part in enumerate(triangle):
                statistics.gram[row, : row + 1] = part
            for label, total, count in zip(json.loads(tensors["labels"].tobytes()), sums, counts, strict=True):
                statistics.sums[label], statistics.counts[label] = total.copy(), int(count)
        except (OSError, ValueError, KeyError, IndexError, SafetensorError) as error:
            raise StoreCorrupt(
                f"cannot read the head's statistics {path}: {error}; rebuild them from memory"
            ) from error
        return statistics


@dataclass(frozen=True, slots=True)
class Solution:
    """W, and the Cholesky factor that leverages come from."""

    labels: tuple[str, ...]
    weights: Float
    """D × C, for features as `RandomFeatures` makes them (the scale is inside)."""
    ridge: float
    _factor: torch.Tensor
    _scale: float

    def scores(self, features: Float) -> Float:
        """n × C."""
        return (features @ self.weights).astype(np.float32)

    def leverage(self, features: Float) -> Double:
        """hᵢ of n rows, to some four digits: in single precision they cost half."""
        factor = self._factor.float()
        result = np.empty(len(features))
        for start in range(0, len(features), LEVERAGE_ROWS):
            part = torch.from_numpy(features[start : start + LEVERAGE_ROWS].T * np.float32(self._scale))
            solved = torch.linalg.solve_triangular(factor, part, upper=False)
            result[start : start + LEVERAGE_ROWS] = (solved**2).sum(0).numpy()
        return result


def leave_one_out(scores: Float, leverage: Double, truth: Sequence[str], labels: Sequence[str]) -> Float:
    """Scores of n rows that a solution was fitted to, each as if it had not been: n × C.

    ŷ₋ᵢ = (ŷᵢ − hᵢyᵢ)/(1 − hᵢ) with the leverage hᵢ = φᵢᵀ(G + λI)⁻¹φᵢ (Allen's PRESS, 1974). A row with leverage 0 was
    not fitted to: its scores stay as they are. With m times the leverage it is left out with all its m copies.

    Args:
        scores: n × C.
        leverage: n numbers in [0, 1).
        truth: n labels.
        labels: C labels.
    """
    weight = leverage[:, None]
    fitted = (scores - weight * _one_hot(truth, labels)) / np.maximum(1.0 - weight, 1e-3)
    return fitted.astype(np.float32)


def _one_hot(truth: Sequence[str], labels: Sequence[str]) -> Double:
    column: Mapping[str, int] = {label: index for index, label in enumerate(labels)}
    target = np.zeros((len(truth), len(labels)))
    for row, label in enumerate(truth):
        if label in column:
            target[row, column[label]] = 1.0
    return target


def solve(statistics: Statistics, labels: Sequence[str], ridge: float) -> Solution:
    """The ridge solution for `labels`; rows of other labels count as belonging to none of them.

    Args:
        statistics: G and Q.
        labels: C labels, all of which have rows.
        ridge: λ, for features of expected squared length 1.
    """
    scale = float(np.sqrt(2.0 / statistics.features))
    targets = np.stack([statistics.sums[label] for label in labels], axis=1) * scale
    factor = _shifted(statistics.gram, scale**2, ridge, torch.float32)
    failed = torch.empty((), dtype=torch.int32)
    # In place, as each copy is a quarter of a gigabyte at D = 8192, or a half. Only the lower triangle is read; that is
    # the upper one for LAPACK, which counts by columns.
    torch.linalg.cholesky_ex(factor.mT, upper=True, out=(factor.mT, failed))
    weights = None if failed else _refined(factor, statistics.gram, scale**2, ridge, targets)
    if weights is None:
        del factor
        factor = _shifted(statistics.gram, scale**2, ridge, torch.float64)
        torch.linalg.cholesky(factor.mT, upper=True, out=factor.mT)
        weights = torch.cholesky_solve(torch.from_numpy(targets), factor.mT, upper=True).numpy()
    return Solution(tuple(labels), (weights * scale).astype(np.float32), ridge, factor, scale)


def _shifted(gram: Double, scale: float, ridge: float, precision: torch.dtype) -> torch.Tensor:
    """scale·G + λI."""
    matrix = torch.from_numpy(gram).to(precision, copy=True).mul_(scale)
    matrix.diagonal().add_(ridge)
    return matrix


def _refined(factor: torch.Tensor, gram: Double, scale: float, ridge: float, targets: Double) -> Double | None:
    """(scale·G + λI)⁻¹ times `targets` (D × C) by a factor in single precision, which costs half the time and memory.

    What is left of the targets, counted in double precision, is solved for again until that changes nothing more that
    single precision shows; None where it does not come to that, as the matrix is too near to singular.
    (Langou et al., "Exploiting the performance of 32 bit floating point arithmetic in obtaining 64 bit accuracy",
    SC 2006.)
    """
    weights, left, before = np.zeros_like(targets), targets, math.inf
    for _ in range(REFINEMENTS):
        change = torch.cholesky_solve(torch.from_numpy(left).float(), factor.mT, upper=True).numpy()
        weights += change
        size = float(np.abs(change).max())
        if before < math.inf:
            if size > FACTORED * before:
                return None
            # Changes fall by about the same factor each time: the next need not be made to know how small it is.
            if size**2 <= before * REFINED * np.abs(weights).max():
                return weights
        before = size
        # What is the lower triangle here is the upper one for BLAS, which counts by columns.
        left = targets - blas.dsymm(scale, gram.T, weights) - ridge * weights
    return None


def choose_ridge(
    statistics: Statistics,
    labels: Sequence[str],
    features: Float,
    truth: Sequence[str],
    ridges: Sequence[float],
    *,
    copies: Double | None = None,
    start: float | None = None,
    upwards: bool = False,
) -> Solution:
    """The solution whose leave-one-out scores on n known rows have the least squared error, found by walking downhill.

    Each step costs D³/3 multiplications, and the error has one valley in λ. Without a start the walk begins in the
    middle and may go either way. From a start it goes one way only, and ends at once where that way leads uphill: a
    head that is solved often comes to the valley all the same, if the ways take turns.

    Args:
        statistics: G and Q.
        labels: C labels, all of which have rows.
        features: n × D, rows that are in the statistics.
        truth: their labels.
        ridges: penalties to choose from, in order; without rows the one begun with is taken.
        copies: how often the statistics hold each of the rows; all of them are left out. By default once.
        start: the penalty that was best before; the walk begins at the one nearest to it.
        upwards: from a start, walk towards the end of `ridges`, not the beginning.
    """
    place = len(ridges) // 2
    if start is not None:
        place = min(range(len(ridges)), key=lambda index: abs(np.log(ridges[index] / start)))
    solution = solve(statistics, labels, ridges[place])
    if len(ridges) == 1 or not len(truth):
        return solution
    target = _one_hot(truth, labels)

    def error(candidate: Solution) -> float:
        leverage = candidate.leverage(features) * (1.0 if copies is None else copies)
        unseen = leave_one_out(candidate.scores(features), leverage, truth, labels)
        return float(((unseen - target) ** 2).mean())

    least = error(solution)
    for step in (-1, 1) if start is None else (1 if upwards else -1,):
        moved = False
        while 0 <= place + step < len(ridges):
            candidate = solve(statistics, labels, ridges[place + step])
            if (found := error(candidate)) >= least:
                break
            place, solution, least, moved = place + step, candidate, found, True
        if moved:
            break
    return solution
