"""Contestants that never touch the encoder: nearest class mean, streaming LDA, nearest neighbours, ridge."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve

from contestants.base import Context, Session
from contestants.buffers import ClassReservoirs
from perdure.records import Float

Array = NDArray[np.float64]


def softmax(scores: Array) -> Float:
    """Rows of n × C, each made to sum to 1."""
    raised = np.exp(scores - scores.max(axis=1, keepdims=True))
    result: Float = (raised / raised.sum(axis=1, keepdims=True)).astype(np.float32)
    return result


def normalised(vectors: Array) -> Array:
    """Rows of length 1."""
    result: Array = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return result


class Moments:
    """Number, mean and pooled within-class scatter of vectors, brought up to date block by block.

    Chan, Golub and LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances", 1979: exact,
    whatever the order.

    Args:
        dim: d.
        scatter: whether the scatter (d × d) is kept beside the means.
    """

    def __init__(self, dim: int, *, scatter: bool) -> None:
        self.labels: list[str] = []
        self.count = np.zeros(0)
        self.mean = np.zeros((0, dim))
        """C × d."""
        self.scatter = np.zeros((dim, dim)) if scatter else None
        """Σ over rows of (x − mean of its class)(x − mean of its class)ᵀ, or None."""

    def add(self, vectors: Array, labels: Sequence[str]) -> None:
        """Adds n vectors (n × d)."""
        fresh = [label for label in dict.fromkeys(labels) if label not in self.labels]
        self.labels += fresh
        self.count = np.concatenate([self.count, np.zeros(len(fresh))])
        self.mean = np.concatenate([self.mean, np.zeros((len(fresh), self.mean.shape[1]))])
        of = np.asarray([self.labels.index(label) for label in labels])
        for row in np.unique(of):
            block = vectors[of == row]
            centre, size, before = block.mean(axis=0), len(block), self.count[row]
            moved = centre - self.mean[row]
            if self.scatter is not None:
                apart = block - centre
                self.scatter += apart.T @ apart + np.outer(moved, moved) * (before * size / (before + size))
            self.mean[row] += moved * (size / (before + size))
            self.count[row] += size

    def bytes_kept(self) -> int:
        return self.count.nbytes + self.mean.nbytes + (self.scatter.nbytes if self.scatter is not None else 0)


class NearestClassMean:
    """The class whose mean has the greatest cosine; keeps no samples."""

    def __init__(self, context: Context) -> None:
        self._features = context.features
        self._scale = context.recipe.similarity_scale
        self._moments = Moments(context.features.dim, scatter=False)

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(self._moments.labels)

    def learn(self, session: Session) -> None:
        vectors = self._features.learned(session.rows.texts).astype(np.float64)
        self._moments.add(vectors, session.rows.labels)

    def probabilities(self, texts: Sequence[str]) -> Float:
        vectors = self._features.of(texts).astype(np.float64)
        return softmax(self._scale * vectors @ normalised(self._moments.mean).T)

    def kept(self) -> dict[str, int]:
        return {}

    def bytes_kept(self) -> int:
        return self._moments.bytes_kept()


class StreamingLda:
    """Class means and one shared covariance; keeps no samples.

    Hayes and Kanan, "Lifelong Machine Learning with Deep Streaming Linear Discriminant Analysis", CVPR Workshops 2020.
    Two things are done with more care than there: the covariance is the exact within-class one (theirs takes a class's
    first row for its distance from 0), and it shrinks towards its own mean variance, s·tr(Σ)/d·I, not towards I.
    """

    def __init__(self, context: Context) -> None:
        self._features = context.features
        self._shrinkage = context.recipe.shrinkage
        self._moments = Moments(context.features.dim, scatter=True)
        self._map = np.zeros((0, context.features.dim))
        self._bias = np.zeros(0)

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(self._moments.labels)

    def learn(self, session: Session) -> None:
        self._moments.add(self._features.learned(session.rows.texts).astype(np.float64), session.rows.labels)
        self._map, self._bias = linear_discriminant(self._moments, self._shrinkage)

    def probabilities(self, texts: Sequence[str]) -> Float:
        return softmax(self._features.of(texts).astype(np.float64) @ self._map.T + self._bias)

    def kept(self) -> dict[str, int]:
        return {}

    def bytes_kept(self) -> int:
        return self._moments.bytes_kept()


def linear_discriminant(moments: Moments, shrinkage: float) -> tuple[Array, Array]:
    """W (C × d) and b (C) of the linear discriminant with equal priors: W = ΜΣ⁻¹, b = −½·diag(WΜᵀ)."""
    assert moments.scatter is not None
    covariance = moments.scatter / moments.count.sum()
    dim = len(covariance)
    shrunk = (1 - shrinkage) * covariance + shrinkage * np.trace(covariance) / dim * np.eye(dim)
    weights: Array = np.linalg.solve(shrunk, moments.mean.T).T
    return weights, -0.5 * (weights * moments.mean).sum(axis=1)


class NearestNeighbours:
    """The k most similar vectors of a memory that is a uniform sample of each class; each votes with its cosine."""

    def __init__(self, context: Context) -> None:
        self._features = context.features
        self._neighbours = context.recipe.neighbours
        self._memory: ClassReservoirs[Float] = ClassReservoirs(context.memory, np.random.default_rng(context.seed))

    @property
    def labels(self) -> tuple[str, ...]:
        return self._memory.labels

    def learn(self, session: Session) -> None:
        vectors = self._features.learned(session.rows.texts)
        for vector, label in zip(vectors, session.rows.labels, strict=True):
            self._memory.offer(label, vector)

    def probabilities(self, texts: Sequence[str]) -> Float:
        labels, vectors = self._memory.items()
        column = {label: index for index, label in enumerate(self.labels)}
        return votes(
            self._features.of(texts),
            np.stack(vectors),
            np.asarray([column[label] for label in labels]),
            len(column),
            self._neighbours,
        )

    def kept(self) -> dict[str, int]:
        return self._memory.counts()

    def bytes_kept(self) -> int:
        labels, vectors = self._memory.items()
        return sum(vector.nbytes for vector in vectors) + sum(len(label.encode()) for label in labels)


def votes(queries: Float, vectors: Float, columns: NDArray[np.int_], classes: int, neighbours: int) -> Float:
    """n × C: the share of each class in the cosines of the k nearest of m vectors; a cosine below 0 counts as 0."""
    similarity = queries @ vectors.T
    nearest = np.argsort(-similarity, axis=1, kind="stable")[:, :neighbours]
    # A query that nothing resembles still needs an answer: its neighbours count alike.
    weight = np.maximum(np.take_along_axis(similarity, nearest, axis=1), 1e-6)
    shares = np.zeros((len(queries), classes), dtype=np.float32)
    for row in range(len(queries)):
        np.add.at(shares[row], columns[nearest[row]], weight[row])
    result: Float = shares / shares.sum(axis=1, keepdims=True)
    return result


class RandomFeaturesRidge:
    """Ridge regression on random Fourier features, in closed form: the same whatever the order; keeps no samples.

    Rahimi and Recht, "Random Features for Large-Scale Kernel Machines", NIPS 2007: h(x) = √(2/D)·cos(xΩ + φ) with Ω
    from a normal distribution of deviation 1/bandwidth. G = Σh·hᵀ and Q = Σh·yᵀ are all that is kept; W = (G + λI)⁻¹Q.

    Args:
        context: features and seed.
        size: D.
        bandwidth: length scale of the Gaussian kernel on the unit sphere that the features approximate.
        ridge: λ.
    """

    def __init__(self, context: Context, *, size: int, bandwidth: float, ridge: float) -> None:
        rng = np.random.default_rng(context.seed)
        self._features = context.features
        self._ridge, self._scale = ridge, context.recipe.ridge_scale
        self._projection = rng.normal(0, 1 / bandwidth, (context.features.dim, size))
        self._phase = rng.uniform(0, 2 * np.pi, size)
        self._gram = np.zeros((size, size))
        self._target = np.zeros((size, 0))
        self._labels: list[str] = []
        self._weights = np.zeros((size, 0))

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(self._labels)

    def learn(self, session: Session) -> None:
        labels = session.rows.labels
        fresh = [label for label in dict.fromkeys(labels) if label not in self._labels]
        self._labels += fresh
        self._target = np.concatenate([self._target, np.zeros((len(self._phase), len(fresh)))], axis=1)
        hidden = self.hidden(self._features.learned(session.rows.texts))
        self._gram += hidden.T @ hidden
        np.add.at(self._target.T, [self._labels.index(label) for label in labels], hidden)
        regularised = self._gram + self._ridge * np.eye(len(self._gram))
        self._weights = cho_solve(cho_factor(regularised, overwrite_a=True), self._target)

    def hidden(self, vectors: Float) -> Array:
        """n × D random features of n vectors."""
        angles = vectors.astype(np.float64) @ self._projection + self._phase
        result: Array = np.cos(angles) * np.sqrt(2 / len(self._phase))
        return result

    def scores(self, vectors: Float) -> Array:
        """n × C outputs of the regression."""
        result: Array = self.hidden(vectors) @ self._weights
        return result

    def probabilities(self, texts: Sequence[str]) -> Float:
        return softmax(self._scale * self.scores(self._features.of(texts)))

    def kept(self) -> dict[str, int]:
        return {}

    def bytes_kept(self) -> int:
        return self._gram.nbytes + self._target.nbytes
