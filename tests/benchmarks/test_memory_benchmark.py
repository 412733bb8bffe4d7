"""The benchmark of memories: what is offered, what is measured, and that what is lost is said."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from perdure.records import normalise


@pytest.fixture(scope="module")
def size() -> Any:
    from memories.workload import Size

    return Size(offered=3000, per_label=25, queries=21)


@pytest.fixture(scope="module")
def workload(size: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    from memories.workload import Workload

    return Workload(tmp_path_factory.mktemp("run") / "workload", size)


@pytest.fixture
def task(size: Any, workload: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    from memories.child import Task

    run = tmp_path_factory.mktemp("run")

    def make(name: str, **changes: Any) -> Any:
        folder = run / name
        folder.mkdir(exist_ok=True)
        return replace(Task(str(workload.folder), str(folder), size, float("inf")), **changes)

    return make


def test_what_repeats_says_the_same_and_what_nearly_repeats_lies_near(workload: Any, size: Any) -> None:
    from memories.workload import LABELS, NEARLY, REPEATED, number_of

    texts = [workload.text(number) for number in range(size.offered)]
    origins = np.array([number_of(text) for text in texts])
    again = np.flatnonzero(origins != np.arange(size.offered))
    assert len(again) == pytest.approx(REPEATED * size.offered, rel=0.2)
    assert all(normalise(texts[row]) == normalise(texts[origins[row]]) for row in again)
    assert (workload.labels[again] == workload.labels[origins[again]]).all()
    assert np.array_equal(workload.vectors[again], workload.vectors[origins[again]])
    assert len({normalise(text) for text in texts}) == size.offered - len(again)
    assert 50 < np.mean([len(text) for text in texts]) < 75
    assert np.allclose(np.linalg.norm(workload.vectors, axis=1), 1, atol=1e-5)
    own = np.flatnonzero(origins == np.arange(size.offered))
    cosines = workload.vectors[own] @ workload.vectors[own].T - 2 * np.eye(len(own))
    near = np.count_nonzero(cosines.max(axis=1) > 0.98)
    assert NEARLY * size.offered * 0.8 < near < 2.5 * NEARLY * size.offered
    counts = np.bincount(workload.labels, minlength=LABELS)
    assert counts[0] == pytest.approx(size.offered / (1 / np.arange(1, LABELS + 1)).sum(), rel=0.15)
    assert counts[:10].sum() > counts[75:].sum()


def test_the_same_size_gives_the_same_samples(workload: Any, size: Any, tmp_path: Path) -> None:
    from memories.workload import Workload

    again = Workload(tmp_path, size)
    assert np.array_equal(again.vectors, workload.vectors)
    assert np.array_equal(again.queries, workload.queries)
    other = Workload(tmp_path, replace(size, seed=1))
    assert not np.array_equal(other.vectors, workload.vectors)


def test_memories_are_filled_and_asked(task: Any, size: Any) -> None:
    from memories.child import answer, fill, settle

    ours = task("perdure")
    filled = fill("perdure", ours)
    assert filled.offered == size.offered
    assert 1000 < filled.kept < 0.8 * size.offered  # of common labels not all
    assert filled.twice["kept"] == filled.twice["different"] < filled.twice["offered"] == 200
    assert len(filled.rest_seconds) == 6  # a page is a sixth of all
    assert filled.disk_bytes > sum(filled.details["disk_bytes_by_kind"].values()) / 2  # type: ignore[attr-defined]
    settle("perdure", ours)
    asked = answer("perdure", ours)
    assert asked.recall == pytest.approx(1, abs=0.02)
    assert len(asked.milliseconds) == len(asked.milliseconds_again) == size.queries - 1

    theirs = task("faiss-flat", source=ours.folder)
    bare = fill("faiss flat", theirs)
    assert bare.offered == bare.kept == filled.kept
    assert bare.twice["kept"] == bare.twice["offered"]
    assert answer("faiss flat", theirs).recall == 1.0

    alone = task("perdure-reservoir")
    assert fill("perdure reservoir", alone).kept == filled.kept
    assert answer("perdure reservoir", alone).recall is None


def test_a_time_limit_ends_offering(task: Any) -> None:
    from memories.child import fill

    assert fill("perdure reservoir", task("short", limit=0.0)).offered == 500


def test_recall_is_the_share_of_the_right_ones() -> None:
    from memories.workload import exact, recall

    vectors = np.eye(4, dtype=np.float32)
    queries = np.array([[3, 2, 1, 0], [0, 0, 1, 5]], dtype=np.float32)
    assert exact(vectors, queries, 2) == [{0, 1}, {2, 3}]
    assert recall([{0, 3}, {2, 3}], [{0, 1}, {2, 3}]) == 0.75


def test_what_is_lost_is_said(tmp_path: Path, size: Any) -> None:
    from memory import results

    def written(name: str, speed: float, disk: int, recall: float) -> None:
        filled = {
            "offered": 1000,
            "kept": 100,
            "seconds": 1000 / speed,
            "cpu_seconds": 1.0,
            "slowest_page_seconds": 0.5,
            "rest_seconds": [],
            "save_seconds": 1.0,
            "process_bytes": 5000,
            "disk_bytes": disk,
            "twice": {},
            "details": {},
        }
        asked = {
            "resume_seconds": 1.0,
            "milliseconds": [1.0, 2.0],
            "milliseconds_again": [1.0],
            "recall": recall,
            "process_bytes": 1000,
        }
        (tmp_path / f"{name}-fill.json").write_text(json.dumps(filled), encoding="utf-8")
        (tmp_path / f"{name}-answer-0.json").write_text(json.dumps(asked), encoding="utf-8")

    written("perdure", speed=100.0, disk=2000, recall=0.9)
    written("faiss-flat", speed=400.0, disk=1000, recall=0.8)
    found = results(["perdure", "faiss flat"], size, tmp_path, {"renate uniform": "no wheel"})
    assert found["perdure_over_others"]["faiss flat"]["offers_per_second"] == 0.25
    assert found["where_perdure_is_worse"] == [
        "offers_per_second: 0.25 times that of faiss flat",
        "disk_bytes_per_sample: 2 times that of faiss flat",
    ]
    assert found["unavailable"] == {"renate uniform": "no wheel"}
    assert set(found["abilities"]["finds neighbours"]) == {"perdure", "faiss", "avalanche", "renate"}
