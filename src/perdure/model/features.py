"""Random Fourier features on an exact grid."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from perdure.records import Float

GRID = 2048.0
"""Features are whole multiples of 1/GRID. Their products are then multiples of 2⁻²², so sums of up to 2³¹ of them are
exact in float64: the head's statistics do not depend on the order of rows, and what was added can be taken out to the
last bit."""

BLOCK = 256
"""Rows of the blocks in which features are computed where they must not depend on their company."""

MANY = 16 * BLOCK
"""Rows whose features are held at once where there may be any number of them."""

KIND = "orthogonal"
"""Names how the projection is drawn: weights and sums that were made with another kind are worth nothing here."""

ROUNDS = 3
"""Sign flips and Hadamard transforms in one projection."""

LEAST_WIDTH = 256
"""Fewer coordinates would mix too few signs for their sums to be nearly normal."""


class RandomFeatures:
    """φ(x) = [cos Ωx, sin Ωx], whose inner products (times 2/D) approximate a Gaussian kernel.

    Rahimi and Recht, "Random Features for Large-Scale Kernel Machines", NIPS 2007. Ω is a structured orthogonal matrix,
    Ω = (√p/σ)·H D₃ H D₂ H D₁ with Hadamard matrices H of p columns and random signs D (Yu et al., "Orthogonal Random
    Features", NIPS 2016): closer to the kernel than independent rows, and computed in O(p·√p) from 3·p signs where a
    dense Ω would have to be read from memory whole for every text. Where D/2 is more than p there are several such Ω.
    The signs follow from the seed alone: Philox's raw stream is fixed for all versions of NumPy (NEP 19).

    Args:
        inputs: length of x.
        features: D, even.
        bandwidth: length scale σ of the kernel.
        seed: names the projection.

    Raises:
        ValueError: D is odd.
    """

    def __init__(self, inputs: int, features: int, bandwidth: float, seed: int) -> None:
        if features % 2:
            raise ValueError(f"features come in pairs of cosine and sine, but {features} is odd")
        self.inputs = inputs
        self.features = features
        power = max(LEAST_WIDTH - 1, inputs - 1).bit_length()
        self._width = 2**power
        blocks = -(-features // (2 * self._width))
        raw = np.random.Philox(key=seed)
        bits = raw.random_raw(blocks * ROUNDS * self._width) >> np.uint64(63)
        self._signs = (1.0 - 2.0 * bits.astype(np.float32)).reshape(blocks, ROUNDS, self._width)
        # H is the Kronecker product of two smaller ones, so that a transform is two small matrix products.
        self._halves = _hadamard(power // 2), _hadamard(power - power // 2)
        self._factor = np.float32(1.0 / (bandwidth * self._width))

    @property
    def scale(self) -> float:
        """Factor by which features are multiplied to have a squared length of 1."""
        return float(np.sqrt(2.0 / self.features))

    def __call__(self, vectors: Float, *, fixed_shapes: bool = False) -> Float:
        """Features of n × `inputs` vectors: n × D, each a multiple of 1/GRID in [−1, 1], not yet scaled.

        Args:
            vectors: n × `inputs`.
            fixed_shapes: compute in blocks of `BLOCK` rows, the last one filled up, so that a row's features are the
                same to the last bit whatever stands beside it. (A matrix product rounds one row alone otherwise than
                the same row among others, and a feature between two multiples then falls to the other one.) Without it
                a few rows are faster.
        """
        result = np.empty((len(vectors), self.features), dtype=np.float32)
        for start in range(0, len(vectors), BLOCK):
            part = vectors[start : start + BLOCK]
            padded = np.zeros((BLOCK if fixed_shapes else len(part), self._width), dtype=np.float32)
            padded[: len(part), : self.inputs] = part
            result[start : start + len(part)] = self._on_grid(padded)[: len(part)]
        return result

    def blocks(self, vectors: Float, *, fixed_shapes: bool = False) -> Iterator[tuple[slice, Float]]:
        """Features of n vectors, `MANY` rows at a time with their places: those of all would take 4·D·n bytes."""
        for start in range(0, len(vectors), MANY):
            rows = slice(start, min(start + MANY, len(vectors)))
            yield rows, self(vectors[rows], fixed_shapes=fixed_shapes)

    def _on_grid(self, padded: Float) -> Float:
        half = self.features // 2
        angles = np.concatenate([self._project(padded, signs) for signs in self._signs], axis=1)[:, :half]
        angles *= self._factor
        result = np.concatenate([np.cos(angles), np.sin(angles)], axis=1)
        result *= np.float32(GRID)
        np.rint(result, out=result)
        result /= np.float32(GRID)
        return result

    def _project(self, padded: Float, signs: Float) -> Float:
        """H D₃ H D₂ H D₁ x of each row, its coordinates in an order that does not matter."""
        rows = len(padded)
        for flips in signs:
            padded = _transformed(padded * flips, *self._halves).reshape(rows, self._width)
        return padded


def _transformed(rows: Float, left: Float, right: Float) -> Float:
    """(A ⊗ B)x of each row, transposed: n × ab gives n × b × a."""
    inner = (rows.reshape(-1, len(right)) @ right).reshape(len(rows), len(left), len(right))
    turned = np.ascontiguousarray(inner.transpose(0, 2, 1))
    result: Float = turned.reshape(-1, len(left)) @ left
    return result


def _hadamard(power: int) -> NDArray[np.float32]:
    """Sylvester's matrix of 2^power rows, with entries ±1."""
    matrix = np.ones((1, 1), dtype=np.float32)
    for _ in range(power):
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix
