from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial import distance

from perdure.config import JudgeSettings
from perdure.judge.columns import Column, columns
from perdure.judge.distance import FALSE_ALARMS, Histogram, histogram
from perdure.judge.drift import DriftInput, DriftSummary, drift_report

SETTINGS = JudgeSettings()
WORDS = np.array([f"word{number}" for number in range(200)])
NAMES = ("text length", "word count", "unseen words", "confidence", "distance to centre", "distance to nearest")


def traffic(rows: int, seed: int, labels: int = 6) -> DriftInput:
    random = np.random.default_rng(seed)
    lengths = random.integers(3, 12, rows)
    return DriftInput(
        texts=tuple(" ".join(random.choice(WORDS, length)) for length in lengths),
        predicted=tuple(f"label {number}" for number in random.integers(0, labels, rows)),
        confidence=tuple(float(value) for value in random.beta(8, 2, rows)),
        embeddings=random.normal(0.2, 1.0, (rows, 16)).astype(np.float32),
    )


@pytest.fixture(scope="module")
def same(tmp_path_factory: pytest.TempPathFactory) -> tuple[DriftSummary, Path]:
    folder = tmp_path_factory.mktemp("same")
    return drift_report(traffic(120, 1), traffic(130, 2), SETTINGS, folder), folder


def test_same_distribution_does_not_drift(same: tuple[DriftSummary, Path]) -> None:
    summary, _ = same
    assert summary.enough
    assert not summary.drifted
    assert tuple(column.name for column in summary.columns) == (*NAMES, "predicted label")
    assert (summary.rows_reference, summary.rows_current) == (120, 130)
    assert summary.sentence == "No drift in 7 columns (120 reference rows, 130 current)."


def test_both_files_are_written(same: tuple[DriftSummary, Path]) -> None:
    summary, folder = same
    assert "predicted label" in (folder / "drift.html").read_text(encoding="utf-8")
    tree = json.loads((folder / "drift.json").read_text(encoding="utf-8"))
    assert tree["summary"] == json.loads(json.dumps(summary.to_json()))
    assert [test["status"] for test in tree["evidently"]["tests"]] == ["SUCCESS"] * 7


def test_scores_are_evidentlys(same: tuple[DriftSummary, Path]) -> None:
    summary, folder = same
    theirs = json.loads((folder / "drift.json").read_text(encoding="utf-8"))["evidently"]["metrics"]
    for ours, metric in zip(summary.columns, theirs, strict=True):
        assert metric["config"]["column"] == ours.name
        assert metric["value"] == pytest.approx(ours.score, abs=1e-6)
        assert metric["config"]["threshold"] == pytest.approx(ours.threshold)


def test_reference_and_current_are_not_swapped(tmp_path: Path) -> None:
    """Few different numbers in the reference make one bin each, few in the current rows do not."""
    reference = replace(traffic(60, 1), confidence=(0.7, 0.8, 0.9) * 20)
    summary = drift_report(reference, traffic(60, 2), SETTINGS, tmp_path)
    theirs = json.loads((tmp_path / "drift.json").read_text(encoding="utf-8"))["evidently"]["metrics"]
    ours = [column.score for column in summary.columns]
    assert [metric["value"] for metric in theirs] == pytest.approx(ours, abs=1e-6)


def test_each_column_sees_its_own_drift(tmp_path: Path) -> None:
    reference, plain = traffic(150, 1), traffic(150, 2)
    assert plain.embeddings is not None
    changed = {
        "unseen words": replace(plain, texts=tuple(text.replace("word", "wort") for text in plain.texts)),
        "word count": replace(plain, texts=tuple(text + " word1" * 6 for text in plain.texts)),
        "text length": replace(plain, texts=tuple(text + " word1" * 6 for text in plain.texts)),
        "confidence": replace(plain, confidence=tuple(value / 2 for value in plain.confidence)),
        "predicted label": replace(plain, predicted=("label 1",) * 150),
        "distance to centre": replace(plain, embeddings=plain.embeddings - np.float32(0.6)),
        "distance to nearest": replace(plain, embeddings=reference.embeddings),
    }
    for name, current in changed.items():
        levels = {
            column.name: (histogram(column).distance(), histogram(column).chance(FALSE_ALARMS / 7))
            for column in columns(reference, current)
        }
        score, chance = levels[name]
        assert score > max(chance, SETTINGS.drift_threshold), name
    summary = drift_report(reference, changed["confidence"], SETTINGS, tmp_path)
    assert summary.drifted
    assert [column.name for column in summary.columns if column.drifted] == ["confidence"]
    assert summary.sentence == "Drift in 1 of 7 columns: confidence (150 reference rows, 150 current)."
    tests = json.loads((tmp_path / "drift.json").read_text(encoding="utf-8"))["evidently"]["tests"]
    assert [test["status"] for test in tests].count("FAIL") == 1


@pytest.mark.parametrize(("rows", "labels"), [(50, 6), (60, 60)])
def test_false_alarms_are_rare(rows: int, labels: int) -> None:
    """At most one report in a hundred; without the noise floor, many labels would alarm every time."""
    alarms = 0
    for number in range(24):
        measured = columns(traffic(rows, 2 * number, labels), traffic(rows, 2 * number + 1, labels))
        alarms += any(
            histogram(column).distance() > max(histogram(column).chance(FALSE_ALARMS / 7), SETTINGS.drift_threshold)
            for column in measured
        )
    assert alarms <= 1


def test_the_setting_is_a_floor(tmp_path: Path) -> None:
    reference, current = traffic(400, 1), traffic(400, 2)
    current = replace(current, confidence=tuple(min(value + 0.03, 1.0) for value in current.confidence))
    strict = JudgeSettings(drift_threshold=0.0)
    assert drift_report(reference, current, strict, tmp_path).drifted
    assert not drift_report(reference, current, SETTINGS, tmp_path).drifted


@pytest.mark.parametrize(("before", "after"), [(49, 60), (60, 49), (0, 0), (200, 1)])
def test_too_few_rows(tmp_path: Path, before: int, after: int) -> None:
    summary = drift_report(traffic(before, 1), traffic(after, 2), SETTINGS, tmp_path / "new" / "folder")
    assert not summary.enough
    assert not summary.drifted
    assert summary.columns == ()
    sentence = f"Too few rows for a drift test: {before} reference and {after} current, 50 needed of each."
    assert summary.sentence == sentence
    assert sentence in (tmp_path / "new" / "folder" / "drift.html").read_text(encoding="utf-8")
    tree = json.loads((tmp_path / "new" / "folder" / "drift.json").read_text(encoding="utf-8"))
    assert tree == {"summary": json.loads(json.dumps(summary.to_json())), "evidently": None}


def test_names_cannot_end_a_script(tmp_path: Path) -> None:
    evil = "</script><script>alert(1)</script>"
    reference = replace(traffic(60, 1), predicted=(evil, "b\ud800") * 30)
    drift_report(reference, replace(traffic(60, 2), predicted=("a & b", evil) * 30), SETTINGS, tmp_path)
    page = (tmp_path / "drift.html").read_text(encoding="utf-8")
    assert "alert(1)" in page
    assert "script>alert(1)" not in page


def test_constant_columns(tmp_path: Path) -> None:
    still = DriftInput(("", "x") * 30, ("a",) * 60, (1.0,) * 60, np.zeros((60, 4), dtype=np.float32))
    assert not drift_report(still, still, SETTINGS, tmp_path).drifted


def test_without_embeddings_on_one_side(tmp_path: Path) -> None:
    summary = drift_report(traffic(60, 1), replace(traffic(60, 2), embeddings=None), SETTINGS, tmp_path)
    assert len(summary.columns) == 5
    assert summary.centre_distance is None


def test_centre_distance(same: tuple[DriftSummary, Path], tmp_path: Path) -> None:
    assert same[0].centre_distance == pytest.approx(0.1, abs=0.1)
    reference = traffic(60, 1)
    assert reference.embeddings is not None
    summary = drift_report(reference, replace(reference, embeddings=-reference.embeddings), SETTINGS, tmp_path)
    assert summary.centre_distance == pytest.approx(2.0)


def test_five_hundred_rows_take_less_than_three_seconds(tmp_path: Path, same: tuple[DriftSummary, Path]) -> None:
    before, after = traffic(500, 1), traffic(500, 2)
    started = time.process_time()
    drift_report(before, after, SETTINGS, tmp_path)
    assert time.process_time() - started < 3


def test_reference_rows_are_measured_without_themselves() -> None:
    reference = DriftInput(("a b", "a c"), ("x", "x"), (0.5, 0.5), np.array([[1, 0], [0, 1]], dtype=np.float32))
    current = DriftInput(("a d", "A, e f."), ("x", "x"), (0.5, 0.5), np.array([[2, 0], [1, 1]], dtype=np.float32))
    found = {column.name: column for column in columns(reference, current)}
    assert list(found["unseen words"].reference) == [0.5, 0.5]
    assert list(found["unseen words"].current) == pytest.approx([1 / 2, 2 / 3])
    assert list(found["distance to nearest"].reference) == pytest.approx([1, 1])
    assert list(found["distance to nearest"].current) == pytest.approx([0, 1 - 0.5**0.5])
    assert list(found["distance to centre"].reference) == pytest.approx([1, 1])
    assert list(found["distance to centre"].current) == pytest.approx([1 - 0.5**0.5, 0])


def test_one_huge_text_does_not_hide_the_others() -> None:
    reference, current = traffic(200, 1), traffic(200, 2)
    current = replace(current, texts=("x" * 1_000_000, *(text * 3 for text in current.texts[1:])))
    found = next(column for column in columns(reference, current) if column.name == "text length")
    assert histogram(found).distance() > 0.5


def test_distance_is_scipys() -> None:
    found = Histogram(np.array([5, 3, 0, 2]), np.array([1, 0, 4, 5]))
    assert found.distance() == pytest.approx(distance.jensenshannon([5, 3, 0, 2], [1, 0, 4, 5]))
    assert Histogram(np.array([5, 0]), np.array([0, 9])).distance() == pytest.approx(np.log(2) ** 0.5)


def test_chance_is_the_level_of_shuffled_rows() -> None:
    random = np.random.default_rng(0)
    pooled = random.integers(0, 12, 160)
    level = histogram(Column("x", tuple(map(str, pooled[:60])), tuple(map(str, pooled[60:])))).chance(0.1)
    above = 0
    for _ in range(400):
        random.shuffle(pooled)
        shuffled = Column("x", tuple(map(str, pooled[:60])), tuple(map(str, pooled[60:])))
        above += histogram(shuffled).distance() > level
    assert 0.05 <= above / 400 <= 0.15


def test_what_cannot_be_compared_is_refused() -> None:
    good = traffic(3, 1)
    with pytest.raises(ValueError, match="3 texts but 2 rows of predicted"):
        replace(good, predicted=("a", "b"))
    with pytest.raises(ValueError, match="3 texts but 2 rows of embeddings"):
        replace(good, embeddings=np.zeros((2, 4), dtype=np.float32))
    with pytest.raises(ValueError, match="confidence must be finite"):
        replace(good, confidence=(0.1, float("nan"), 0.2))
    with pytest.raises(ValueError, match="finite numbers"):
        replace(good, embeddings=np.full((3, 4), np.inf, dtype=np.float32))
    with pytest.raises(ValueError, match="embed both with the same version"):
        columns(good, replace(good, embeddings=np.ones((3, 4), dtype=np.float32)))
