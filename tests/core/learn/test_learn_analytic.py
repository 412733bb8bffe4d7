from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from perdure.config import Settings
from perdure.errors import UsageError
from perdure.learn.analytic import HeadLearner
from perdure.learn.candidate import Candidate
from perdure.learn.imprint import Scored, imprinted, spoken, unseen_logits
from perdure.learn.leverage import LEVERAGE_FILE, unseen_scores
from perdure.learn.material import Encodings, Labelled, Material
from perdure.memory import Delta
from perdure.model.adapter import Adapter, AdapterShape, linear_names
from perdure.model.classifier import AdaptedHead, AnalyticClassifier
from perdure.model.encoder import Encoder
from perdure.model.head import Solution, Statistics, leave_one_out, solve
from perdure.model.layout import HEAD_FILE, MODEL_FILE
from perdure.records import is_held_out, sample_key

LABELS = ("card", "login", "parcel")
Pairs = Sequence[tuple[str, str]]
MaterialOf = Callable[..., Material]
Requests = Callable[..., list[tuple[str, str]]]


@pytest.fixture
def learner(encoder: Encoder, settings: Settings) -> HeadLearner:
    return HeadLearner(encoder, settings)


def deltas(pairs: Pairs, sign: int = 1) -> list[Delta]:
    return [Delta(place, text, label, sign) for place, (text, label) in enumerate(pairs)]  # type: ignore[arg-type]


def absorbed(learner: HeadLearner, encoder: Encoder, *pairs: Pairs) -> Statistics:
    statistics = Statistics(learner.features.features)
    for part in pairs:
        learner.absorb(statistics, deltas(part), encoder.features([text for text, _ in part], 16))
    return statistics


def classes(*labels: str) -> dict[str, int]:
    return dict.fromkeys(labels, 1)


@pytest.fixture
def adapter(encoder: Encoder) -> Adapter:
    shape = AdapterShape(rank=1, alpha=1, layers=2, targets=linear_names(encoder.top))
    layers: dict[str, Any] = dict(encoder.top.named_modules())
    generator = torch.Generator().manual_seed(0)
    weights = {f"{name}.A": torch.randn(1, layers[name].in_features, generator=generator) for name in shape.targets}
    weights |= {
        f"{name}.B": 0.2 * torch.randn(layers[name].out_features, 1, generator=generator) for name in shape.targets
    }
    return Adapter(encoder, shape, weights)


@pytest.fixture
def head(adapter: Adapter) -> AdaptedHead:
    weights = np.random.default_rng(0).normal(size=(2, 32)).astype(np.float32)
    return AdaptedHead(adapter, ("card", "login"), weights, temperature=5.0, share=0.4, sharpness=1.25)


# ── statistics ──
def test_what_is_absorbed_can_be_taken_out_row_by_row_to_the_last_bit(
    learner: HeadLearner, encoder: Encoder, requests: Requests, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs, extra = requests(LABELS, 6), requests(LABELS, 5, skip=6)
    monkeypatch.setattr("perdure.model.features.MANY", 7)
    statistics = absorbed(learner, encoder, pairs + extra)
    for text, label in extra[::-1]:
        learner.absorb(statistics, deltas([(text, label)], -1), encoder.features([text], 16))
    wanted = absorbed(learner, encoder, pairs[::-1])
    assert statistics.gram.tobytes() == wanted.gram.tobytes()
    assert statistics.counts == wanted.counts == dict.fromkeys(LABELS, 6)
    for label in LABELS:
        assert statistics.sums[label].tobytes() == wanted.sums[label].tobytes()


# ── imprinting ──
def test_a_new_label_is_imprinted_at_its_mean(head: AdaptedHead) -> None:
    rows = Labelled.of([("1", "parcel"), ("2", "card"), ("3", "parcel"), ("4", "account")])
    embeddings = np.random.default_rng(1).normal(size=(4, 32)).astype(np.float32)
    found = imprinted(head, rows, embeddings)
    assert found.labels == ("card", "login", "account", "parcel")
    assert np.array_equal(found.weights[:2], head.weights)
    length = np.median(np.linalg.norm(head.weights, axis=1))
    np.testing.assert_allclose(np.linalg.norm(found.weights[2:], axis=1), length, rtol=1e-5)
    mean = (embeddings[0] + embeddings[2]) / 2
    np.testing.assert_allclose(found.weights[3] / length, mean / np.linalg.norm(mean), atol=1e-5)
    np.testing.assert_allclose(found.weights[2] / length, embeddings[3] / np.linalg.norm(embeddings[3]), atol=1e-5)
    assert dataclasses.replace(found, labels=head.labels, weights=head.weights) == head
    assert found.weights.dtype == np.float32


def test_a_head_that_knows_every_label_stays_as_it_is(head: AdaptedHead) -> None:
    assert imprinted(head, Labelled.of([("1", "card")]), np.ones((1, 32), dtype=np.float32)) is head


def test_an_imprinted_row_is_judged_as_if_it_had_not_been_in_the_mean(head: AdaptedHead) -> None:
    rows = Labelled.of([("1", "parcel"), ("2", "card"), ("3", "parcel"), ("4", "parcel"), ("5", "only")])
    embeddings = np.random.default_rng(1).normal(size=(5, 32)).astype(np.float32)
    full = imprinted(head, rows, embeddings)
    found = unseen_logits(head, full, rows, embeddings)
    for row in (0, 2, 3):
        rest = [other != row for other in range(5)]
        without = imprinted(head, rows.where(rest), embeddings[rest])
        np.testing.assert_allclose(found[row], without.logits(embeddings[[row]])[0], atol=1e-4)
    assert found[4, full.labels.index("only")] == 0
    others = [column for column in range(4) if full.labels[column] != "only"]
    np.testing.assert_allclose(found[4, others], full.logits(embeddings)[4, others], atol=1e-5)
    np.testing.assert_allclose(found[1], full.logits(embeddings)[1], atol=1e-5)


@pytest.mark.parametrize(("collapsed", "grows"), [(True, False), (False, True)])
def test_a_new_label_is_spoken_of_where_unseen_rows_gain_by_it(head: AdaptedHead, collapsed: bool, grows: bool) -> None:
    names = ["card"] * 20 + ["login"] * 20 + ["parcel"] * 20
    rows = Labelled.of([(f"{label} {number}", label) for number, label in enumerate(names)])
    old = head.weights / np.linalg.norm(head.weights, axis=1, keepdims=True)
    new = np.eye(1, head.weights.shape[1], 7, dtype=np.float32)[0]
    noise = np.random.default_rng(0).normal(0, 0.02, (60, len(new)))
    # Either the adapter maps what is new onto an old label, or it keeps it apart.
    centres = {"card": old[0], "login": old[1], "parcel": old[0] if collapsed else new}
    embeddings = np.asarray([centres[label] for label in names] + noise, dtype=np.float32)
    # The frozen head knows the new label where the adapter does not, and the other way round.
    sure = 6.0 if collapsed else 0.5
    labels = ("card", "login", "parcel")
    scores = sure * np.eye(3, dtype=np.float32)[[labels.index(label) for label in names]]
    frozen = Scored(labels, scores, np.ones(3, dtype=np.float32), np.ones(60))
    imprint = np.arange(60) % 5 != 0
    chosen, logits = spoken(head, frozen, rows, embeddings, imprint)
    assert ("parcel" in chosen.labels) == grows
    assert logits.shape == (60, len(chosen.labels))
    assert (chosen is head) == (not grows)


# ── candidates ──
def first(learner: HeadLearner, encoder: Encoder, material_of: MaterialOf, pairs: Pairs) -> Candidate:
    labels = sorted({label for _, label in pairs})
    statistics = absorbed(learner, encoder, pairs)
    return learner.candidate(statistics, classes(*labels), material_of(pairs), None, None, {}, "v1")


def test_a_first_version_knows_its_labels(
    learner: HeadLearner, encoder: Encoder, material_of: MaterialOf, requests: Requests
) -> None:
    pairs = requests(LABELS, 14)
    candidate = first(learner, encoder, material_of, pairs)
    assert (candidate.kind, candidate.classifier.version, candidate.classifier.labels) == ("first", "v1", LABELS)
    unseen = requests(LABELS, 6, skip=14)
    right = np.array(candidate.classifier.scores([text for text, _ in unseen]).names()) == [one for _, one in unseen]
    assert right.mean() > 0.9
    assert candidate.metrics["rows"] == 42
    assert set(candidate.files()) == {HEAD_FILE, MODEL_FILE, LEVERAGE_FILE}
    assert candidate.evidence.champion is None
    assert candidate.evidence.source == ("fresh",) * 42


def test_a_first_versions_evidence_is_a_refit_without_each_row(
    learner: HeadLearner, encoder: Encoder, material_of: MaterialOf, requests: Requests
) -> None:
    pairs = requests(LABELS, 8)
    candidate = first(learner, encoder, material_of, pairs)
    classifier, evidence = candidate.classifier, candidate.evidence
    assert set(zip(evidence.texts, evidence.truth, strict=True)) == set(pairs)
    for row in (0, 9, 20):
        text, label = evidence.texts[row], evidence.truth[row]
        statistics = absorbed(learner, encoder, [pair for pair in pairs if pair != (text, label)])
        solution = solve(statistics, LABELS, candidate.metrics["ridge"])
        scores = solution.scores(classifier.features(encoder.features([text], 16)))
        wanted = classifier.combine(scores, None).probabilities[0]
        np.testing.assert_allclose(evidence.candidate.probabilities[row], wanted, atol=2e-3)
    seen = classifier.scores(evidence.texts).probabilities
    assert np.abs(evidence.candidate.probabilities - seen).max() > 0.05


def test_a_row_that_came_twice_is_left_out_with_both_copies(
    learner: HeadLearner, encoder: Encoder, material_of: MaterialOf, requests: Requests
) -> None:
    once = requests(LABELS, 8)
    twice = [*once, once[0], once[0], once[9]]
    candidate = first(learner, encoder, material_of, twice)
    evidence, classifier = candidate.evidence, candidate.classifier
    assert len(evidence) == 24
    for text, label in (once[0], once[9], once[20]):
        row = evidence.texts.index(text)
        statistics = absorbed(learner, encoder, [pair for pair in twice if pair != (text, label)])
        solution = solve(statistics, LABELS, candidate.metrics["ridge"])
        scores = solution.scores(classifier.features(encoder.features([text], 16)))
        wanted = classifier.combine(scores, None).probabilities[0]
        np.testing.assert_allclose(evidence.candidate.probabilities[row], wanted, atol=2e-3)


def test_a_head_update_adds_labels_and_shows_both_sides_unseen(
    learner: HeadLearner, encoder: Encoder, material_of: MaterialOf, requests: Requests
) -> None:
    past, now = requests(LABELS, 8), requests(("refund",), 8)
    before = first(learner, encoder, material_of, past)
    material = material_of(now, past)
    statistics = absorbed(learner, encoder, past, now)
    candidate = learner.candidate(
        statistics,
        classes(*LABELS, "refund"),
        material,
        before.classifier,
        before.leverage,
        {"ewc.safetensors": b"anchor"},
        "v2",
    )
    assert (candidate.kind, candidate.classifier.labels) == ("head", (*LABELS, "refund"))
    evidence = candidate.evidence
    assert evidence.source == ("fresh",) * 8 + ("leave_one_out",) * 24
    assert set(evidence.truth[:8]) == {"refund"}
    assert candidate.files()["ewc.safetensors"] == b"anchor"
    assert evidence.champion is not None
    features = encoder.features(evidence.texts, 16)
    keys = material.fresh().keys + material.remembered().keys
    unseen = unseen_scores(before.classifier, before.leverage, features, keys, evidence.truth)
    np.testing.assert_allclose(
        evidence.champion.probabilities, before.classifier.combine(unseen, None).probabilities, atol=1e-5
    )
    solution = solve(statistics, candidate.classifier.labels, candidate.metrics["ridge"])
    grid = candidate.classifier.features(features)
    wanted = leave_one_out(solution.scores(grid), solution.leverage(grid), evidence.truth, solution.labels)
    np.testing.assert_allclose(
        evidence.candidate.probabilities, candidate.classifier.combine(wanted, None).probabilities, atol=1e-4
    )
    assert set(candidate.leverage.of) == set(keys)


def test_the_penalty_is_chosen_anew_when_an_erasure_took_most_rows_away(
    learner: HeadLearner, encoder: Encoder, material_of: MaterialOf, requests: Requests
) -> None:
    before = first(learner, encoder, material_of, requests(LABELS, 8))
    rest = requests(LABELS, 4)
    candidate = learner.candidate(
        absorbed(learner, encoder, rest),
        classes(*LABELS),
        material_of((), rest),
        before.classifier,
        before.leverage,
        {},
        "v2",
    )
    assert candidate.leverage.chosen == 12


@pytest.mark.parametrize(("rows", "solved"), [(4, 1), (8, 2)])
def test_the_penalty_is_chosen_anew_when_rows_have_grown_by_a_fifth(
    learner: HeadLearner,
    encoder: Encoder,
    material_of: MaterialOf,
    requests: Requests,
    monkeypatch: pytest.MonkeyPatch,
    rows: int,
    solved: int,
) -> None:
    past, now = requests(LABELS, 8), requests(("refund",), rows)
    before = first(learner, encoder, material_of, past)
    assert before.leverage.chosen == 24
    tried: list[float] = []

    def counted(statistics: Statistics, labels: Sequence[str], ridge: float) -> Solution:
        tried.append(ridge)
        return solve(statistics, labels, ridge)

    monkeypatch.setattr("perdure.model.head.solve", counted)
    monkeypatch.setattr("perdure.learn.analytic.solve", counted)
    candidate = learner.candidate(
        absorbed(learner, encoder, past, now),
        classes(*LABELS, "refund"),
        material_of(now, past),
        before.classifier,
        before.leverage,
        {},
        "v2",
    )
    assert tried[0] == before.leverage.ridge
    assert len(tried) == solved
    assert candidate.leverage.chosen == (24 if solved == 1 else 32)


def test_a_label_with_few_rows_is_heard_beside_one_with_many(
    learner: HeadLearner, encoder: Encoder, material_of: MaterialOf, requests: Requests
) -> None:
    pairs = [*requests(("card",), 40), *requests(("login",), 4), *requests(("parcel",), 4)]
    candidate = first(learner, encoder, material_of, pairs)
    balance = candidate.classifier.balance
    assert balance[0] < 1 < balance[1] == balance[2]
    evidence = candidate.evidence
    unseen = unseen_scores(
        candidate.classifier,
        candidate.leverage,
        encoder.features(evidence.texts, 16),
        material_of(pairs).fresh().keys,
        evidence.truth,
    )
    rare = [row for row, label in enumerate(evidence.truth) if label != "card"]
    names = np.asarray(LABELS)
    right = [names[scores.argmax()] == evidence.truth[row] for row, scores in zip(rare, unseen[rare], strict=True)]
    found = [evidence.candidate.names()[row] == evidence.truth[row] for row in rare]
    assert sum(found) > sum(right)


def test_labels_without_enough_examples_have_no_column_and_no_evidence(
    learner: HeadLearner, encoder: Encoder, material_of: MaterialOf, requests: Requests
) -> None:
    pairs = [*requests(LABELS, 6), ("pending text", "pending")]
    statistics = absorbed(learner, encoder, pairs)
    candidate = learner.candidate(
        statistics, {**classes(*LABELS), "taken back": 1}, material_of(pairs), None, None, {}, "v1"
    )
    assert candidate.classifier.labels == LABELS
    assert "pending" not in candidate.evidence.truth
    assert candidate.metrics["rows"] == 19


def test_doubtful_rows_are_learned_by_the_head_but_are_no_evidence(
    learner: HeadLearner, encoder: Encoder, material_of: MaterialOf, requests: Requests
) -> None:
    pairs = requests(LABELS, 6)
    statistics = absorbed(learner, encoder, pairs)
    material = material_of(pairs, actions=["quarantine"] + ["learn"] * 17)
    candidate = learner.candidate(statistics, classes(*LABELS), material, None, None, {}, "v1")
    assert candidate.metrics["rows"] == 18
    assert pairs[0][0] not in candidate.evidence.texts
    features = candidate.classifier.features(encoder.features([pairs[0][0]], 16))
    pull = solve(statistics, LABELS, candidate.metrics["ridge"]).leverage(features)
    assert candidate.leverage([sample_key(pairs[0][1], pairs[0][0])]) == pytest.approx(pull)
    assert pull > 0.01


@pytest.mark.parametrize("labels", [(), ("card",)])
def test_fewer_than_two_labels_are_no_classifier(
    learner: HeadLearner, encoder: Encoder, material_of: MaterialOf, requests: Requests, labels: tuple[str, ...]
) -> None:
    pairs = requests(labels, 5)
    statistics = absorbed(learner, encoder, pairs) if pairs else Statistics(128)
    with pytest.raises(UsageError, match=r"there (is 'card'|are none): add rows of another label") as raised:
        learner.candidate(statistics, classes("card", "gone"), material_of(pairs), None, None, {}, "v1")
    assert "at least two labels with 3 examples each" in str(raised.value)


def test_the_same_turn_makes_the_same_version_to_the_last_bit(
    learner: HeadLearner, encoder: Encoder, material_of: MaterialOf, requests: Requests
) -> None:
    pairs = requests(LABELS, 6)
    one, other = (first(learner, encoder, material_of, pairs) for _ in range(2))
    assert one.files() == other.files()


# ── beside an adapter ──
@pytest.fixture
def update(
    learner: HeadLearner,
    encoder: Encoder,
    settings: Settings,
    material_of: MaterialOf,
    requests: Requests,
    head: AdaptedHead,
    imprints: None,
) -> tuple[AnalyticClassifier, Material, Candidate]:
    """A champion with an adapter that knows two labels, and the candidate that brings it two more."""
    past, now = requests(("card", "login"), 8), requests(("parcel", "refund"), 9)
    before = first(learner, encoder, material_of, past)
    champion = before.classifier.with_adapted("v1+", head)
    material = material_of(now, past, encodings=Encodings(encoder, head.adapter, settings.model.batch))
    candidate = learner.candidate(
        absorbed(learner, encoder, past, now),
        classes(*LABELS, "refund"),
        material,
        champion,
        before.leverage,
        {},
        "v2",
    )
    return champion, material, candidate


def test_the_adapter_goes_on_with_imprinted_rows(
    update: tuple[AnalyticClassifier, Material, Candidate], head: AdaptedHead, settings: Settings
) -> None:
    champion, material, candidate = update
    adapted = candidate.classifier.adapted
    assert adapted is not None
    assert adapted.adapter is head.adapter
    assert adapted.labels == ("card", "login", "parcel", "refund")
    assert candidate.classifier.space == champion.space
    fresh = material.fresh()
    trained = [not is_held_out(key, settings.memory.holdout_share) for key in fresh.keys]
    assert not all(trained)
    rows = fresh.where(trained)
    wanted = imprinted(head, rows, head.adapter.embeddings(rows.texts, 16))
    np.testing.assert_allclose(adapted.weights, wanted.weights, atol=1e-6)


def test_evidence_of_imprinted_labels_is_unseen(
    update: tuple[AnalyticClassifier, Material, Candidate], head: AdaptedHead, settings: Settings
) -> None:
    _, material, candidate = update
    classifier, evidence = candidate.classifier, candidate.evidence
    adapted = classifier.adapted
    assert adapted is not None
    rows = material.fresh() + material.remembered()
    embeddings = head.adapter.embeddings(rows.texts, 16)
    trained = np.array([not is_held_out(key, settings.memory.holdout_share) for key in rows.keys])
    logits = adapted.logits(embeddings)
    logits[trained] = unseen_logits(head, adapted, rows.where(trained.tolist()), embeddings[trained])
    grid = classifier.features(material.encodings(rows.texts).features)
    leverage = candidate.leverage(rows.keys)
    unseen = leave_one_out(grid @ classifier.weights, leverage, rows.labels, classifier.labels)
    # The head is so sure of these rows that only logarithms show what the adapter said.
    found, wanted, naive = (
        np.log(answers.probabilities[: len(material.fresh())].clip(1e-30))
        for answers in (evidence.candidate, classifier.blend(unseen, logits), classifier.combine(unseen, embeddings))
    )
    np.testing.assert_allclose(found, wanted, atol=0.01)
    assert np.abs(naive - wanted).max() > 0.1


def test_rows_that_the_adapter_was_trained_on_are_judged_by_the_head_alone(
    update: tuple[AnalyticClassifier, Material, Candidate], settings: Settings
) -> None:
    champion, material, candidate = update
    rows, evidence = material.fresh() + material.remembered(), candidate.evidence
    assert evidence.champion is not None
    encoded = material.encodings(rows.texts)
    scores = candidate.classifier.features(encoded.features) @ candidate.classifier.weights
    unseen = leave_one_out(scores, candidate.leverage(rows.keys), rows.labels, candidate.classifier.labels)
    alone = candidate.classifier.blend(unseen, None).probabilities
    fresh, share = len(material.fresh()), settings.memory.holdout_share
    trained = np.array([row >= fresh and not is_held_out(key, share) for row, key in enumerate(rows.keys)])
    assert trained.any()
    assert not trained[fresh:].all()
    found = evidence.candidate.probabilities
    np.testing.assert_allclose(found[trained], alone[trained], atol=1e-5)
    assert np.abs(found[~trained] - alone[~trained]).max(axis=1).min() > 1e-6
    with_adapter = champion.combine(champion.features(encoded.features) @ champion.weights, encoded.adapted)
    assert not np.allclose(evidence.champion.probabilities[trained], with_adapter.probabilities[trained], atol=1e-3)
