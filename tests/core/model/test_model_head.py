from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from perdure.errors import StoreCorrupt, StoreFull
from perdure.model import head
from perdure.model.features import GRID, RandomFeatures
from perdure.model.head import Solution, Statistics, choose_ridge, leave_one_out, solve

D = 64
LABELS = ("card", "login", "parcel")
Rows = tuple[NDArray[np.float32], list[str]]


@pytest.fixture(scope="module")
def rows() -> Rows:
    """90 rows of three clusters, as features on the grid."""
    rng = np.random.default_rng(2)
    labels = [LABELS[row % 3] for row in range(90)]
    centres = rng.normal(size=(3, 10))
    vectors = np.stack([centres[LABELS.index(label)] for label in labels]) + 0.8 * rng.normal(size=(90, 10))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return RandomFeatures(10, D, 0.7, seed=0)(vectors.astype(np.float32)), labels


def statistics_of(rows: Rows, order: NDArray[np.intp] | None = None, parts: int = 1) -> Statistics:
    features, labels = rows
    statistics = Statistics(D)
    for part in np.array_split(np.arange(len(labels)) if order is None else order, parts):
        statistics.update(features[part], [labels[row] for row in part], [1] * len(part))
    return statistics


def assert_same(one: Statistics, other: Statistics) -> None:
    """To the last bit."""
    assert one.gram.tobytes() == other.gram.tobytes()
    assert one.counts == other.counts
    assert {label: total.tobytes() for label, total in one.sums.items()} == {
        label: total.tobytes() for label, total in other.sums.items()
    }


# ── statistics ──
def test_statistics_are_the_sums_over_rows(rows: Rows) -> None:
    features, labels = rows
    statistics = statistics_of(rows)
    exact = features.astype(np.float64)
    assert np.array_equal(statistics.gram, np.tril(exact.T @ exact))
    assert set(statistics.sums) == set(LABELS)
    for label in LABELS:
        mine = exact[[one == label for one in labels]]
        assert np.array_equal(statistics.sums[label], mine.sum(axis=0))
        assert statistics.counts[label] == len(mine)
    assert statistics.rows == 90


@pytest.mark.parametrize("parts", [1, 7, 90])
def test_order_and_portions_change_no_bit(rows: Rows, parts: int) -> None:
    order = np.random.default_rng(parts).permutation(90)
    assert_same(statistics_of(rows, order, parts), statistics_of(rows))


def test_what_was_added_is_taken_out_to_the_last_bit(rows: Rows) -> None:
    statistics = statistics_of(rows)
    extra = RandomFeatures(10, D, 0.7, seed=0)(np.eye(10, dtype=np.float32))
    statistics.update(extra, ["card"] * 5 + ["new"] * 5, [1] * 10)
    statistics.update(extra[::-1], ["new"] * 5 + ["card"] * 5, [-1] * 10)
    assert_same(statistics, statistics_of(rows))


def test_a_correction_moves_a_row_within_one_update(rows: Rows) -> None:
    features, labels = rows
    statistics = statistics_of(rows)
    statistics.update(features[[0, 0]], [labels[0], "other"], [-1, 1])
    assert_same(statistics, statistics_of((features, ["other", *labels[1:]])))


def test_a_label_vanishes_with_its_last_row(rows: Rows) -> None:
    features, _ = rows
    statistics = Statistics(D)
    statistics.update(features[:2], ["a", "b"], [1, 1])
    statistics.update(features[:1], ["a"], [-1])
    assert set(statistics.sums) == set(statistics.counts) == {"b"}
    statistics.update(features[1:2], ["b"], [-1])
    assert_same(statistics, Statistics(D))


# ── the file ──
@pytest.mark.parametrize(
    "names",
    [
        (),
        ("plain",),
        ("Rückerstattung", "返金", "🙂", "two\nlines", "a\tb", '"quoted"', "back\\slash", " ", "\u2028"),
        ("a", "a\0b", "b", "\0", "\0\0"),
        ("a lone \ud800 surrogate",),
    ],
)
def test_the_file_gives_back_every_bit_and_every_label(rows: Rows, tmp_path: Path, names: tuple[str, ...]) -> None:
    features, _ = rows
    statistics = Statistics(D)
    statistics.update(features[: len(names)], names, [1] * len(names))
    statistics.save(tmp_path / "head.safetensors")
    assert_same(Statistics.load(tmp_path / "head.safetensors"), statistics)


def test_loaded_statistics_go_on_where_they_were(rows: Rows, tmp_path: Path) -> None:
    features, labels = rows
    half = statistics_of((features[:45], labels[:45]))
    half.save(tmp_path / "head.safetensors")
    read = Statistics.load(tmp_path / "head.safetensors")
    read.update(features[45:], labels[45:], [1] * 45)
    assert_same(read, statistics_of(rows))


def test_the_file_has_one_triangle_only(rows: Rows, tmp_path: Path) -> None:
    statistics_of(rows).save(tmp_path / "head.safetensors")
    assert load_file(tmp_path / "head.safetensors")["gram"].shape == (D * (D + 1) // 2,)


@pytest.mark.parametrize("damage", ["missing", "cut short", "garbage", "empty", "other tensors", "labels", "triangle"])
def test_a_file_that_is_not_whole_is_refused(rows: Rows, tmp_path: Path, damage: str) -> None:
    path = tmp_path / "head.safetensors"
    statistics_of(rows).save(path)
    whole, tensors = path.read_bytes(), load_file(path)
    if damage == "missing":
        path.unlink()
    elif damage == "cut short":
        path.write_bytes(whole[: len(whole) // 2])
    elif damage == "garbage":
        path.write_bytes(b"\x00\xff" * 500)
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "other tensors":
        save_file({"weights": np.zeros(3)}, path)
    elif damage == "labels":
        save_file({**tensors, "labels": np.frombuffer(json.dumps(["card"]).encode(), dtype=np.uint8)}, path)
    else:
        save_file({**tensors, "gram": tensors["gram"][:-5]}, path)
    with pytest.raises(StoreCorrupt, match=r"head\.safetensors.*rebuild"):
        Statistics.load(path)


def test_a_save_that_fails_leaves_the_old_file_whole(
    rows: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "head.safetensors"
    statistics_of(rows).save(path)

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreFull, match="No space"):
        Statistics(D).save(path)
    assert_same(Statistics.load(path), statistics_of(rows))


# ── the solution ──
def direct(
    features: NDArray[np.float32], labels: list[str], names: tuple[str, ...], ridge: float
) -> NDArray[np.float64]:
    """W by the normal equations, straight from the rows."""
    scaled = features.astype(np.float64) * np.sqrt(2 / D)
    target = np.array([[float(label == name) for name in names] for label in labels])
    weights: NDArray[np.float64] = np.linalg.solve(scaled.T @ scaled + ridge * np.eye(D), scaled.T @ target)
    weights *= np.sqrt(2 / D)
    return weights


@pytest.mark.parametrize("ridge", [0.01, 1.0])
def test_the_solution_solves_the_normal_equations(rows: Rows, ridge: float) -> None:
    features, labels = rows
    solution = solve(statistics_of(rows), LABELS, ridge)
    wanted = direct(features, labels, LABELS, ridge)
    assert solution.labels == LABELS
    np.testing.assert_allclose(solution.weights, wanted, atol=1e-5)
    np.testing.assert_allclose(solution.scores(features), features @ wanted, atol=1e-4)
    right = np.asarray(LABELS)[solution.scores(features).argmax(axis=1)] == labels
    assert right.mean() > 0.9


@pytest.mark.parametrize("ridge", [1e-6, 1e-4, 1e-2, 1.0])
def test_near_to_singular_the_solution_is_as_exact(ridge: float) -> None:
    """Fewer rows than features, each many times: in single precision alone weights would be off in the first digit."""
    rng = np.random.default_rng(5)
    features = np.repeat((rng.integers(-GRID, GRID, (40, D)) / GRID).astype(np.float32), 50, axis=0)
    labels = [LABELS[row // 50 % 3] for row in range(2000)]
    found, wanted = solve(statistics_of((features, labels)), LABELS, ridge), direct(features, labels, LABELS, ridge)
    np.testing.assert_allclose(found.weights, wanted, atol=2e-6 * np.abs(wanted).max())
    scaled = features[::50].astype(np.float64) * np.sqrt(2 / D)
    hat = scaled @ np.linalg.solve(50 * scaled.T @ scaled + ridge * np.eye(D), scaled.T)
    np.testing.assert_allclose(found.leverage(features[::50]), np.diag(hat), rtol=1e-3)


def test_what_single_precision_cannot_refine_is_solved_in_double(rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[torch.dtype] = []

    def spy(gram: NDArray[np.float64], scale: float, ridge: float, precision: torch.dtype) -> torch.Tensor:
        asked.append(precision)
        return shifted(gram, scale, ridge, precision)

    shifted = head._shifted
    monkeypatch.setattr(head, "_shifted", spy)
    found = solve(statistics_of(rows), LABELS, 0.1)
    assert asked == [torch.float32]
    monkeypatch.setattr(head, "_refined", lambda *given: None)
    np.testing.assert_allclose(solve(statistics_of(rows), LABELS, 0.1).weights, found.weights, atol=1e-6)
    assert asked == [torch.float32, torch.float32, torch.float64]


def test_rows_of_other_labels_belong_to_none(rows: Rows) -> None:
    features, labels = rows
    solution = solve(statistics_of(rows), ("card", "parcel"), 0.1)
    np.testing.assert_allclose(solution.weights, direct(features, labels, ("card", "parcel"), 0.1), atol=1e-5)


def test_leverage_is_the_diagonal_of_the_hat_matrix(rows: Rows) -> None:
    features, _ = rows
    scaled = features.astype(np.float64) * np.sqrt(2 / D)
    hat = scaled @ np.linalg.solve(scaled.T @ scaled + 0.1 * np.eye(D), scaled.T)
    np.testing.assert_allclose(solve(statistics_of(rows), LABELS, 0.1).leverage(features), np.diag(hat), rtol=1e-4)


def test_leave_one_out_is_a_refit_without_the_row(rows: Rows) -> None:
    features, labels = rows
    solution = solve(statistics_of(rows), LABELS, 0.1)
    unseen = leave_one_out(solution.scores(features), solution.leverage(features), labels, LABELS)
    assert np.abs(unseen - solution.scores(features)).max() > 0.05
    for row in range(0, 90, 11):
        statistics = statistics_of(rows)
        statistics.update(features[[row]], [labels[row]], [-1])
        refit = solve(statistics, LABELS, 0.1).scores(features[[row]])[0]
        np.testing.assert_allclose(unseen[row], refit, atol=1e-4)


def test_leave_one_out_of_a_row_whose_label_has_no_column(rows: Rows) -> None:
    features, labels = rows
    names = ("card", "parcel")
    row = labels.index("login")
    solution = solve(statistics_of(rows), names, 0.1)
    unseen = leave_one_out(solution.scores(features), solution.leverage(features), labels, names)
    statistics = statistics_of(rows)
    statistics.update(features[[row]], ["login"], [-1])
    np.testing.assert_allclose(unseen[row], solve(statistics, names, 0.1).scores(features[[row]])[0], atol=1e-4)


def test_leverage_0_leaves_scores_as_they_are(rows: Rows) -> None:
    scores = np.array([[0.5, 0.25, -0.125], [1.0, 0.0, 0.5]], dtype=np.float32)
    assert np.array_equal(leave_one_out(scores, np.zeros(2), ["card", "login"], LABELS), scores)


def test_the_ridge_with_the_least_leave_one_out_error_is_chosen(rows: Rows) -> None:
    features, labels = rows
    ridges = (1e-6, 0.03, 1.0, 300.0)
    target = np.array([[float(label == name) for name in LABELS] for label in labels])
    errors = []
    for ridge in ridges:
        missed = 0.0
        for row in range(90):
            rest = [other for other in range(90) if other != row]
            weights = direct(features[rest], [labels[other] for other in rest], LABELS, ridge)
            missed += float(((features[row] @ weights - target[row]) ** 2).sum())
        errors.append(missed)
    best = ridges[int(np.argmin(errors))]
    assert best not in (ridges[0], ridges[-1])
    assert choose_ridge(statistics_of(rows), LABELS, features, labels, ridges).ridge == best
    assert choose_ridge(statistics_of(rows), LABELS, features, labels, ridges[::-1]).ridge == best


def test_the_ridge_is_chosen_without_any_copy_of_a_row() -> None:
    """Labels are noise, and every row is there twice: with its copy in sight each is known by heart."""
    rng = np.random.default_rng(4)
    features = (rng.integers(-GRID, GRID, (60, D)) / GRID).astype(np.float32)
    labels = [LABELS[place] for place in rng.integers(0, 3, 60)]
    twice = np.concatenate([features, features]), [*labels, *labels]
    ridges = (0.01, 1.0, 1e4)
    seen = choose_ridge(statistics_of(twice), LABELS, features, labels, ridges)
    unseen = choose_ridge(statistics_of(twice), LABELS, features, labels, ridges, copies=np.full(60, 2.0))
    assert seen.ridge < 1e4 == unseen.ridge


@pytest.mark.parametrize(
    ("start", "upwards", "found"),
    [(1e-6, True, 0.03), (0.02, True, 0.03), (0.02, False, 0.03), (300.0, False, 0.03), (300.0, True, 300.0)],
)
def test_from_a_start_the_walk_goes_one_way(rows: Rows, start: float, upwards: bool, found: float) -> None:
    features, labels = rows
    ridges = (1e-6, 0.03, 1.0, 300.0)
    chosen = choose_ridge(statistics_of(rows), LABELS, features, labels, ridges, start=start, upwards=upwards)
    assert chosen.ridge == found


def test_a_walk_from_a_start_solves_twice_where_it_stays(rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = rows
    tried: list[float] = []

    def counted(statistics: Statistics, names: Sequence[str], ridge: float) -> Solution:
        tried.append(ridge)
        return solve(statistics, names, ridge)

    monkeypatch.setattr(head, "solve", counted)
    choose_ridge(statistics_of(rows), LABELS, features, labels, (1e-6, 0.03, 1.0, 300.0), start=0.03)
    assert tried == [0.03, 1e-6]


def test_without_a_choice_or_rows_the_middle_ridge_is_taken(rows: Rows) -> None:
    features, labels = rows
    statistics = statistics_of(rows)
    assert choose_ridge(statistics, LABELS, features, labels, (0.3,)).ridge == 0.3
    assert choose_ridge(statistics, LABELS, features[:0], [], (0.01, 0.1, 1.0)).ridge == 0.1
    assert choose_ridge(statistics, LABELS, features[:0], [], (0.01, 0.1, 1.0), start=2.0).ridge == 1.0
