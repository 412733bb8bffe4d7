from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from perdure.model.features import BLOCK, GRID, RandomFeatures


def unit_vectors(rows: int, inputs: int, seed: int = 0) -> NDArray[np.float32]:
    vectors = np.random.default_rng(seed).normal(size=(rows, inputs))
    unit: NDArray[np.float32] = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return unit


def test_features_are_multiples_of_the_grid_within_one() -> None:
    features = RandomFeatures(16, 128, 1.0, seed=3)(unit_vectors(50, 16))
    steps = features.astype(np.float64) * GRID
    assert features.dtype == np.float32
    assert np.array_equal(steps, np.rint(steps))
    assert np.abs(features).max() <= 1
    assert np.abs(features).max() > 0.99


def test_a_seed_names_the_projection_on_every_machine_and_numpy() -> None:
    features = RandomFeatures(3, 6, 0.5, seed=5)
    vectors = np.array([[1.0, 0.0, 0.0], [0.6, -0.8, 0.0]], dtype=np.float32)
    assert (features(vectors) * GRID).astype(int).tolist() == [
        [1794, 1443, 1020, -1682, -1384, 1166],
        [1971, -970, 206, 906, 1003, 507],
    ]


def test_another_seed_is_another_projection() -> None:
    vectors = unit_vectors(4, 8)
    assert not np.array_equal(RandomFeatures(8, 32, 1.0, seed=0)(vectors), RandomFeatures(8, 32, 1.0, seed=1)(vectors))


@pytest.mark.parametrize("bandwidth", [0.5, 1.0, 2.0])
def test_inner_products_approximate_the_gaussian_kernel(bandwidth: float) -> None:
    vectors = unit_vectors(30, 12)
    features = RandomFeatures(12, 8192, bandwidth, seed=1)
    scaled = features(vectors) * features.scale
    squared = ((vectors[:, None] - vectors[None]) ** 2).sum(axis=2)
    kernel = np.exp(-squared / (2 * bandwidth**2))
    # The standard deviation of an entry is at most √(1.5/8192) = 0.0135.
    assert np.abs(scaled @ scaled.T - kernel).max() < 0.06


def test_fixed_shapes_give_the_same_bits_alone_and_in_company() -> None:
    features = RandomFeatures(640, 2048, 1.0, seed=0)
    vectors = unit_vectors(BLOCK + 3, 640)
    together = features(vectors, fixed_shapes=True)
    for row in (0, 1, 17, BLOCK - 1, BLOCK, BLOCK + 2):
        assert np.array_equal(features(vectors[row : row + 1], fixed_shapes=True)[0], together[row])
    turned = features(np.ascontiguousarray(vectors[::-1]), fixed_shapes=True)
    assert np.array_equal(turned[::-1], together)


def test_without_fixed_shapes_features_differ_by_one_step_at_most() -> None:
    features = RandomFeatures(64, 256, 1.0, seed=0)
    vectors = unit_vectors(40, 64)
    difference = np.abs(features(vectors) - features(vectors, fixed_shapes=True))
    assert difference.max() <= 1 / GRID
    assert (difference > 0).mean() < 0.01


def test_no_rows_have_no_features() -> None:
    features = RandomFeatures(8, 32, 1.0, seed=0)
    assert features(np.zeros((0, 8), dtype=np.float32), fixed_shapes=True).shape == (0, 32)
