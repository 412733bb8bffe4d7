from __future__ import annotations

import numpy as np
import pytest

from perdure.learn.temperature import EXPONENTS, fit_balance, fit_temperature


@pytest.mark.parametrize("temperature", [0.3, 2.0, 20.0])
def test_a_known_temperature_is_found_again(temperature: float) -> None:
    rng = np.random.default_rng(0)
    logits = 2 * rng.normal(size=(6000, 4))
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    truth = ["abcd"[rng.choice(4, p=row)] for row in probabilities]
    found = fit_temperature((logits / temperature).astype(np.float32), truth, "abcd")
    assert found == pytest.approx(temperature, rel=0.06)


def test_rows_of_labels_without_a_column_do_not_count() -> None:
    scores = np.array([[2.0, 0.0], [0.0, 2.0], [2.0, 0.0]], dtype=np.float32)
    alone = fit_temperature(scores, ["a", "b", "b"], ("a", "b"))
    more = np.concatenate([scores, [[9.0, -9.0]]]).astype(np.float32)
    assert fit_temperature(more, ["a", "b", "b", "other"], ("a", "b")) == alone
    assert fit_temperature(scores, ["x", "y", "z"], ("a", "b")) == 1.0
    assert fit_temperature(scores[:0], [], ("a", "b")) == 1.0


@pytest.mark.parametrize("count", [5, 20, 500])
def test_rows_that_are_all_right_make_an_answer_as_sure_as_they_are_many(count: int) -> None:
    scores = np.tile(np.array([[1.0, 0.2, 0.1]], dtype=np.float32), (count, 1))
    logits = fit_temperature(scores, ["a"] * count, "abc") * scores[0]
    # The likeliest probability of a runner-up after n rows right and one wrong, but for what the third label takes.
    assert np.exp(logits - np.logaddexp.reduce(logits))[0] == pytest.approx(count / (count + 1), abs=0.3 / count)


def test_one_label_alone_needs_no_temperature() -> None:
    assert fit_temperature(np.ones((3, 1), dtype=np.float32), ["a"] * 3, ["a"]) == 1.0


def test_rows_that_count_thrice_are_three_rows_each() -> None:
    scores = np.tile(np.array([[1.0, 0.2], [0.4, 0.6], [0.3, 0.9]], dtype=np.float32), (200, 1))
    truth = ["a", "a", "b"] * 200
    weights = np.tile(np.array([3.0, 1.0, 1.0]), 200)
    repeated = fit_temperature(scores.repeat(weights.astype(int), axis=0), ["a", "a", "a", "a", "b"] * 200, "ab")
    assert fit_temperature(scores, truth, "ab", weights) == pytest.approx(repeated, rel=0.01)
    assert fit_temperature(scores, truth, "ab") != pytest.approx(repeated, rel=0.1)


# ── balance ──
def shrunk(rows: dict[str, int], shrink: dict[str, float], seed: int) -> tuple[np.ndarray, list[str]]:
    """Noisy indicator scores of labels, those of each label shrunk by a factor."""
    rng = np.random.default_rng(seed)
    labels = sorted(rows)
    truth = [label for label in labels for _ in range(rows[label])]
    target = np.asarray([[float(label == one) for label in labels] for one in truth])
    scores = (target + 0.3 * rng.normal(size=target.shape)) * [shrink[label] for label in labels]
    return scores.astype(np.float32), truth


def test_shrunken_scores_of_rare_labels_are_stretched() -> None:
    scores, truth = shrunk({"a": 400, "b": 40, "c": 40}, {"a": 1.0, "b": 0.5, "c": 0.5}, seed=0)
    counts = {"a": 400, "b": 40, "c": 40}
    balance = fit_balance(scores, truth, "abc", counts)
    assert balance[0] < 1 < balance[1] == balance[2]
    # 160 rows a label on average: b and c get (160/40)^τ.
    assert np.log(balance[1]) / np.log(4) == pytest.approx(np.log(balance[0]) / np.log(0.4))
    assert min(abs(np.log(balance[1]) / np.log(4) - power) for power in EXPONENTS) < 1e-6


def test_scores_that_are_not_shrunk_stay_as_they_are() -> None:
    scores, truth = shrunk({"a": 3000, "b": 300}, {"a": 1.0, "b": 1.0}, seed=1)
    assert fit_balance(scores, truth, "ab", {"a": 3000, "b": 300}).tolist() == [1.0, 1.0]


def test_rows_of_a_label_count_as_often_as_it_has_come() -> None:
    """Memory holds as many rows of each label: stretching would look better there than it is on traffic."""
    counts = {"a": 9000, "b": 300}
    scores, truth = shrunk({"a": 300, "b": 300}, {"a": 1.0, "b": 0.7}, seed=2)
    scores[:300, 1] += 0.1
    everything = np.concatenate([np.tile(scores[:300], (30, 1)), scores[300:]])
    wanted = fit_balance(everything, ["a"] * 9000 + ["b"] * 300, "ab", counts)
    assert fit_balance(scores, truth, "ab", counts).tolist() == wanted.tolist()
    assert fit_balance(scores[200:], truth[200:], "ab", counts).tolist() == wanted.tolist()


@pytest.mark.parametrize(
    ("truth", "counts"),
    [(["a", "b"], {"a": 5, "b": 5}), ([], {"a": 5, "b": 50}), (["x", "y"], {"a": 5, "b": 50})],
)
def test_without_a_difference_or_rows_nothing_is_stretched(truth: list[str], counts: dict[str, int]) -> None:
    scores = np.ones((len(truth), 2), dtype=np.float32)
    assert fit_balance(scores, truth, "ab", counts).tolist() == [1.0, 1.0]
