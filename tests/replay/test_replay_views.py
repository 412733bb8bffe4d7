"""Neighbours, near-duplicates, representatives: derived from embeddings, whatever the order."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import faiss
import numpy as np
import pytest

from perdure.errors import SettingError, UsageError
from perdure.records import Float, Record
from perdure_replay import ReplayMemory, herding

Open = Callable[..., ReplayMemory]


def filled(world: Any, opened: Open, labels: str = "aaaabb", **options: Any) -> ReplayMemory:
    records: list[Record] = []
    for number, label in enumerate(labels):
        records += world.labelled(f"{number}", f"t{number}", label)
    return opened(records, **options)


def angles(memory: ReplayMemory, degrees: dict[str, float], version: str = "v") -> None:
    """Embeds samples, by text, on a circle of radius 3."""
    samples = [sample for sample in memory.samples() if sample.text in degrees]
    memory.embed(version, [sample.key for sample in samples], directions(*(degrees[s.text] for s in samples)))


def directions(*degrees: float) -> Float:
    radians = np.deg2rad(np.array(degrees))
    return (3 * np.stack([np.cos(radians), np.sin(radians)], axis=1)).astype(np.float32)


def test_herding_follows_the_mean() -> None:
    assert herding([0, 4, 5], 3).tolist() == [1, 0, 2]
    assert herding([0, 4, 5], 9).tolist() == [1, 0, 2]
    assert herding([[1.0, 0.0], [1.0, 0.0]], 1).tolist() == [0]
    assert herding(np.empty((0, 3)), 2).tolist() == []
    with pytest.raises(UsageError, match="k = -1"):
        herding([1.0], -1)


def test_neighbours_are_the_most_similar_living_samples(world: Any, opened: Open) -> None:
    memory = filled(world, opened)
    assert memory.neighbours(directions(0), 3).samples == ((),)
    angles(memory, {"t0": 0, "t1": 30, "t4": 60, "t5": 90})
    found = memory.neighbours(directions(1, 89), 3)
    assert [[sample.text for sample in row] for row in found.samples] == [["t0", "t1", "t4"], ["t5", "t4", "t1"]]
    assert found.similarities[0] == pytest.approx(np.cos(np.deg2rad([1, 29, 59])), abs=1e-3)
    assert len(memory.neighbours(directions(1), 99).samples[0]) == 4
    memory.ingest(world.page([world.feedback("0", "b", at=9)], start=50))
    assert [sample.text for sample in memory.neighbours(directions(1), 1).samples[0]] == ["t1"]
    memory.close()
    assert [sample.text for sample in opened().neighbours(directions(1), 1).samples[0]] == ["t1"]


def test_a_sample_says_how_often_it_was_asserted(world: Any, opened: Open) -> None:
    records = [record for number in range(3) for record in world.labelled(f"{number}", "Hello  there", "greeting")]
    memory = opened([*records, *world.labelled("9", "bye", "farewell")])
    assert {sample.text: sample.copies for sample in memory.samples()} == {"Hello  there": 3, "bye": 1}
    memory.ingest(world.page([world.feedback("1", "farewell", at=9)], start=50))
    assert {(sample.label, sample.copies) for sample in memory.samples()} == {("greeting", 2), ("farewell", 1)}


class Gpu:
    """What the GPU build of FAISS adds, in terms of what every build has; no GPU is needed."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.searched = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(faiss, name)

    def get_num_gpus(self) -> int:
        return self.count

    def StandardGpuResources(self) -> str:
        return "resources"

    def GpuIndexFlatConfig(self) -> SimpleNamespace:
        return SimpleNamespace(useFloat16=False)

    def GpuIndexFlatIP(self, resources: str, dimensions: int, config: SimpleNamespace) -> Any:
        assert resources == "resources"
        assert config.useFloat16
        gpu, index = self, faiss.IndexFlatIP(dimensions)

        class Counted:
            add = index.add

            def search(self, queries: Float, k: int) -> Any:
                gpu.searched += 1
                return index.search(queries, k)

        return Counted()


@pytest.mark.parametrize(("device", "gpus", "used"), [("auto", 1, 1), ("cuda", 1, 1), ("cpu", 1, 0), ("auto", 0, 0)])
def test_the_index_is_searched_on_a_gpu_where_there_is_one(
    world: Any, opened: Open, monkeypatch: pytest.MonkeyPatch, device: str, gpus: int, used: int
) -> None:
    gpu = Gpu(gpus)
    monkeypatch.setattr("perdure_replay.views.faiss_module", lambda: gpu)
    monkeypatch.setattr("perdure_replay.views.COPIED", 2)
    memory = filled(world, opened, device=device)
    angles(memory, {"t0": 0, "t1": 30, "t4": 60, "t5": 90})
    found = memory.neighbours(directions(1, 89), 3)
    assert [[sample.text for sample in row] for row in found.samples] == [["t0", "t1", "t4"], ["t5", "t4", "t1"]]
    assert found.similarities[0] == pytest.approx(np.cos(np.deg2rad([1, 29, 59])), abs=1e-3)
    assert gpu.searched == used


def test_a_gpu_that_faiss_does_not_find_is_an_error_that_says_what_to_do(world: Any, opened: Open) -> None:
    memory = filled(world, opened, device="cuda")
    angles(memory, {"t0": 0})
    with pytest.raises(SettingError, match=r"device cannot be 'cuda'.*FAISS finds no GPU.*auto or cpu"):
        memory.neighbours(directions(1), 1)


def test_near_duplicates_share_their_weight_within_a_label(world: Any, opened: Open) -> None:
    memory = filled(world, opened, near_duplicate=0.9)
    assert {sample.weight for sample in memory.samples()} == {1.0}
    # 0–20–40 are connected through 20; 40 and 41 have different labels.
    angles(memory, {"t0": 0, "t1": 20, "t2": 40, "t3": 90, "t4": 41, "t5": 120})
    by_text = {sample.text: sample for sample in memory.samples()}
    assert memory.near_duplicates() == (frozenset(by_text[text].key for text in ("t0", "t1", "t2")),)
    weights = {text: sample.weight for text, sample in by_text.items()}
    assert weights == {"t0": 1 / 3, "t1": 1 / 3, "t2": 1 / 3, "t3": 1.0, "t4": 1.0, "t5": 1.0}


def test_the_same_vector_twice_is_a_near_duplicate_at_one(world: Any, opened: Open) -> None:
    memory = filled(world, opened, near_duplicate=1.0)
    angles(memory, {"t0": 77, "t1": 77, "t2": 0, "t3": 0, "t4": 78})
    assert [len(group) for group in memory.near_duplicates()] == [2, 2]


def test_representatives_cover_what_is_not_held_out(world: Any, opened: Open) -> None:
    memory = filled(world, opened, labels="aaaaaab", per_class=6, holdout_share=0.3)
    free = [sample for sample in memory.samples() if sample.label == "a" and not sample.held_out]
    assert len(free) == 4
    assert memory.representatives("a", 3) == tuple(free[:3])
    degrees = dict(zip((sample.text for sample in free), (0.0, 80.0, 100.0, 90.0), strict=True))
    del degrees[free[0].text]
    angles(memory, degrees)
    picked = [sample.key for sample in memory.representatives("a", 4)]
    assert picked[0] == free[3].key
    assert picked[3] == free[0].key  # it has no embedding
    assert {sample.key for sample in free} == set(picked)
    assert memory.representatives("nothing", 3) == ()


def test_embeddings_belong_to_one_version_and_to_what_lives(world: Any, opened: Open) -> None:
    memory = filled(world, opened)
    everything = frozenset(sample.key for sample in memory.samples())
    angles(memory, {"t0": 0, "t1": 10}, version="old")
    assert len(memory.embedded("old")) == 2
    assert memory.embedded("new") == frozenset()
    memory.embed("new", [*everything, "unknown"], np.ones((7, 3), dtype=np.float32))
    assert (memory.embedded("old"), memory.embedded("new")) == (frozenset(), everything)
    assert memory.embedding_space() == "new"
    memory.ingest(world.page([world.feedback("0", "b", at=9)], start=50))
    assert len(memory.embedded("new")) == 5
    memory.ingest(world.page([world.feedback("0", "a", at=10)], start=51))
    assert len(memory.embedded("new")) == 5  # it is embedded anew when it comes back


def test_a_sample_that_shows_another_text_is_embedded_anew(world: Any, opened: Open) -> None:
    memory = opened(world.labelled("0", "hello", "a"))
    angles(memory, {"hello": 0})
    number = 1
    while memory.samples()[0].text == "hello":
        memory.ingest(world.page(world.labelled(f"{number}", "HELLO", "a"), start=9 + number))
        number += 1
    assert memory.embedded("v") == frozenset()


def test_shapes_and_values_are_checked(world: Any, opened: Open) -> None:
    memory = filled(world, opened)
    keys = [sample.key for sample in memory.samples()]
    with pytest.raises(UsageError, match="6 keys need as many vectors"):
        memory.embed("v", keys, np.ones((5, 2), dtype=np.float32))
    with pytest.raises(UsageError, match="not finite"):
        memory.embed("v", keys[:1], np.full((1, 2), np.nan, dtype=np.float32))
    memory.embed("v", keys, np.ones((6, 2), dtype=np.float32))
    with pytest.raises(UsageError, match="2 dimensions, but got 3"):
        memory.embed("v", keys, np.ones((6, 3), dtype=np.float32))
    with pytest.raises(UsageError, match="queries have 3 dimensions"):
        memory.neighbours(np.ones((1, 3), dtype=np.float32), 2)
    with pytest.raises(UsageError, match="k = 0"):
        memory.neighbours(np.ones((1, 2), dtype=np.float32), 0)
    assert len(memory.embedded("v")) == 6


def test_without_faiss_the_message_names_the_extras(world: Any, opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = filled(world, opened)
    angles(memory, {"t0": 0, "t1": 10})
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(UsageError, match=r"perdure\[cpu\] or perdure\[gpu\]"):
        memory.neighbours(directions(0), 1)
    assert memory.counts().samples == 6
