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
"""Rows that are projected at once: few enough for the cache."""

MANY = 16 * BLOCK
"""Rows whose features are held at once where there may be any number of them."""

EXACT = 24
"""Whole numbers of so many bits are exact in float32."""

KIND = "orthogonal-exact"
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

    A row's features are the same to the last bit whatever stands beside it. Before each transform coordinates are
    rounded to whole numbers that are small enough for all sums of them to be exact in float32: then it does not matter
    in what order a matrix product adds, which libraries choose by the place of a row and by the processor. Of vectors
    of length 1 no sum in round r, from 0, is beyond ‖x‖₁ ≤ p^((r+1)/2).

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
        signs = (1.0 - 2.0 * bits.astype(np.float32)).reshape(blocks, ROUNDS, self._width)
        # Units in 1 at the beginning of each round, the largest powers of 2 with which twice ‖x‖₁ is exact: that leaves
        # room for vectors that are rounded to a little more than 1.
        units = 2.0 ** np.floor(EXACT - 1 - power * np.arange(1, ROUNDS + 1) / 2)
        self._flips = signs * (units / np.concatenate([[1.0], units[:-1]])).astype(np.float32)[:, None]
        # H is the Kronecker product of two smaller ones, so that a transform is two small matrix products.
        self._halves = _hadamard(power // 2), _hadamard(power - power // 2)
        self._factor = np.float32(1.0 / (bandwidth * self._width * units[-1]))

    @property
    def scale(self) -> float:
        """Factor by which features are multiplied to have a squared length of 1."""
        return float(np.sqrt(2.0 / self.features))

    def __call__(self, vectors: Float) -> Float:
        """Features of n × `inputs` vectors: n × D, each a multiple of 1/GRID in [−1, 1], not yet scaled.

        Args:
            vectors: n × `inputs`, each of length 1 or less. (Longer ones have features as well, but those may depend on
                their company by a multiple.)
        """
        result = np.empty((len(vectors), self.features), dtype=np.float32)
        for start in range(0, len(vectors), BLOCK):
            part = vectors[start : start + BLOCK]
            padded = np.zeros((len(part), self._width), dtype=np.float32)
            padded[:, : self.inputs] = part
            result[start : start + len(part)] = self._on_grid(padded)
        return result

    def blocks(self, vectors: Float) -> Iterator[tuple[slice, Float]]:
        """Features of n vectors, `MANY` rows at a time with their places: those of all would take 4·D·n bytes."""
        for start in range(0, len(vectors), MANY):
            rows = slice(start, min(start + MANY, len(vectors)))
            yield rows, self(vectors[rows])

    def _on_grid(self, padded: Float) -> Float:
        half = self.features // 2
        angles = np.concatenate([self._project(padded, flips) for flips in self._flips], axis=1)[:, :half]
        angles *= self._factor
        result = np.concatenate([np.cos(angles), np.sin(angles)], axis=1)
        result *= np.float32(GRID)
        np.rint(result, out=result)
        result /= np.float32(GRID)
        return result

    def _project(self, padded: Float, flips: Float) -> Float:
        """H D₃ H D₂ H D₁ x of each row, in units of the last round, coordinates in an order that does not matter."""
        rows = len(padded)
        for flip in flips:
            whole = padded * flip
            np.rint(whole, out=whole)
            padded = _transformed(whole, *self._halves).reshape(rows, self._width)
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
