from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from contestants.backbone import embed
from contestants.base import Order
from contestants.contest import contend
from contestants.entrants import ENTRANTS
from contestants.icarl import Icarl, distilled_targets, icarl_loss
from contestants.network import Network, steps, train
from contestants.recipe import Recipe
from contestants.replay import DarkExperienceReplay, GreedyDumb, der_loss, padded
from contestants.sequential import Sequential
from perdure.errors import ModelNotFound
from perdure.model.encoder import load_encoder

if TYPE_CHECKING:
    from contestants.backbone import Backbone

MakeContext = Callable[..., Any]
TRAINED = [name for name, entrant in ENTRANTS.items() if entrant.make and entrant.trains]


def test_the_backbone_is_the_encoder_that_perdure_finds(backbone: Backbone, tiny_encoder: Path) -> None:
    texts = ["where is my parcel", "refund", "the card broken please help"]
    theirs = load_encoder(str(tiny_encoder), max_tokens=32, adapted_layers=2).features(texts, 8)[:, -32:]
    mine = embed(backbone.model, backbone.batch(backbone.tokens(texts))).numpy()
    np.testing.assert_allclose(mine, theirs / np.linalg.norm(theirs, axis=1, keepdims=True), atol=1e-5)


def test_an_encoder_that_is_not_there_is_named(tmp_path: Path) -> None:
    from contestants.backbone import Backbone

    with pytest.raises(ModelNotFound, match="no encoder"):
        Backbone(str(tmp_path))


def test_lora_adapts_every_linear_map_that_counts_and_nothing_else(backbone: Backbone) -> None:
    network = Network(backbone, Recipe(rank=2), 0)
    trained = {name for name, one in network.encoder.named_parameters() if one.requires_grad}
    # Query, key, value, output, two of the feed-forward, in three layers, with two factors each.
    assert len(trained) == 3 * 6 * 2
    assert all("lora_" in name and "pooler" not in name for name in trained)
    assert not any(one.requires_grad for one in backbone.model.parameters())
    full = Network(backbone, Recipe(), 0, full=True)
    assert any(one.requires_grad for name, one in full.encoder.named_parameters() if "embeddings" in name)


def test_contestants_begin_from_the_same_weights(backbone: Backbone) -> None:
    texts = ["where is my parcel", "refund"]
    first, second = Network(backbone, Recipe(), 0), Network(backbone, Recipe(), 1)
    np.testing.assert_allclose(first.embeddings(texts), second.embeddings(texts), atol=1e-6)
    plain = embed(backbone.model, backbone.batch(backbone.tokens(texts))).numpy()
    np.testing.assert_allclose(first.embeddings(texts), plain, atol=1e-5)


def test_a_head_grows_and_keeps_what_it_had(backbone: Backbone) -> None:
    network = Network(backbone, Recipe(), 0)
    network.grow(["a", "b"])
    with torch.no_grad():
        network.head.weight.copy_(torch.ones(2, 32))
    network.grow(["b", "c"])
    assert network.labels == ["a", "b", "c"]
    assert network.head.weight.sum(dim=1).tolist() == [32, 32, 0]
    assert network.columns(["c", "a"]).tolist() == [2, 0]


def test_half_of_each_batch_is_replay() -> None:
    rng = np.random.default_rng(0)
    new, old = [[0] * (row % 7 + 1) for row in range(50)], [[0] * (row % 5 + 1) for row in range(9)]
    plan = steps(new, old, batch=8, epochs=3, rng=rng, draws=2)
    assert sorted(row for step in plan for row in step.new) == sorted(3 * list(range(50)))
    assert all(len(step.old) == 2 and len(step.old[0]) == len(step.new) <= 4 for step in plan)
    assert {row for step in plan for row in step.old[0]} == set(range(9))
    alone = steps(new, (), batch=8, epochs=1, rng=rng)
    assert max(len(step.new) for step in alone) == 8
    assert all(step.old == () for step in alone)


def test_the_learning_rate_warms_up_and_falls_to_nothing() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    moved: list[float] = []

    def loss(_: int) -> torch.Tensor:
        moved.append(float(parameter.detach()))
        return parameter.sum()

    train([parameter], range(20), loss, learning_rate=0.1)
    rates = -np.diff(moved)
    assert rates[0] == pytest.approx(0.05, rel=1e-3)
    assert rates[1] == pytest.approx(0.1, rel=1e-3)
    assert rates[-1] < 0.01


def test_loss_of_der_by_hand() -> None:
    new, targets = torch.tensor([[0.0, 0.0]]), torch.tensor([1])
    again = torch.tensor([[1.0, 5.0], [2.0, 3.0]])
    stored, known = padded([np.asarray([3.0], dtype=np.float32), np.asarray([2.0, 0.0], dtype=np.float32)], 2)
    labelled, their = torch.tensor([[np.log(3.0), 0.0]]), torch.tensor([0])
    # Three logits were known then: distances 4, 0 and 9. The cross-entropies are log 2 and log 4/3.
    expected = np.log(2) + 0.3 * 13 / 3 + 0.7 * np.log(4 / 3)
    found = der_loss(new, targets, again, stored, known, labelled, their, alpha=0.3, beta=0.7)
    assert float(found) == pytest.approx(expected, rel=1e-6)


def test_der_remembers_what_was_answered_then(context: MakeContext, two_sessions: Order) -> None:
    contestant = DarkExperienceReplay(context(memory=3))
    contestant.learn(two_sessions.sessions[0])
    _, first = contestant._remembered()
    then = contestant._network.answers([one.text for one in first])
    np.testing.assert_allclose([one.logits for one in first], then, atol=1e-6)
    contestant.learn(two_sessions.sessions[1])
    labels, both = contestant._remembered()
    assert [len(one.logits) for one in both] == [2] * 6 + [4] * 6
    text = sum(len(one.text) + len(label) for one, label in zip(both, labels, strict=True))
    assert contestant.bytes_kept() == text + 4 * (6 * 2 + 6 * 4)


def test_targets_of_icarl_are_answers_of_then_and_the_class_of_new_rows() -> None:
    before = torch.tensor([[0.9, 0.2], [0.1, 0.3]])
    targets = distilled_targets(torch.tensor([0, 2]), before, 3)
    torch.testing.assert_close(targets, torch.tensor([[0.9, 0.2, 0.0], [0.1, 0.3, 1.0]]))
    logits = torch.zeros(2, 3)
    assert float(icarl_loss(logits, targets)) == pytest.approx(3 * np.log(2), rel=1e-6)


def test_icarl_keeps_exemplars_of_its_classes_and_answers_by_their_means(
    context: MakeContext, two_sessions: Order
) -> None:
    contestant = Icarl(context(memory=3))
    for session in two_sessions.sessions:
        contestant.learn(session)
    rows = contestant._kept_rows()
    assert contestant.kept() == {"card": 3, "login": 3, "parcel": 3, "refund": 3}
    for text, label in zip(rows.texts, rows.labels, strict=True):
        assert any((text, label) in zip(one.rows.texts, one.rows.labels, strict=True) for one in two_sessions.sessions)
    vectors = contestant._network.embeddings(rows.texts)
    means = np.stack([vectors[[one == label for one in rows.labels]].mean(0) for label in contestant.labels])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    texts = two_sessions.evaluation[0].texts
    cosines = contestant._network.embeddings(texts) @ means.T
    expected = np.exp(16 * cosines) / np.exp(16 * cosines).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(contestant.probabilities(texts), expected, atol=1e-4)


def test_replay_keeps_rows_of_each_class_as_they_came(context: MakeContext, two_sessions: Order) -> None:
    contestant = Sequential(context(memory=3, epochs=1), replay=True)
    came = set()
    for session in two_sessions.sessions:
        contestant.learn(session)
        came |= set(zip(session.rows.texts, session.rows.labels, strict=True))
    old = contestant._old()
    assert contestant.kept() == {"card": 3, "login": 3, "parcel": 3, "refund": 3}
    assert set(zip(old.texts, old.labels, strict=True)) <= came
    assert contestant.bytes_kept() == sum(map(len, (*old.texts, *old.labels)))


def test_gdumb_trains_on_its_memory_alone(context: MakeContext, two_sessions: Order) -> None:
    contestant = GreedyDumb(context(memory=5, scratch_epochs=1))
    for session in two_sessions.sessions:
        contestant.learn(session)
    assert contestant.kept() == {"card": 5, "login": 5, "parcel": 5, "refund": 5}
    assert contestant.labels == ("card", "login", "parcel", "refund")


@pytest.mark.parametrize("name", TRAINED)
def test_contestants_that_train_learn_both_sessions_and_say_what_they_use(
    context: MakeContext, watched: Callable[..., Any], two_sessions: Order, name: str
) -> None:
    given = context(memory=8, ewc=0.1, epochs=6, scratch_epochs=12, full_learning_rate=2e-3)
    recipe, seen = watched(given.recipe)
    entrant = ENTRANTS[name]
    assert entrant.make is not None
    memory = None if entrant.keeps_all else 8
    contestant = entrant.make(replace(given, recipe=recipe))
    outcome = contend(contestant, two_sessions, given.features, memory=memory)
    # Else a run with another recipe would be taken for done.
    assert seen == set(entrant.uses)
    learned = [one.accuracies[-1] for one in outcome.sessions]
    # Chance is 1/2 in the first session and 1/4 in the second.
    assert learned[0] > 0.75
    assert learned[1] > 0.5
    if name not in ("naive_lora", "lora_ewc"):
        assert outcome.sessions[-1].acc_seen > 0.5


def test_replay_forgets_less_than_nothing_does(context: MakeContext, two_sessions: Order) -> None:
    given = context(memory=8)
    without, replayed = (
        contend(Sequential(given, replay=replay), two_sessions, given.features, memory=8).figures().forgetting
        for replay in (False, True)
    )
    assert without is not None
    assert replayed is not None
    assert without > replayed + 0.2


def test_ewc_moves_less_from_what_mattered(context: MakeContext, two_sessions: Order) -> None:
    moved = {}
    for strength in (0.0, 1e9):
        contestant = Sequential(context(ewc=strength), ewc=True)
        contestant.learn(two_sessions.sessions[0])
        assert contestant._ewc is not None
        fisher, anchor = dict(contestant._ewc._fisher), dict(contestant._ewc._anchor)
        contestant.learn(two_sessions.sessions[1])
        moved[strength] = 0.0
        for name, module in contestant._network.maps().items():
            weight = module.weight
            assert isinstance(weight, torch.Tensor)
            one = fisher[name]
            moved[strength] += float((one * (weight.detach()[: len(one)] - anchor[name]) ** 2).sum())
    assert moved[1e9] < 0.5 * moved[0.0]


@pytest.mark.parametrize("name", ["er", "icarl"])
def test_the_same_seed_gives_the_same_answers(context: MakeContext, two_sessions: Order, name: str) -> None:
    make = ENTRANTS[name].make
    assert make is not None
    answers = []
    for seed in (3, 3, 4):
        contestant = make(context(seed=seed, epochs=1, scratch_epochs=1))
        for session in two_sessions.sessions:
            contestant.learn(session)
        answers.append(contestant.probabilities(two_sessions.evaluation[0].texts))
    np.testing.assert_array_equal(answers[0], answers[1])
    assert not np.array_equal(answers[0], answers[2])
