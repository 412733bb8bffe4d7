"""The EWC anchor over time: through a restart, past a change of shape, as labels come, go and return."""

from __future__ import annotations

import dataclasses
import logging
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from perdure.config import LoraSettings, Settings
from perdure.learn.analytic import HeadLearner
from perdure.learn.candidate import Candidate
from perdure.learn.carried import load_anchor, origin_of
from perdure.learn.challenger import Challenger
from perdure.learn.ewc import Anchor
from perdure.learn.lora import HEAD, LoraLearner, Origin, TrainingSet, Update
from perdure.learn.material import Material
from perdure.learn.seen import Seen
from perdure.memory import Delta
from perdure.model.classifier import AnalyticClassifier, load_classifier
from perdure.model.encoder import Encoder, load_encoder
from perdure.model.head import Statistics
from perdure.records import Sample

LABELS = ("card", "login", "parcel")
Pairs = Sequence[tuple[str, str]]
MaterialOf = Callable[..., Material]
Requests = Callable[..., list[tuple[str, str]]]
Learn = Callable[..., Update]

RESTARTED = """
import sys
from pathlib import Path
from safetensors.torch import load_file, save_file
from perdure.learn.carried import load_anchor
folder, moved, found = map(Path, sys.argv[1:])
theta = {name: value.requires_grad_() for name, value in load_file(moved).items()}
penalty = load_anchor(folder).penalty(theta)
penalty.backward()
save_file({"penalty": penalty.detach(), **{f"grad/{name}": value.grad for name, value in theta.items()}}, found)
"""


def theta_of(update: Update) -> dict[str, Tensor]:
    theta = {
        name: update.shape.scale * (update.weights[f"{name}.B"] @ update.weights[f"{name}.A"])
        for name in update.shape.targets
    }
    return {**theta, HEAD: update.weights[HEAD]}


@dataclasses.dataclass
class Versions:
    """A head, then a LoRA version on it, each written and read as a promotion would."""

    encoder: Encoder
    settings: Settings
    material_of: MaterialOf
    folder: Path
    updates: list[Update] = dataclasses.field(default_factory=list)

    def first(self, pairs: Pairs) -> tuple[Candidate, AnalyticClassifier]:
        learner = HeadLearner(self.encoder, self.settings)
        statistics = Statistics(self.settings.model.features)
        features = self.encoder.features([text for text, _ in pairs], 16)
        learner.absorb(statistics, [Delta(0, text, label, 1) for text, label in pairs], features)
        classes = dict.fromkeys(sorted({label for _, label in pairs}), 1)
        made = learner.candidate(statistics, classes, self.material_of(pairs), None, None, {}, "v1")
        return made, self.kept(made)

    def lora(
        self, pairs: Pairs, past: Pairs, champion: AnalyticClassifier, head: Candidate, name: str, **changed: Any
    ) -> Candidate:
        settings = self.settings.with_values({f"lora.{key}": value for key, value in changed.items()})

        def representatives(label: str, k: int) -> tuple[Sample, ...]:
            return tuple(one for one in material.samples if one.label == label and not one.held_out)[:k]

        material = self.material_of(pairs, past)
        made = Challenger(self.encoder, settings).candidate(
            material,
            champion,
            head.leverage,
            origin_of(champion, self.folder / champion.version),
            Seen(),
            representatives,
            {},
            name,
        )
        assert made is not None
        return made

    def kept(self, candidate: Candidate) -> AnalyticClassifier:
        folder = self.folder / candidate.classifier.version
        folder.mkdir()
        for name, data in candidate.files().items():
            (folder / name).write_bytes(data)
        return load_classifier(folder, candidate.classifier.version, batch=self.settings.model.batch)


@pytest.fixture
def versions(
    encoder: Encoder, settings: Settings, material_of: MaterialOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Versions:
    made = Versions(encoder, settings, material_of, tmp_path)
    learn = LoraLearner.update

    def spy(learner: LoraLearner, data: TrainingSet, champion: Origin | None) -> Update:
        made.updates.append(learn(learner, data, champion))
        return made.updates[-1]

    monkeypatch.setattr(LoraLearner, "update", spy)
    return made


@pytest.fixture
def learn(encoder: Encoder, settings: Settings) -> Learn:
    def run(pairs: Pairs, before: Update | None = None, **changed: Any) -> Update:
        lora = LoraSettings.model_validate({**settings.lora.model_dump(), **changed})
        data = TrainingSet(tuple(text for text, _ in pairs), tuple(label for _, label in pairs), len(pairs))
        champion = Origin(before.shape, before.weights, before.labels, before.anchor) if before else None
        return LoraLearner(encoder, lora, seed=0).update(data, champion)

    return run


# ── a restart ──
def test_a_new_process_is_held_by_the_same_penalty(versions: Versions, requests: Requests, tmp_path: Path) -> None:
    past, now = requests(LABELS, 10), requests(LABELS, 10, skip=10)
    head, champion = versions.first(past)
    versions.kept(versions.lora(now, past, champion, head, "v2"))
    (update,) = versions.updates
    generator = torch.Generator().manual_seed(0)
    moved = {
        name: (value + 0.1 * value.std() * torch.randn(value.shape, generator=generator)).detach().clone()
        for name, value in theta_of(update).items()
    }
    save_file(moved, tmp_path / "moved.safetensors")
    subprocess.run(
        [sys.executable, "-c", RESTARTED, tmp_path / "v2", tmp_path / "moved.safetensors", tmp_path / "found"],
        check=True,
        timeout=120,
    )
    found = load_file(tmp_path / "found")

    anchor = update.anchor
    theta = {name: value.clone().requires_grad_() for name, value in moved.items()}
    penalty = anchor.penalty(theta)
    penalty.backward()  # type: ignore[no-untyped-call]
    assert penalty.item() > 0
    # A bfloat16 is off by at most 2⁻⁸ of itself: the information everywhere, the anchor everywhere but in the head.
    off, slack = 2.0**-8, 0.0
    for name, value in theta.items():
        fisher, distance = anchor.fisher[name], (moved[name] - anchor.theta[name]).abs()
        blur = torch.zeros_like(distance) if name == HEAD else off * anchor.theta[name].abs()
        bound = fisher * (off * distance + (1 + off) * blur)
        assert value.grad is not None
        assert bool(((found[f"grad/{name}"] - value.grad).abs() <= bound + 1e-6 * value.grad.abs() + 1e-12).all()), name
        assert float(found[f"grad/{name}"].abs().max()) > 0
        slack += float((0.5 * (1 + off) * fisher * ((distance + blur) ** 2 - distance**2)).sum())
    assert abs(float(found["penalty"]) - penalty.item()) <= off * penalty.item() + slack
    assert slack < 0.2 * penalty.item(), "so wide a bound says nothing"


def test_the_next_update_is_the_same_from_files_as_from_memory(
    versions: Versions, requests: Requests, encoder: Encoder, settings: Settings
) -> None:
    past, now, later = requests(LABELS, 8), requests(LABELS, 8, skip=8), requests(LABELS, 8, skip=16)
    head, champion = versions.first(past)
    read = versions.kept(versions.lora(now, past, champion, head, "v2"))
    (update,) = versions.updates
    assert read.adapted is not None
    weights = {**read.adapted.adapter.weights, HEAD: torch.from_numpy(read.adapted.weights)}
    anchor = load_anchor(versions.folder / "v2")
    data = TrainingSet(tuple(text for text, _ in later), tuple(label for _, label in later), len(later))
    strong = settings.lora.model_copy(update={"ewc": 1e4})
    one, other = (
        LoraLearner(encoder, strong, seed=1).update(data, Origin(update.shape, given, update.labels, kept))
        for given, kept in ((weights, anchor), (update.weights, update.anchor))
    )
    free = LoraLearner(encoder, strong.model_copy(update={"ewc": 0.0}), seed=1).update(
        data, Origin(update.shape, weights, update.labels, anchor)
    )
    apart = {name: float((one.weights[name] - other.weights[name]).norm()) for name in one.weights}
    led = {name: float((one.weights[name] - free.weights[name]).norm()) for name in one.weights}
    # What rounding the anchor does to an update is small beside what the anchor does.
    assert sum(apart.values()) < 0.25 * sum(led.values())
    assert one.penalty == pytest.approx(other.penalty, rel=0.2)
    for name, value in one.anchor.fisher.items():
        assert float((value - other.anchor.fisher[name]).norm() / value.norm()) < 0.1


# ── another shape ──
def changed_targets(champion: Origin) -> Origin:
    shape = champion.shape
    return dataclasses.replace(champion, shape=dataclasses.replace(shape, targets=shape.targets[:-1]))


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"rank": 3}, "rank was 2 and is 3"),
        ({"alpha": 8}, "alpha was 4 and is 8"),
        ({"layers": 1}, "layers was 2 and is 1"),
        ({"targets": 11}, "targets lost 0 maps and gained 1 ("),
        ({"rank": 4, "alpha": 2}, "rank was 2 and is 4; alpha was 4 and is 2"),
    ],
)
def test_state_of_another_shape_is_dropped_with_a_reason(
    versions: Versions,
    tiny_encoder: Path,
    requests: Requests,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    changed: dict[str, int],
    reason: str,
) -> None:
    past, now, later = requests(LABELS, 8), requests(LABELS, 8, skip=8), requests(LABELS, 8, skip=16)
    head, champion = versions.first(past)
    champion = versions.kept(versions.lora(now, past, champion, head, "v2"))
    lora = dict(changed)
    if lora.pop("layers", None):
        versions.encoder = load_encoder(str(tiny_encoder), max_tokens=32, adapted_layers=1)
    if lora.pop("targets", None):
        update = LoraLearner.update
        monkeypatch.setattr(
            LoraLearner, "update", lambda learner, data, before: update(learner, data, changed_targets(before))
        )
    with caplog.at_level(logging.WARNING):
        candidate = versions.lora(later, [*past, *now], champion, head, "v3", **lora)
    told = versions.updates[-1]
    (note,) = candidate.notes
    assert note.startswith("The earlier adapter and EWC anchor were not used: ")
    assert reason in note
    # A person who reads the log learns the same.
    assert f"the earlier adapter and EWC anchor are not used: {reason}" in caplog.text
    assert candidate.metrics["ewc_penalty"] == 0
    # What is written speaks of the new shape, and of nothing before it.
    versions.kept(candidate)
    anchor = load_anchor(versions.folder / "v3")
    assert anchor is not None
    assert set(anchor.fisher) == {*told.shape.targets, HEAD}
    assert anchor.samples == told.anchor.samples


def test_the_same_shape_keeps_its_state(
    versions: Versions, requests: Requests, caplog: pytest.LogCaptureFixture
) -> None:
    past, now, later = requests(LABELS, 8), requests(LABELS, 8, skip=8), requests(LABELS, 8, skip=16)
    head, champion = versions.first(past)
    champion = versions.kept(versions.lora(now, past, champion, head, "v2"))
    with caplog.at_level(logging.WARNING):
        # What an update's course depends on is no part of the shape.
        candidate = versions.lora(later, [*past, *now], champion, head, "v3", epochs=1, learning_rate=1e-3, ewc=10.0)
    assert candidate.notes == ()
    assert candidate.metrics["ewc_penalty"] > 0
    assert "EWC" not in caplog.text


# ── heads that grow ──
def row_of(update: Update, label: str) -> Tensor:
    return update.weights[HEAD][update.labels.index(label)]


def information(anchor: Anchor, update: Update, label: str) -> Tensor:
    return anchor.fisher[HEAD][update.labels.index(label)]


def test_a_label_is_free_when_it_comes_and_held_from_then_on(learn: Learn, requests: Requests) -> None:
    first = learn(requests(("card", "login"), 10))
    assert first.anchor.fisher[HEAD].shape == (2, 32)
    # It comes before the others in the order of names, so that their rows must move.
    grown = learn([*requests(("card", "login"), 8, skip=10), *_named(requests(("parcel",), 10), "a new one")], first)
    assert grown.labels == ("a new one", "card", "login")
    for label in ("card", "login"):
        assert bool((information(grown.anchor, grown, label) >= 0.9 * information(first.anchor, first, label)).all())
    assert float(information(grown.anchor, grown, "a new one").max()) > 0
    # From here on a strong penalty keeps its row, which was free before.
    after = [*requests(("card", "login"), 8, skip=20), *_named(requests(("refund",), 8), "a new one")]
    free, held = (learn(after, grown, ewc=strength) for strength in (0.0, 1e6))
    moved = [float((row_of(one, "a new one") - row_of(grown, "a new one")).norm()) for one in (free, held)]
    assert moved[1] < 0.5 * moved[0]


def test_a_label_that_went_and_returns_goes_on_where_it_was(learn: Learn, requests: Requests) -> None:
    first = learn(requests(LABELS, 10))
    away = first
    for skip in (10, 16):
        previous, away = away, learn(requests(("card", "login"), 6, skip=skip), away)
        assert away.labels == LABELS
        # Its information fades by γ and is never lost; other labels' rows add a little, as softmax ties them together.
        before, now = (information(one.anchor, one, "parcel") for one in (previous, away))
        assert bool((now >= 0.9 * before * (1 - 1e-6)).all())
        assert float((now - 0.9 * before).max()) > 0
    back = learn(requests(LABELS, 6, skip=22), away, learning_rate=1e-12)
    # Its row is the champion's, not made anew from its mean embedding.
    torch.testing.assert_close(row_of(back, "parcel"), row_of(away, "parcel"), rtol=0, atol=1e-7)
    assert back.dropped is None


def test_a_label_that_is_away_is_held(learn: Learn, requests: Requests) -> None:
    first = learn(requests(LABELS, 10))
    free, held = (learn(requests(("card", "login"), 12, skip=10), first, ewc=strength) for strength in (0.0, 1e6))
    moved = [float((row_of(one, "parcel") - row_of(first, "parcel")).norm()) for one in (free, held)]
    assert moved[0] > 0
    assert moved[1] < 0.5 * moved[0]


def _named(pairs: Pairs, label: str) -> list[tuple[str, str]]:
    return [(text, label) for text, _ in pairs]
