from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load
from safetensors.torch import save_file

from perdure.config import Settings
from perdure.errors import VersionDamaged
from perdure.judge.evidence import traffic_weights
from perdure.learn.analytic import HeadLearner
from perdure.learn.blend import Unseen, unseen_blend, unseen_sharpened
from perdure.learn.candidate import Candidate
from perdure.learn.carried import EWC_FILE, carried_files, load_anchor, origin_of
from perdure.learn.challenger import Challenger
from perdure.learn.gate import Gated
from perdure.learn.leverage import LEVERAGE_FILE, Leverage, unseen_scores
from perdure.learn.lora import HEAD, LoraLearner, Origin, Trained, TrainingSet, Update
from perdure.learn.material import Encodings, Labelled, Material
from perdure.learn.seen import SEEN_FILE, Seen
from perdure.memory import Delta
from perdure.model.adapter import Adapter
from perdure.model.classifier import AdaptedHead, AnalyticClassifier, load_classifier
from perdure.model.encoder import Encoder, load_encoder
from perdure.model.head import Statistics
from perdure.model.layout import ADAPTER_FILE, HEAD_FILE, MODEL_FILE
from perdure.records import Sample, is_early, is_held_out, sample_key

LABELS = ("card", "login", "parcel")
Pairs = Sequence[tuple[str, str]]
MaterialOf = Callable[..., Material]
Requests = Callable[..., list[tuple[str, str]]]


@dataclasses.dataclass
class Turns:
    """Makes versions turn by turn, and keeps what each LoRA update was given."""

    encoder: Encoder
    settings: Settings
    material_of: MaterialOf
    folder: Path
    given: list[tuple[TrainingSet, Origin | None]] = dataclasses.field(default_factory=list)
    """Of each update: its rows, those of both halves together, and what the first half went on from."""
    halves: list[tuple[TrainingSet, Origin | None]] = dataclasses.field(default_factory=list)
    """The same of each half; of an update at once, of that."""
    updates: list[Update] = dataclasses.field(default_factory=list)
    progress: Callable[[int, int], None] | None = None

    def head(
        self,
        pairs: Pairs,
        champion: AnalyticClassifier | None = None,
        past: Pairs = (),
        name: str = "v1",
        samples: Sequence[Sample] | None = None,
    ) -> Candidate:
        """A head that has absorbed both `past` and `pairs`; memory holds both, or `samples` alone."""
        learner = HeadLearner(self.encoder, self.settings)
        statistics, everything = Statistics(self.settings.model.features), [*past, *pairs]
        features = self.encoder.features([text for text, _ in everything], 16)
        learner.absorb(statistics, [Delta(0, text, label, 1) for text, label in everything], features)
        classes = dict.fromkeys(sorted({label for _, label in everything}), 1)
        return learner.candidate(
            statistics,
            classes,
            self.material(pairs, past, champion)
            if samples is None
            else dataclasses.replace(self.material(pairs, past, champion), samples=tuple(samples)),
            champion,
            Leverage.load(self.at(champion.version)) if champion else None,
            carried_files(self.at(champion.version)) if champion else {},
            name,
        )

    def lora(
        self, material: Material, champion: AnalyticClassifier, leverage: Leverage, name: str = "v2", **changed: object
    ) -> Candidate | None:
        settings = self.settings.with_values({f"lora.{key}": value for key, value in changed.items()})
        challenger = Challenger(self.encoder, settings, self.progress)
        samples = material.samples

        def representatives(label: str, k: int) -> tuple[Sample, ...]:
            return tuple(one for one in samples if one.label == label and not one.held_out)[:k]

        origin, seen = origin_of(champion, self.at(champion.version)), Seen.load(self.at(champion.version))
        counts = Counter(one.label for one in samples)
        return challenger.candidate(material, champion, leverage, origin, seen, representatives, counts, name)

    def begun(self, past: Pairs, now: Pairs) -> tuple[AnalyticClassifier, Leverage]:
        """A champion with an adapter that `past` was replayed to, and whose head knows `now` too."""
        half = len(past) // 2
        first = self.head(past[half:], past=past[:half], name="before")
        second = self.lora(self.material(past[half:], past[:half]), self.keep(first), first.leverage, "begun")
        assert second is not None
        champion = self.keep(second)
        third = self.head(now, champion, past, "v1")
        self.given.clear()
        self.halves.clear()
        self.updates.clear()
        return self.keep(third), third.leverage

    def material(self, pairs: Pairs, past: Pairs = (), champion: AnalyticClassifier | None = None) -> Material:
        adapter = champion.adapted.adapter if champion and champion.adapted else None
        return self.material_of(pairs, past, encodings=Encodings(self.encoder, adapter, self.settings.model.batch))

    def at(self, version: str) -> Path:
        return self.folder / version

    def keep(self, candidate: Candidate) -> AnalyticClassifier:
        """Writes the candidate, as a promotion would, and reads it back."""
        folder = self.at(candidate.classifier.version)
        folder.mkdir(exist_ok=True)
        for name, data in candidate.files().items():
            (folder / name).write_bytes(data)
        return load_classifier(folder, candidate.classifier.version, batch=self.settings.model.batch)


@pytest.fixture
def turns(
    encoder: Encoder, settings: Settings, material_of: MaterialOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Turns:
    made = Turns(encoder, settings, material_of, tmp_path)
    train, learn = LoraLearner.train, LoraLearner.update
    first: list[tuple[TrainingSet, Origin | None]] = []

    def spy_first(learner: LoraLearner, data: TrainingSet, origin: Origin | None) -> Trained:
        made.halves.append((data, origin))
        first.append((data, origin))
        return train(learner, data, origin)

    def spy(learner: LoraLearner, data: TrainingSet, origin: Origin | None) -> Update:
        made.halves.append((data, origin))
        before, began = first.pop() if first else (TrainingSet((), (), 0), origin)
        made.given.append((together(before, data), began))
        made.updates.append(learn(learner, data, origin))
        return made.updates[-1]

    monkeypatch.setattr(LoraLearner, "train", spy_first)
    monkeypatch.setattr(LoraLearner, "update", spy)
    return made


def together(one: TrainingSet, other: TrainingSet) -> TrainingSet:
    """Fresh rows of both, then replayed rows of both."""
    texts, labels = (
        mine[: one.fresh] + theirs[: other.fresh] + mine[one.fresh :] + theirs[other.fresh :]
        for mine, theirs in ((one.texts, other.texts), (one.labels, other.labels))
    )
    return TrainingSet(texts, labels, one.fresh + other.fresh)


def held_out(pairs: Pairs, settings: Settings) -> set[tuple[str, str]]:
    share = settings.memory.holdout_share
    return {(text, label) for text, label in pairs if is_held_out(sample_key(label, text), share)}


def trained_on(data: TrainingSet) -> Counter[tuple[str, str]]:
    return Counter(zip(data.texts, data.labels, strict=True))


# ── what it trains on, and what it is judged by ──
def test_a_candidate_is_judged_by_rows_that_it_was_not_trained_on(turns: Turns, requests: Requests) -> None:
    past, now = requests(LABELS, 16), requests(LABELS, 12, skip=16)
    first = turns.head(now, past=past)
    champion = turns.keep(first)
    material = turns.material(now, past)
    candidate = turns.lora(material, champion, first.leverage)
    assert candidate is not None
    ((data, before),) = turns.given
    assert before is None
    everything = [*past, *now]
    barred = held_out(everything, turns.settings)
    assert len(barred) > 6
    trained = trained_on(data)
    assert set(trained) == set(everything) - barred
    assert set(trained.values()) == {1}
    fresh = set(zip(data.texts[: data.fresh], data.labels[: data.fresh], strict=True))
    assert fresh == set(now) - barred
    evidence = candidate.evidence
    sources = dict(zip(zip(evidence.texts, evidence.truth, strict=True), evidence.source, strict=True))
    assert len(sources) == len(evidence)
    assert {pair for pair, source in sources.items() if source != "halfway"} == barred
    assert {pair for pair, source in sources.items() if source == "fresh"} == held_out(now, turns.settings)
    assert {pair for pair, source in sources.items() if source == "held_out"} == held_out(past, turns.settings)
    assert "leave_one_out" not in evidence.source
    assert candidate.metrics["trained_rows"] == data.fresh
    assert candidate.metrics["replayed_rows"] == len(data.texts) - data.fresh


def test_half_of_the_rows_are_asked_of_an_adapter_that_knows_the_other_half(turns: Turns, requests: Requests) -> None:
    past, now = requests(LABELS, 16), requests(LABELS, 12, skip=16)
    champion, leverage = turns.begun(past, now)
    candidate = turns.lora(turns.material(now, past, champion), champion, leverage)
    assert candidate is not None
    (early, began), (late, halfway) = turns.halves
    assert began is not None
    assert {is_early(sample_key(label, text)) for text, label in trained_on(early)} == {True}
    assert {is_early(sample_key(label, text)) for text, label in trained_on(late)} == {False}
    asked = [row for row, source in enumerate(candidate.evidence.source) if source == "halfway"]
    rows = {(candidate.evidence.texts[row], candidate.evidence.truth[row]) for row in asked}
    assert rows == set(zip(late.texts[: late.fresh], late.labels[: late.fresh], strict=True))
    assert len(rows) >= 8
    # What it says of them is what the adapter said then, and not what it says now.
    assert halfway is not None
    adapter = Adapter(turns.encoder, halfway.shape, halfway.weights)
    # What is held out advises how it is blended, too, as it does for the finished adapter.
    order = [*asked, *(row for row, source in enumerate(candidate.evidence.source) if source != "halfway")]
    labelled = Labelled.of([(candidate.evidence.texts[row], candidate.evidence.truth[row]) for row in order])
    features = turns.encoder.features(labelled.texts, 16)
    scores = unseen_scores(champion, leverage, features, labelled.keys, labelled.labels)
    weights = traffic_weights(labelled.labels, Counter(label for _, label in past))
    unseen = Unseen(scores, adapter.embeddings(labelled.texts, 16), labelled.labels, weights)
    head = AdaptedHead(adapter, halfway.labels, halfway.weights[HEAD].numpy(), 16.0, 0.5)
    wanted = unseen_blend(champion, head, unseen, turns.settings.lora.shares).probabilities
    wanted = wanted[: len(asked)]
    np.testing.assert_allclose(candidate.evidence.candidate.probabilities[asked], wanted, atol=1e-4)
    assert np.abs(candidate.classifier.scores(labelled.texts[: len(asked)]).probabilities - wanted).max() > 1e-2
    assert candidate.metrics["trained_rows"] == early.fresh + late.fresh
    assert candidate.metrics["replayed_rows"] == len(early.texts) + len(late.texts) - early.fresh - late.fresh


def test_the_second_half_goes_on_from_the_first_and_is_held_to_what_was_before_both(
    turns: Turns, requests: Requests
) -> None:
    past, now, later = (requests(LABELS, 12, skip=skip) for skip in (0, 12, 24))
    first = turns.head(past)
    second = turns.lora(turns.material(now, past), turns.keep(first), first.leverage)
    assert second is not None
    champion = turns.keep(second)
    turns.lora(turns.material(later, [*past, *now], champion), champion, second.leverage, "v3")
    (_, began), (_, halfway) = turns.halves[-2:]
    assert began is not None
    assert halfway is not None
    assert began.anchor is not None
    assert halfway.anchor is not None
    for name, value in began.anchor.theta.items():
        assert torch.equal(halfway.anchor.theta[name], value)
        assert torch.equal(halfway.anchor.fisher[name], began.anchor.fisher[name])
    assert any(not torch.equal(halfway.weights[name], value) for name, value in began.weights.items())


def test_rows_that_have_come_before_are_not_asked_halfway(turns: Turns, requests: Requests) -> None:
    """The adapter may know them from an earlier update."""
    past, now, later = (requests(LABELS, 12, skip=skip) for skip in (0, 12, 24))
    first = turns.head(past)
    second = turns.lora(turns.material(now, past), turns.keep(first), first.leverage)
    assert second is not None
    champion = turns.keep(second)
    third = turns.lora(turns.material([*now, *later], past, champion), champion, second.leverage, "v3")
    assert third is not None
    asked = {
        text for text, source in zip(third.evidence.texts, third.evidence.source, strict=True) if source == "halfway"
    }
    assert asked
    assert asked <= {text for text, _ in later}


def test_each_label_is_judged_as_often_as_it_has_come(turns: Turns, requests: Requests) -> None:
    past, now = requests(LABELS, 12), requests(LABELS[:1], 40, skip=12)
    champion, leverage = turns.begun(past, now)
    candidate = turns.lora(turns.material(now, past, champion), champion, leverage)
    assert candidate is not None
    evidence = candidate.evidence
    assert evidence.counts == Counter(one.label for one in turns.material(now, past).samples)
    assert Counter(evidence.truth)["card"] > 3 * Counter(evidence.truth)["login"]


def test_what_the_gate_skips_is_asked_halfway_too(turns: Turns, material_of: MaterialOf, requests: Requests) -> None:
    """What surprises alone would be the champion's worst side. What is in quarantine is no evidence."""
    past, now = requests(LABELS, 12), requests(LABELS, 24, skip=12)
    champion, leverage = turns.begun(past, now)
    actions = ["learn", "skip", "quarantine", "skip"] * (len(now) // 4)
    assert champion.adapted is not None
    encodings = Encodings(turns.encoder, champion.adapted.adapter, turns.settings.model.batch)
    candidate = turns.lora(material_of(now, past, actions=actions, encodings=encodings), champion, leverage)
    assert candidate is not None
    taken = [pair for pair, action in zip(now, actions, strict=True) if action != "quarantine"]
    late = {pair for pair in taken if not is_early(sample_key(pair[1], pair[0]))} - held_out(now, turns.settings)
    asked = zip(candidate.evidence.texts, candidate.evidence.truth, candidate.evidence.source, strict=True)
    assert {(text, label) for text, label, source in asked if source == "halfway"} == late


def test_few_rows_are_trained_on_at_once(turns: Turns, requests: Requests) -> None:
    past, now = requests(LABELS, 10), requests(LABELS, 10, skip=10)
    champion, leverage = turns.begun(past, now)
    early = [is_early(sample_key(label, text)) for text, label in set(now) - held_out(now, turns.settings)]
    least = min(sum(early), len(early) - sum(early))
    for rows, halves in ((least, 2), (least + 1, 1)):
        turns.halves.clear()
        candidate = turns.lora(turns.material(now, past, champion), champion, leverage, min_rows=rows)
        assert candidate is not None
        assert len(turns.halves) == halves
        assert ("halfway" in candidate.evidence.source) == (halves == 2)


def test_an_adapter_begins_with_all_rows_at_once(turns: Turns, requests: Requests) -> None:
    past, now = requests(LABELS, 16), requests(LABELS, 16, skip=16)
    first = turns.head(past)
    candidate = turns.lora(turns.material(now, past), turns.keep(first), first.leverage)
    assert candidate is not None
    assert len(turns.halves) == 1
    assert "halfway" not in candidate.evidence.source


def test_an_adapter_of_which_nobody_knows_what_it_saw_is_trained_at_once(turns: Turns, requests: Requests) -> None:
    """It was made before versions kept that. Any row of this turn may be one that it has learned from."""
    past, now = requests(LABELS, 16), requests(LABELS, 16, skip=16)
    champion, leverage = turns.begun(past, now)
    (turns.at(champion.version) / SEEN_FILE).unlink()
    candidate = turns.lora(turns.material(now, past, champion), champion, leverage)
    assert candidate is not None
    assert len(turns.halves) == 1


def test_an_adapter_that_begins_anew_begins_with_all_rows(turns: Turns, requests: Requests) -> None:
    past, now = requests(LABELS, 16), requests(LABELS, 16, skip=16)
    champion, leverage = turns.begun(past, now)
    candidate = turns.lora(turns.material(now, past, champion), champion, leverage, rank=3)
    assert candidate is not None
    assert len(turns.halves) == 1


def test_a_label_with_no_row_in_the_second_half_is_replayed_there(turns: Turns, requests: Requests) -> None:
    past, now = requests(LABELS, 16), requests(LABELS, 16, skip=16)
    champion, leverage = turns.begun(past, now)
    early = [pair for pair in now if pair[1] != "card" or is_early(sample_key(pair[1], pair[0]))]
    here = turns.material(early, past, champion)
    samples = tuple(one for one in here.samples if one.label != "card" or is_early(one.key))
    candidate = turns.lora(dataclasses.replace(here, samples=samples), champion, leverage)
    assert candidate is not None
    (first, _), (second, _) = turns.halves
    cards = {text for text, label in trained_on(first) if label == "card"}
    assert cards
    assert {text for text, label in trained_on(second) if label == "card"} == cards
    assert "card" not in second.labels[: second.fresh]
    asked = {
        text
        for text, source in zip(candidate.evidence.texts, candidate.evidence.source, strict=True)
        if source == "halfway"
    }
    assert not asked & cards


def test_no_more_rows_are_asked_halfway_than_an_update_learns_from(turns: Turns, requests: Requests) -> None:
    past, now = requests(LABELS, 16), requests(LABELS, 16, skip=16)
    champion, leverage = turns.begun(past, now)
    candidate = turns.lora(turns.material(now, past, champion), champion, leverage, fresh_rows=12, min_rows=2)
    assert candidate is not None
    assert candidate.evidence.source.count("halfway") == 12


def test_progress_counts_the_steps_of_both_halves(turns: Turns, requests: Requests) -> None:
    past, now = requests(LABELS, 16), requests(LABELS, 16, skip=16)
    champion, leverage = turns.begun(past, now)
    told: list[float] = []
    turns.progress = lambda step, steps: told.append(step / steps)
    candidate = turns.lora(turns.material(now, past, champion), champion, leverage)
    assert candidate is not None
    assert told == sorted(told)
    assert len(told) == candidate.metrics["steps"]
    assert 0 < told[0] < 0.5
    assert told[-1] == 1.0


def test_evidence_shows_the_head_without_its_row_on_both_sides(turns: Turns, requests: Requests) -> None:
    past, now = requests(LABELS, 16), requests(LABELS, 12, skip=16)
    first = turns.head(now, past=past)
    champion = turns.keep(first)
    candidate = turns.lora(turns.material(now, past), champion, first.leverage)
    assert candidate is not None
    assert candidate.kind == "lora"
    evidence, classifier = candidate.evidence.finished(), candidate.classifier
    assert classifier.adapted is not None
    rows = Labelled.of(list(zip(evidence.texts, evidence.truth, strict=True)))
    scores = unseen_scores(champion, first.leverage, turns.encoder.features(rows.texts, 16), rows.keys, rows.labels)
    assert evidence.champion is not None
    embeddings = classifier.adapted.adapter.embeddings(rows.texts, 16)
    weights = traffic_weights(rows.labels, Counter(label for _, label in past))
    # It may doubt itself as far as the candidate was fitted to be sure.
    beside = unseen_sharpened(champion, None, Unseen(scores, embeddings, rows.labels, weights))
    np.testing.assert_allclose(evidence.champion.probabilities, beside.probabilities, atol=1e-4)
    np.testing.assert_allclose(
        evidence.candidate.probabilities, classifier.combine(scores, embeddings).probabilities, atol=1e-4
    )
    assert np.abs(champion.scores(evidence.texts).probabilities - evidence.champion.probabilities).max() > 1e-3


def test_the_head_has_not_seen_fresh_rows_that_memory_did_not_take(turns: Turns, requests: Requests) -> None:
    past, now = requests(LABELS, 16), requests(LABELS, 12, skip=16)
    full = turns.material(now, past)
    bounded = dataclasses.replace(full, samples=full.samples[: len(past)])
    learned = turns.head(now, past=past, samples=bounded.samples)
    champion = turns.keep(learned)
    candidate = turns.lora(bounded, champion, Leverage.load(turns.at(champion.version)))
    assert candidate is not None
    assert candidate.evidence.champion is not None
    fresh = [row for row, source in enumerate(candidate.evidence.source) if source == "fresh"]
    texts = [candidate.evidence.texts[row] for row in fresh]
    seen = champion.scores(texts).probabilities
    assert (np.abs(candidate.evidence.champion.probabilities[fresh] - seen).max(axis=1) > 1e-3).all()


def test_what_the_gate_lets_through_is_learned(turns: Turns, material_of: MaterialOf, requests: Requests) -> None:
    past, now = requests(LABELS, 10), requests(LABELS, 10, skip=10)
    first = turns.head(past)
    champion = turns.keep(first)
    material = material_of(
        now, past, actions=["learn"] * 10 + ["skip"] * 5 + ["quarantine"] * 5 + ["pseudo"] * 5 + ["ignore"] * 5
    )
    turns.lora(material, champion, first.leverage)
    ((data, _),) = turns.given
    barred = held_out(now, turns.settings)
    fresh = set(zip(data.texts[: data.fresh], data.labels[: data.fresh], strict=True))
    assert fresh == {*now[:10], *now[20:25]} - barred
    trained = set(trained_on(data))
    assert not trained & set(now[15:20])
    assert set(past) - held_out(past, turns.settings) <= trained
    # Rows that were skipped, but are in memory by now, may be replayed like any other.
    assert trained - fresh <= {*past, *now[10:15], *now[25:]}


def test_labels_that_the_champion_does_not_know_wait(turns: Turns, requests: Requests) -> None:
    past, now = requests(LABELS, 10), requests((*LABELS, "refund"), 8, skip=10)
    first = turns.head(past)
    candidate = turns.lora(turns.material(now, past), turns.keep(first), first.leverage)
    assert candidate is not None
    assert set(turns.given[0][0].labels) == set(candidate.evidence.truth) == set(LABELS)
    assert candidate.classifier.labels == LABELS


def test_the_cost_of_an_update_is_bounded(turns: Turns, requests: Requests) -> None:
    past, now = requests(LABELS, 20), requests(LABELS, 20, skip=20)
    first = turns.head(past)
    turns.lora(turns.material(now, past), turns.keep(first), first.leverage, fresh_rows=9, replay_rows=6)
    ((data, _),) = turns.given
    assert data.fresh <= 9
    assert len(data.texts) - data.fresh <= 6
    counts = Counter(data.labels[: data.fresh])
    assert max(counts.values()) <= 3
    assert Counter(data.labels[data.fresh :]) == dict.fromkeys(LABELS, 2)


def test_without_replay_an_update_trains_on_what_is_new_alone(turns: Turns, requests: Requests) -> None:
    past, now = requests(LABELS, 20), requests(LABELS[:2], 20, skip=20)
    first = turns.head(past)
    candidate = turns.lora(turns.material(now, past), turns.keep(first), first.leverage, replay_rows=0)
    assert candidate is not None
    ((data, _),) = turns.given
    assert len(data.texts) == data.fresh > 0
    assert set(data.labels) == set(LABELS[:2])
    assert candidate.metrics["replayed_rows"] == 0
    assert set(candidate.evidence.truth) == set(LABELS), "what is judged by may not shrink with what is replayed"


@pytest.mark.parametrize(("rows", "made"), [(11, True), (12, False)])
def test_too_few_rows_to_learn_from_make_no_candidate(turns: Turns, requests: Requests, rows: int, made: bool) -> None:
    past = requests(LABELS, 10)
    now = [pair for pair in requests(LABELS, 20, skip=10) if not held_out([pair], turns.settings)][:11]
    first = turns.head(past)
    candidate = turns.lora(turns.material(now, past), turns.keep(first), first.leverage, min_rows=rows)
    assert (candidate is not None) == made == bool(turns.given)


@pytest.mark.filterwarnings("ignore")
def test_training_that_diverges_makes_no_candidate(
    turns: Turns, requests: Requests, caplog: pytest.LogCaptureFixture
) -> None:
    past, now = requests(LABELS, 10), requests(LABELS, 10, skip=10)
    first = turns.head(past)
    material, champion = turns.material(now, past), turns.keep(first)
    assert turns.lora(material, champion, first.leverage, learning_rate=1e38) is None
    assert "loss is nan" in caplog.text
    assert "lora.learning_rate 1e+38: lower it" in caplog.text


# ── the version ──
def test_what_is_written_is_what_was_judged(turns: Turns, requests: Requests) -> None:
    past, now = requests(LABELS, 10), requests(LABELS, 10, skip=10)
    first = turns.head(past)
    candidate = turns.lora(turns.material(now, past), turns.keep(first), first.leverage)
    assert candidate is not None
    assert set(candidate.files()) == {MODEL_FILE, HEAD_FILE, ADAPTER_FILE, LEVERAGE_FILE, EWC_FILE, SEEN_FILE}
    read = turns.keep(candidate)
    texts = [text for text, _ in now]
    assert np.array_equal(read.scores(texts).probabilities, candidate.classifier.scores(texts).probabilities)
    assert np.array_equal(read.weights, first.classifier.weights)
    assert Leverage.load(turns.at("v2")) == Leverage.load(turns.at("v1"))
    assert read.adapted is not None
    assert candidate.classifier.adapted is not None
    shares = turns.settings.lora.shares
    assert min(shares) < read.adapted.share == candidate.classifier.adapted.share < max(shares)
    assert read.adapted.labels == LABELS


def test_a_version_without_evidence_keeps_the_scale_that_it_was_trained_with(turns: Turns, requests: Requests) -> None:
    pairs = [pair for pair in requests(LABELS, 14) if not held_out([pair], turns.settings)]
    first = turns.head(pairs)
    candidate = turns.lora(turns.material(pairs), turns.keep(first), first.leverage, min_rows=len(pairs))
    assert candidate is not None
    assert len(candidate.evidence) == 0
    assert candidate.classifier.adapted is not None
    assert candidate.classifier.adapted.temperature == 16.0


# ── the anchor ──
def test_the_anchor_goes_through_its_file(turns: Turns, requests: Requests) -> None:
    past, now = requests(LABELS, 10), requests(LABELS, 10, skip=10)
    first = turns.head(past)
    candidate = turns.lora(turns.material(now, past), turns.keep(first), first.leverage)
    assert candidate is not None
    turns.keep(candidate)
    found, wanted = load_anchor(turns.at("v2")), turns.updates[0].anchor
    assert found is not None
    assert found.samples == wanted.samples > 0
    assert set(found.theta) == set(found.fisher) == set(wanted.fisher)
    assert torch.equal(found.theta[HEAD], wanted.theta[HEAD])
    for name, value in wanted.theta.items():
        torch.testing.assert_close(found.theta[name], value, rtol=2**-8, atol=0)
        torch.testing.assert_close(found.fisher[name], wanted.fisher[name], rtol=2**-8, atol=1e-38)
        assert found.theta[name].dtype == found.fisher[name].dtype == torch.float32
    carried = carried_files(turns.at("v2"))
    assert carried == {name: (turns.at("v2") / name).read_bytes() for name in (EWC_FILE, SEEN_FILE)}


def test_a_version_without_an_anchor_has_none(turns: Turns, requests: Requests) -> None:
    turns.keep(turns.head(requests(LABELS, 8)))
    assert load_anchor(turns.at("v1")) is None
    assert carried_files(turns.at("v1")) == {}


@pytest.mark.parametrize(
    "damage", ["cut short", "garbage", "no samples", "a strange tensor", "no head", "no theta", "another shape"]
)
def test_an_anchor_that_is_not_whole_is_refused(tmp_path: Path, damage: str) -> None:
    path = tmp_path / EWC_FILE
    tensors = {
        "theta/head": torch.ones(3, 4),
        "fisher/head": torch.ones(3, 4),
        "theta/map": torch.ones(2, 2),
        "fisher/map": torch.ones(2, 2),
        "samples": torch.tensor(7),
    }
    save_file(tensors, path)
    whole = load_anchor(tmp_path)
    assert whole is not None
    assert whole.samples == 7
    missing = {"no samples": "samples", "no head": "fisher/head", "no theta": "theta/map"}
    if damage in ("cut short", "garbage"):
        path.write_bytes(path.read_bytes()[:-9] if damage == "cut short" else b"\xff" * 90)
    elif damage == "a strange tensor":
        save_file({**tensors, "momentum/head": torch.ones(1)}, path)
    elif damage == "another shape":
        save_file({**tensors, "fisher/map": torch.ones(2, 3)}, path)
    else:
        save_file({name: value for name, value in tensors.items() if name != missing[damage]}, path)
    with pytest.raises(VersionDamaged, match=r"ewc\.safetensors"):
        load_anchor(tmp_path)


def test_the_next_update_goes_on_from_the_champion_and_its_anchor(turns: Turns, requests: Requests) -> None:
    past, now = requests(LABELS, 10), requests(LABELS, 10, skip=10)
    first = turns.head(past)
    second = turns.lora(turns.material(now, past), turns.keep(first), first.leverage)
    assert second is not None
    champion = turns.keep(second)
    later = requests(LABELS, 10, skip=20)
    third = turns.lora(turns.material(later, [*past, *now], champion), champion, second.leverage, "v3")
    assert third is not None
    _, before = turns.given[1]
    assert before is not None
    assert before.anchor is not None
    assert before.labels == LABELS
    for name, value in turns.updates[0].weights.items():
        assert torch.equal(before.weights[name], value)
    assert turns.updates[1].dropped is None
    assert turns.updates[1].penalty > 0
    assert third.evidence.champion is not None


def test_a_version_says_what_its_adapter_was_offered(turns: Turns, material_of: MaterialOf, requests: Requests) -> None:
    """What was skipped, doubted or guessed, too; and what the version that it goes on from was offered."""
    past, now = requests(LABELS, 10), requests(LABELS, 10, skip=10)
    first = turns.head(past)
    champion = turns.keep(first)
    actions = ["learn"] * 10 + ["skip"] * 5 + ["quarantine"] * 5 + ["pseudo"] * 5 + ["ignore"] * 5
    made = material_of(now, past, actions=actions)
    # Nobody has labelled what is guessed.
    bare = {one.row.id: dataclasses.replace(one.row, label=None) for one in made.gated.of("pseudo")}
    decisions = tuple(dataclasses.replace(one, row=bare.get(one.row.id, one.row)) for one in made.gated.decisions)
    rows = tuple(bare.get(row.id, row) for row in made.rows)
    guessed = {row.text for row in bare.values()}
    samples = tuple(one for one in made.samples if one.text not in guessed)
    material = dataclasses.replace(made, rows=rows, samples=samples, gated=Gated(decisions))
    second = turns.lora(material, champion, first.leverage)
    assert second is not None
    offered = {sample_key(label, text) for text, label in [*past, *now]}
    champion = turns.keep(second)
    assert Seen.load(turns.at("v2")) == Seen(tuple(offered_to(second)))
    assert set(offered_to(second)) == offered
    assert SEEN_FILE in carried_files(turns.at("v2"))
    later = requests(LABELS, 10, skip=20)
    third = turns.lora(turns.material(later, (), champion), champion, second.leverage, "v3")
    assert third is not None
    turns.keep(third)
    assert set(offered_to(third)) == offered | {sample_key(label, text) for text, label in later}


def offered_to(candidate: Candidate) -> list[str]:
    return [row.tobytes().hex() for row in load(candidate.extra[SEEN_FILE])["keys"]]


@pytest.mark.usefixtures("imprints")
def test_labels_that_a_head_update_added_in_between_are_free(turns: Turns, requests: Requests) -> None:
    """LoRA, then a head update that imprints a label before and one behind the others, then LoRA again."""
    old = ("login", "parcel")
    past, now = requests(old, 12), requests(old, 12, skip=12)
    first = turns.head(past)
    second = turns.lora(turns.material(now, past), turns.keep(first), first.leverage)
    assert second is not None
    champion = turns.keep(second)
    new = requests(("card", "refund"), 14)
    third = turns.head(new, champion, [*past, *now], "v3")
    champion = turns.keep(third)
    assert champion.adapted is not None
    assert champion.adapted.labels == (*old, "card", "refund")
    everything = [*past, *now, *new]
    fourth = turns.lora(turns.material(new, everything, champion), champion, third.leverage, "v4")
    assert fourth is not None
    assert turns.updates[1].labels == ("card", "login", "parcel", "refund")
    assert turns.updates[1].anchor.fisher[HEAD].shape == (4, 32)
    _, before = turns.given[1]
    assert before is not None
    assert before.anchor is not None
    assert before.anchor.fisher[HEAD].shape == (2, 32)
    theta = {
        name: turns.updates[1].shape.scale
        * (turns.updates[1].weights[f"{name}.B"] @ turns.updates[1].weights[f"{name}.A"])
        for name in turns.updates[1].shape.targets
    }
    penalty = before.anchor.penalty({**theta, HEAD: turns.updates[1].weights[HEAD][1:3]})
    assert turns.updates[1].penalty == pytest.approx(turns.settings.lora.ewc * float(penalty), rel=1e-3)


def test_a_champion_that_was_cut_elsewhere_is_left_behind_but_compared(
    turns: Turns, tiny_encoder: Path, requests: Requests
) -> None:
    """`lora.layers` was changed between two turns."""
    past, now = requests(LABELS, 10), requests(LABELS, 10, skip=10)
    first = turns.head(past)
    second = turns.lora(turns.material(now, past), turns.keep(first), first.leverage)
    assert second is not None
    champion = turns.keep(second)
    turns.encoder = load_encoder(str(tiny_encoder), max_tokens=32, adapted_layers=1)
    later = requests(LABELS, 10, skip=20)
    head = turns.head(later, champion, [*past, *now], "v3")
    assert turns.keep(head).encoder.adapted_layers == 2
    third = turns.lora(turns.material(later, [*past, *now], champion), champion, second.leverage, "v4")
    assert third is not None
    assert second.notes == ()
    assert third.notes == ("The earlier adapter and EWC anchor were not used: layers was 2 and is 1.",)
    read = turns.keep(third)
    assert read.encoder.adapted_layers == 1
    texts = [text for text, _ in later]
    np.testing.assert_allclose(
        read.scores(texts).probabilities, third.classifier.scores(texts).probabilities, atol=1e-5
    )
    evidence = third.evidence.finished()
    assert evidence.champion is not None
    rows = Labelled.of(list(zip(evidence.texts, evidence.truth, strict=True)))
    scores = unseen_scores(champion, second.leverage, champion.encode(rows.texts).features, rows.keys, rows.labels)
    before = champion.encode(rows.texts).adapted
    assert before is not None
    weights = traffic_weights(rows.labels, Counter(label for _, label in [*past, *now]))
    wanted = unseen_sharpened(champion, before, Unseen(scores, before, rows.labels, weights)).probabilities
    np.testing.assert_allclose(evidence.champion.probabilities, wanted, atol=1e-3)
