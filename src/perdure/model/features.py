"""Random Fourier features on an exact grid."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

GRID = 2048.0
"""Features are whole multiples of 1/GRID. Their products are then multiples of 2⁻²², so sums of up to 2³¹ of them are
exact in float64: the head's statistics do not depend on the order of rows, and what was added can be taken out to the
last bit."""

BLOCK = 256
"""Rows of the blocks in which features are computed where they must not depend on their company."""


class RandomFeatures:
    """φ(x) = cos(Ωx + b), whose inner products (times 2/D) approximate a Gaussian kernel.

    Rahimi and Recht, "Random Features for Large-Scale Kernel Machines", NIPS 2007. The projection follows from the
    seed alone: Philox's raw stream is fixed for all versions of NumPy (NEP 19), its normal variates are not, so the
    Box-Muller transform stands here.

    Args:
        inputs: length of x.
        features: D.
        bandwidth: length scale of the kernel.
        seed: names the projection.
    """

    def __init__(self, inputs: int, features: int, bandwidth: float, seed: int) -> None:
        self.inputs = inputs
        self.features = features
        raw = np.random.Philox(key=seed)
        normal = _normal(raw, inputs * features).reshape(inputs, features)
        self._projection = (normal / bandwidth).astype(np.float32)
        self._phase = (2 * np.pi * _uniform(raw, features)).astype(np.float32)

    @property
    def scale(self) -> float:
        """Factor by which features are multiplied to have an expected squared length of 1."""
        return float(np.sqrt(2.0 / self.features))

    def __call__(self, vectors: NDArray[np.float32], *, fixed_shapes: bool = False) -> NDArray[np.float32]:
        """Features of n × `inputs` vectors: n × D, each a multiple of 1/GRID in [−1, 1], not yet scaled.

        Args:
            vectors: n × `inputs`.
            fixed_shapes: compute in blocks of `BLOCK` rows, the last one filled up, so that a row's features are the
                same to the last bit whatever stands beside it. (A matrix product rounds one row alone otherwise than
                the same row among others, and a feature between two multiples then falls to the other one.) Without it
                a few rows are faster.
        """
        vectors = vectors.astype(np.float32, copy=False)
        if not fixed_shapes:
            return self._on_grid(vectors)
        result = np.empty((len(vectors), self.features), dtype=np.float32)
        block = np.zeros((BLOCK, self.inputs), dtype=np.float32)
        for start in range(0, len(vectors), BLOCK):
            part = vectors[start : start + BLOCK]
            block[: len(part)] = part
            result[start : start + len(part)] = self._on_grid(block)[: len(part)]
        return result

    def _on_grid(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        angles = vectors @ self._projection + self._phase
        result: NDArray[np.float32] = (np.rint(np.cos(angles) * GRID) / GRID).astype(np.float32)
        return result


def _uniform(raw: np.random.Philox, count: int) -> NDArray[np.float64]:
    """Uniform on (0, 1), 53 bits each."""
    return ((raw.random_raw(count) >> np.uint64(11)).astype(np.float64) + 0.5) / 2.0**53


def _normal(raw: np.random.Philox, count: int) -> NDArray[np.float64]:
    half = (count + 1) // 2
    radius = np.sqrt(-2.0 * np.log(_uniform(raw, half)))
    angle = 2.0 * np.pi * _uniform(raw, half)
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]
