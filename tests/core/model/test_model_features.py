from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from perdure.model.features import BLOCK, GRID, RandomFeatures, _transformed


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
        [-1026, 1732, 523, -1772, -1092, -1980],
        [-390, 906, 1516, 2011, 1837, -1377],
    ]


def test_features_are_pairs_of_a_cosine_and_its_sine() -> None:
    features = RandomFeatures(16, 128, 1.0, seed=3)
    found = features(unit_vectors(20, 16))
    assert np.abs(found[:, :64] ** 2 + found[:, 64:] ** 2 - 1).max() < 4 / GRID
    scaled = found * features.scale
    assert np.abs((scaled**2).sum(axis=1) - 1).max() < 4 / GRID


def test_an_odd_number_of_features_is_refused() -> None:
    with pytest.raises(ValueError, match="65 is odd"):
        RandomFeatures(8, 65, 1.0, seed=0)


def test_directions_are_as_many_as_wanted_and_orthogonal() -> None:
    """At a large bandwidth the sine is its angle, so that the sines of the unit vectors are the directions."""
    wide = 100.0
    features = RandomFeatures(256, 2 * 300, wide, seed=2)
    sines = features(np.eye(256, dtype=np.float32) * 10)[:, 300:].T * wide / 10
    products = sines[:256] @ sines[:256].T / 256
    assert np.abs(products - np.eye(256)).max() < 0.02
    # The second block is another one.
    assert np.abs(sines[256:] @ sines[:256].T / 256).max() < 0.5


def test_fewer_features_are_needed_than_with_independent_directions() -> None:
    vectors = unit_vectors(40, 256)
    kernel = np.exp(-((vectors[:, None] - vectors[None]) ** 2).sum(axis=2) / 2)
    ours, independent = [], []
    for seed in range(5):
        features = RandomFeatures(256, 512, 1.0, seed)
        found = features(vectors) * features.scale
        ours.append(np.square(found @ found.T - kernel).mean())
        angles = vectors @ np.random.default_rng(seed).normal(size=(256, 256))
        drawn = np.concatenate([np.cos(angles), np.sin(angles)], axis=1) / 16
        independent.append(np.square(drawn @ drawn.T - kernel).mean())
    assert np.mean(ours) < 0.7 * np.mean(independent)


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


def test_features_are_the_same_bits_alone_and_in_company() -> None:
    features = RandomFeatures(640, 2048, 1.0, seed=0)
    vectors = unit_vectors(BLOCK + 3, 640)
    together = features(vectors)
    for row in (0, 1, 17, BLOCK - 1, BLOCK, BLOCK + 2):
        assert np.array_equal(features(vectors[row : row + 1])[0], together[row])
    turned = features(np.ascontiguousarray(vectors[::-1]))
    assert np.array_equal(turned[::-1], together)
    for rows in (2, 3, 5, 13, 64):
        assert np.array_equal(features(vectors[7 : 7 + rows]), together[7 : 7 + rows])


@pytest.mark.parametrize("inputs", [8, 256, 384, 640, 2688])
def test_projections_are_exact(inputs: int) -> None:
    """No sum is rounded: float64, which has 29 bits more, finds the same. Flat vectors have the largest sums."""
    flat = np.full((1, inputs), 1 / np.sqrt(inputs), dtype=np.float32)
    features = RandomFeatures(inputs, 512, 1.0, seed=1)
    width = features._width
    padded = np.zeros((21, width), dtype=np.float32)
    padded[:, :inputs] = np.concatenate([unit_vectors(20, inputs), flat])
    wide = RandomFeatures(inputs, 512, 1.0, seed=1)
    wide._halves = tuple(half.astype(np.float64) for half in wide._halves)  # type: ignore[assignment]
    for flips in features._flips:
        assert np.array_equal(features._project(padded, flips), wide._project(padded.astype(np.float64), flips))


def test_rounding_coordinates_costs_less_than_the_grid() -> None:
    """Against the projection in float64 without rounding, whose directions the unit vectors show."""
    inputs, half = 2688, 4096
    features = RandomFeatures(inputs, 2 * half, 1.0, seed=4)
    vectors = unit_vectors(16, inputs)
    padded = np.zeros((16, features._width))
    padded[:, :inputs] = vectors
    halves = [side.astype(np.float64) for side in features._halves]
    (flips,) = np.sign(features._flips.astype(np.float64))
    for flip in flips:
        padded = _transformed(padded * flip, *halves).reshape(16, -1)
    angles = padded / features._width
    exact = np.concatenate([np.cos(angles), np.sin(angles)], axis=1)
    error = features(vectors) - exact
    assert np.sqrt(np.square(error).mean()) < 0.5 / GRID


def test_no_rows_have_no_features() -> None:
    features = RandomFeatures(8, 32, 1.0, seed=0)
    assert features(np.zeros((0, 8), dtype=np.float32)).shape == (0, 32)
