from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from perdure.errors import VersionDamaged
from perdure.learn.leverage import LEVERAGE_FILE, Leverage, unseen_scores
from perdure.model.classifier import AnalyticClassifier
from perdure.model.encoder import Encoder
from perdure.model.features import RandomFeatures
from perdure.model.head import Statistics, solve
from perdure.records import Float, sample_key

KEYS = [sample_key("card", f"text {number}") for number in range(4)]


def test_rows_not_seen_have_leverage_0() -> None:
    leverage = Leverage({KEYS[0]: 0.5, KEYS[1]: 0.25})
    assert leverage([KEYS[1], KEYS[3], KEYS[0]]).tolist() == [0.25, 0.0, 0.5]
    assert leverage([]).shape == (0,)


@pytest.mark.parametrize("count", [0, 1, 4])
def test_the_file_gives_back_what_was_written(tmp_path: Path, count: int) -> None:
    leverage = Leverage(
        {key: 0.125 * place for place, key in enumerate(KEYS[:count])}, 0.03 if count else None, 7 * count
    )
    for name, data in leverage.files().items():
        (tmp_path / name).write_bytes(data)
    assert Leverage.load(tmp_path) == leverage


def test_a_version_from_before_the_penalty_was_kept_is_read(tmp_path: Path) -> None:
    keys = np.frombuffer(bytes.fromhex(KEYS[0]), dtype=np.uint8).reshape(1, 16).copy()
    save_file({"keys": keys, "leverage": np.array([0.5], dtype=np.float32)}, tmp_path / LEVERAGE_FILE)
    assert Leverage.load(tmp_path) == Leverage({KEYS[0]: 0.5})


@pytest.mark.parametrize("damage", ["missing", "cut short", "garbage", "other tensors", "a key more"])
def test_a_file_that_is_not_whole_is_refused(tmp_path: Path, damage: str) -> None:
    path = tmp_path / LEVERAGE_FILE
    data = Leverage(dict.fromkeys(KEYS, 0.5)).files()[LEVERAGE_FILE]
    if damage in ("cut short", "garbage"):
        path.write_bytes(data[:-9] if damage == "cut short" else b"\xff" * 99)
    elif damage == "other tensors":
        save_file({"keys": np.zeros((1, 16), dtype=np.uint8)}, path)
    elif damage == "a key more":
        save_file({"keys": np.zeros((2, 16), dtype=np.uint8), "leverage": np.zeros(1, dtype=np.float32)}, path)
    with pytest.raises(VersionDamaged, match="leverages cannot be read from"):
        Leverage.load(tmp_path)


def test_unseen_scores_are_those_of_a_head_without_the_row(encoder: Encoder) -> None:
    rng = np.random.default_rng(0)
    vectors: Float = (rng.normal(size=(20, encoder.inputs)) / 8).astype(np.float32)
    labels = ["a", "b"] * 10
    keys = [sample_key(label, f"text {row}") for row, label in enumerate(labels)]
    draw = RandomFeatures(encoder.inputs, 64, 1.0, 0)
    statistics = Statistics(64)
    statistics.update(draw(vectors), labels, [1] * 20)
    solution = solve(statistics, ("a", "b"), 0.1)
    classifier = AnalyticClassifier(
        "v1",
        encoder,
        draw,
        feature_seed=0,
        bandwidth=1.0,
        labels=("a", "b"),
        weights=solution.weights,
        temperature=1.0,
        adapted=None,
        batch=8,
    )
    seen = Leverage(dict(zip(keys[:10], solution.leverage(draw(vectors[:10])).tolist(), strict=True)))
    found = unseen_scores(classifier, seen, vectors, keys, labels)
    np.testing.assert_allclose(found[10:], solution.scores(draw(vectors))[10:], atol=1e-6)
    for row in (0, 3, 9):
        statistics.update(draw(vectors[[row]]), [labels[row]], [-1])
        refit = solve(statistics, ("a", "b"), 0.1).scores(draw(vectors[[row]]))[0]
        np.testing.assert_allclose(found[row], refit, atol=1e-3)
        assert np.abs(refit - solution.scores(draw(vectors[[row]]))[0]).max() > 0.02
        statistics.update(draw(vectors[[row]]), [labels[row]], [1])
