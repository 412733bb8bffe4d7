from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from perdure.config import LoraSettings, Settings
from perdure.errors import SettingError
from perdure.learn.lora import HEAD, HEAD_SCALE, LoraLearner, Origin, TrainingSet, Update
from perdure.learn.network import Network
from perdure.model.adapter import Adapter
from perdure.model.encoder import Encoder, pool

LABELS = ("card", "login", "parcel")
Requests = Callable[..., list[tuple[str, str]]]
Learn = Callable[..., Update]


@pytest.fixture
def data(requests: Requests) -> TrainingSet:
    return training_set(requests(LABELS, 8), fresh=12)


def training_set(pairs: Sequence[tuple[str, str]], fresh: int | None = None) -> TrainingSet:
    """Rows in turn over the labels; all of them fresh where nothing else is said."""
    order = np.random.default_rng(0).permutation(len(pairs))
    texts, labels = tuple(pairs[row][0] for row in order), tuple(pairs[row][1] for row in order)
    return TrainingSet(texts, labels, len(texts) if fresh is None else fresh)


@pytest.fixture
def learn(encoder: Encoder, settings: Settings) -> Learn:
    def run(data: TrainingSet, champion: Origin | None = None, *, seed: int = 0, **changed: Any) -> Update:
        lora = LoraSettings.model_validate({**settings.lora.model_dump(), **changed})
        return LoraLearner(encoder, lora, seed=seed).update(data, champion)

    return run


@pytest.fixture
def champion(learn: Learn, data: TrainingSet) -> Origin:
    return champion_of(learn(data))


def champion_of(update: Update, anchor: bool = True) -> Origin:
    return Origin(update.shape, update.weights, update.labels, update.anchor if anchor else None)


def logits_of(encoder: Encoder, update: Update, texts: Sequence[str]) -> Tensor:
    """What the update's adapter and head say, as it would be served."""
    embeddings = torch.from_numpy(Adapter(encoder, update.shape, update.weights).embeddings(texts, 16))
    return HEAD_SCALE * embeddings @ update.weights[HEAD].T


def accuracy(encoder: Encoder, update: Update, data: TrainingSet) -> float:
    best = logits_of(encoder, update, data.texts).argmax(dim=1)
    return float(np.mean([update.labels[column] == label for column, label in zip(best, data.labels, strict=True)]))


def theta_of(update: Update | Origin) -> dict[str, Tensor]:
    theta = {
        name: update.shape.scale * (update.weights[f"{name}.B"] @ update.weights[f"{name}.A"])
        for name in update.shape.targets
    }
    return {**theta, HEAD: update.weights[HEAD]}


def assert_same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    """To the last bit."""
    assert set(one) == set(other)
    assert all(torch.equal(one[name], other[name]) for name in one)


# ── training ──
def test_an_update_learns_what_it_is_shown(encoder: Encoder, learn: Learn) -> None:
    # Neither word decides alone, so that means of embeddings cannot tell the labels apart.
    sense = {("please", "card"): "x", ("help", "login"): "x", ("help", "card"): "y", ("please", "login"): "y"}
    words = {"card": ("card", "stolen", "limit", "broken"), "login": ("password", "login", "reset", "account")}
    data = training_set(
        [
            (f"{filler} {first} {second}", label)
            for (filler, topic), label in sense.items()
            for first, second in permutations(words[topic], 2)
        ]
    )
    untrained = learn(data, learning_rate=1e-12, epochs=1)
    trained = learn(data, learning_rate=5e-3, epochs=30)
    assert accuracy(encoder, trained, data) > 0.85 > 0.7 > accuracy(encoder, untrained, data)
    assert trained.loss < untrained.loss
    assert trained.steps == 30 * 6
    assert trained.labels == ("x", "y")
    assert all(torch.isfinite(value).all() for value in trained.weights.values())


def test_the_same_seed_gives_the_same_bits(learn: Learn, data: TrainingSet) -> None:
    one, other = learn(data, seed=3), learn(data, seed=3)
    assert_same(one.weights, other.weights)
    assert_same(one.anchor.fisher, other.anchor.fisher)
    assert (one.steps, one.loss, one.penalty) == (other.steps, other.loss, other.penalty)
    assert not torch.equal(one.weights[HEAD], learn(data, seed=4).weights[HEAD])


def test_training_alone_gives_the_weights_of_the_update(
    encoder: Encoder, settings: Settings, data: TrainingSet, learn: Learn
) -> None:
    trained = LoraLearner(encoder, settings.lora, seed=0).train(data, None)
    update = learn(data)
    assert_same(trained.network.weights(), update.weights)
    assert (trained.steps, trained.loss, trained.dropped) == (update.steps, update.loss, update.dropped)


def test_rough_products_learn_what_exact_ones_do(
    learn: Learn, data: TrainingSet, champion: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Where the processor has no instructions for it, PyTorch imitates bfloat16.
    monkeypatch.setattr("perdure.learn.device.computes_bfloat16", lambda _: True)
    exact, rough = (learn(data, champion, epochs=4, precision=name) for name in ("float32", "bfloat16"))
    assert rough.loss == pytest.approx(exact.loss, rel=0.1)
    moved = {name: value - champion.weights[name] for name, value in exact.weights.items()}
    between = {name: rough.weights[name] - value for name, value in exact.weights.items()}
    assert 0 < length_of(between) < 0.2 * length_of(moved)


def length_of(parameters: Mapping[str, Tensor]) -> float:
    return float(torch.cat([value.flatten() for value in parameters.values()]).norm())


def test_the_gradient_is_cut_at_length_one(
    learn: Learn, requests: Requests, data: TrainingSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths: list[float] = []
    step = torch.optim.AdamW.step

    def watched(self: torch.optim.AdamW, *args: Any, **kwargs: Any) -> Any:
        gradients = [p.grad for group in self.param_groups for p in group["params"]]
        lengths.append(float(torch.cat([one.flatten() for one in gradients]).norm()))
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    # What was answered before times a hundred, under labels turned round: no gradient is short by itself.
    origin = champion_of(learn(data))
    lengths.clear()
    learn(turned_round(requests, fresh=0), origin, distillation=100.0, epochs=1)
    assert len(lengths) == 3
    assert all(length == pytest.approx(1.0, abs=1e-3) for length in lengths)


def test_a_device_or_precision_that_is_not_there_is_refused(
    encoder: Encoder, settings: Settings, learn: Learn, data: TrainingSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SettingError, match="setting device"):
        LoraLearner(encoder, settings.lora, seed=0, device="cuda").update(data, None)
    monkeypatch.setattr("perdure.learn.device.computes_bfloat16", lambda _: False)
    with pytest.raises(SettingError, match=r"lora\.precision"):
        learn(data, precision="bfloat16")


def test_an_update_leaves_everybody_elses_random_numbers_alone(learn: Learn, data: TrainingSet) -> None:
    torch.manual_seed(11)
    wanted = torch.rand(3)
    torch.manual_seed(11)
    learn(data, epochs=1)
    assert torch.equal(torch.rand(3), wanted)


def test_the_encoder_stays_frozen(encoder: Encoder, learn: Learn, data: TrainingSet) -> None:
    before = encoder.features(data.texts, 16)
    learn(data, epochs=1)
    assert np.array_equal(encoder.features(data.texts, 16), before)
    assert not any(parameter.requires_grad for parameter in encoder.top.parameters())


def test_an_empty_training_set_is_refused(learn: Learn) -> None:
    with pytest.raises(ValueError, match="at least one row, but the training set is empty"):
        learn(TrainingSet((), (), 0))


@pytest.mark.parametrize("fresh", [0, 24])
def test_one_side_alone_is_enough(learn: Learn, data: TrainingSet, fresh: int) -> None:
    assert learn(dataclasses.replace(data, fresh=fresh), epochs=1).steps == 3


def test_progress_is_told_at_every_step(encoder: Encoder, settings: Settings, data: TrainingSet) -> None:
    told: list[tuple[int, int]] = []
    learner = LoraLearner(encoder, settings.lora, seed=0, progress=lambda step, steps: told.append((step, steps)))
    steps = learner.update(data, None).steps
    assert told == [(step, steps) for step in range(1, steps + 1)]


# ── going on from the champion ──
def test_an_update_goes_on_from_the_champion(learn: Learn, data: TrainingSet, champion: Origin) -> None:
    still = learn(data, champion, learning_rate=1e-12)
    for name, value in still.weights.items():
        torch.testing.assert_close(value, champion.weights[name], rtol=0, atol=1e-7)
    assert still.dropped is None


def test_a_label_that_nothing_is_left_of_keeps_its_row(learn: Learn, requests: Requests, champion: Origin) -> None:
    update = learn(training_set(requests(("card", "parcel"), 8)), champion, learning_rate=1e-12)
    assert update.labels == LABELS
    torch.testing.assert_close(update.weights[HEAD], champion.weights[HEAD], rtol=0, atol=1e-7)


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-5), ("auto", 2e-3)])
def test_a_new_label_starts_at_its_mean_embedding(
    encoder: Encoder, learn: Learn, requests: Requests, champion: Origin, precision: str, tolerance: float
) -> None:
    pairs = requests(("parcel", "refund"), 8)
    update = learn(training_set(pairs), champion, learning_rate=1e-12, precision=precision)
    assert update.labels == (*LABELS, "refund")
    torch.testing.assert_close(update.weights[HEAD][:3], champion.weights[HEAD], rtol=0, atol=1e-7)
    texts = [text for text, label in pairs if label == "refund"]
    embeddings = torch.from_numpy(Adapter(encoder, champion.shape, champion.weights).embeddings(texts, 16))
    wanted = nn.functional.normalize(embeddings.mean(dim=0), dim=0)
    torch.testing.assert_close(update.weights[HEAD][3], wanted, rtol=0, atol=tolerance)


def test_rows_follow_their_labels_whatever_the_champions_order(
    learn: Learn, requests: Requests, champion: Origin
) -> None:
    turned = dataclasses.replace(
        champion,
        labels=champion.labels[::-1],
        weights={**champion.weights, HEAD: champion.weights[HEAD].flip(0)},
        anchor=None,
    )
    update = learn(training_set(requests(LABELS, 4)), turned, learning_rate=1e-12)
    torch.testing.assert_close(update.weights[HEAD], champion.weights[HEAD], rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    ("changed", "reason"), [({"rank": 3}, "rank was 2 and is 3"), ({"alpha": 8}, "alpha was 4 and is 8")]
)
def test_an_adapter_of_another_shape_is_left_with_a_reason(
    learn: Learn,
    data: TrainingSet,
    champion: Origin,
    caplog: pytest.LogCaptureFixture,
    changed: dict[str, int],
    reason: str,
) -> None:
    with caplog.at_level(logging.WARNING):
        update = learn(data, champion, **changed)
    assert update.dropped == reason
    assert reason in caplog.text
    fresh = learn(data, None, **changed)
    assert_same(update.weights, fresh.weights)
    assert_same(update.anchor.fisher, fresh.anchor.fisher)
    assert (update.penalty, fresh.dropped) == (0.0, None)


# ── distillation ──
def turned_round(requests: Requests, fresh: int | None = None) -> TrainingSet:
    """The same wording under other labels."""
    names = dict(zip(LABELS, (*LABELS[1:], LABELS[0]), strict=True))
    return training_set([(text, names[label]) for text, label in requests(LABELS, 8)], fresh)


def test_distillation_pulls_towards_what_was_answered_before(
    encoder: Encoder, learn: Learn, requests: Requests, data: TrainingSet
) -> None:
    before, opposite = learn(data), turned_round(requests, fresh=0)
    wanted = torch.softmax(logits_of(encoder, before, opposite.texts), dim=1)

    def distance(update: Update) -> float:
        logarithms = torch.log_softmax(logits_of(encoder, update, opposite.texts), dim=1)
        return float(-(wanted * logarithms).sum(dim=1).mean())

    origin = champion_of(before)
    alone, little, much = (
        learn(opposite, origin, epochs=4, ewc=0.0, distillation=weight) for weight in (0.0, 1.0, 10.0)
    )
    assert distance(alone) > distance(little) > distance(much)
    entropy = float(-(wanted * wanted.log()).sum(dim=1).mean())
    assert distance(much) - entropy < 0.5 * (distance(alone) - entropy)


def test_what_was_not_known_before_is_not_distilled(learn: Learn, requests: Requests) -> None:
    known = training_set(requests(LABELS[:2], 8))
    origin, strange = champion_of(learn(known)), training_set(requests(LABELS[2:], 8), fresh=0)
    some, none = (learn(strange, origin, distillation=weight, epochs=1) for weight in (5.0, 0.0))
    assert_same(some.weights, none.weights)


def test_old_labels_in_new_words_are_not_held_back(learn: Learn, requests: Requests, data: TrainingSet) -> None:
    """What the adapter answered before says less of fresh rows than their labels do."""
    origin, opposite = champion_of(learn(data)), turned_round(requests)
    some, none = (learn(opposite, origin, distillation=weight, epochs=1) for weight in (5.0, 0.0))
    assert_same(some.weights, none.weights)


def test_a_first_adapter_has_nothing_to_distil(learn: Learn, data: TrainingSet) -> None:
    assert_same(learn(data, distillation=5.0).weights, learn(data, distillation=0.0).weights)


def test_only_replayed_rows_of_labels_that_were_known_are_taught(
    learn: Learn, requests: Requests, data: TrainingSet
) -> None:
    origin = champion_of(learn(training_set(requests(LABELS[1:], 8))))
    seen: list[Tensor] = []
    listen = Network.listen

    def noted(self: Network, given: Origin) -> None:
        listen(self, given)
        assert self._before is not None
        seen.extend((self._before.columns, self._before.said, self._before.teaches))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Network, "listen", noted)
        update = learn(dataclasses.replace(data, fresh=7), origin, epochs=1)
    columns, said, teaches = seen
    assert [update.labels[column] for column in columns.tolist()] == list(origin.labels)
    torch.testing.assert_close(said.sum(dim=1), teaches.float())
    assert teaches.tolist() == [row >= 7 and label in origin.labels for row, label in enumerate(data.labels)]


# ── EWC ──
def test_strong_ewc_keeps_parameters_near_the_anchor(learn: Learn, requests: Requests, data: TrainingSet) -> None:
    champion = champion_of(learn(data))
    # The same wording under other labels: without EWC everything must move.
    names = dict(zip(LABELS, (*LABELS[1:], LABELS[0]), strict=True))
    opposite = training_set([(text, names[label]) for text, label in requests(LABELS, 8)])
    assert champion.anchor is not None
    penalties = []
    for strength in (0.0, 10.0, 1e3):
        update = learn(opposite, champion, epochs=4, ewc=strength)
        assert update.dropped is None
        penalties.append(float(champion.anchor.penalty(theta_of(update))))
    free, held, tight = penalties
    assert free > 2 * held > 40 * tight > 0


def test_the_penalty_that_is_told_has_lambda_in_it(learn: Learn, data: TrainingSet, champion: Origin) -> None:
    update = learn(data, champion, ewc=50.0)
    assert champion.anchor is not None
    assert update.penalty == pytest.approx(50.0 * float(champion.anchor.penalty(theta_of(update))), rel=1e-4)
    assert update.penalty > 0


def test_the_new_anchor_is_the_updates_own_parameters(learn: Learn, data: TrainingSet, champion: Origin) -> None:
    update = learn(data, champion)
    theta = theta_of(update)
    assert set(update.anchor.theta) == set(update.anchor.fisher) == set(theta)
    for name, value in theta.items():
        torch.testing.assert_close(update.anchor.theta[name], value)


def test_fisher_information_is_that_of_a_plain_loop_over_samples(
    encoder: Encoder, learn: Learn, data: TrainingSet
) -> None:
    update = learn(data, fisher_samples=3 * len(data.texts))
    assert update.anchor.samples == len(data.texts)
    wanted = plain_fisher(encoder, update, data.texts)
    assert set(update.anchor.fisher) == set(wanted)
    for name, value in wanted.items():
        assert float(value.max()) > 0
        torch.testing.assert_close(update.anchor.fisher[name], value, rtol=2e-3, atol=1e-5 * float(value.max()))


def plain_fisher(encoder: Encoder, update: Update, texts: Sequence[str]) -> dict[str, Tensor]:
    """E over samples and labels of squared gradients of log p, by the merged weights: ∂/∂(s·BA) = ∂/∂W."""
    top = encoder.copy_top()
    maps: dict[str, Any] = {name: module for name, module in top.named_modules() if name in update.shape.targets}
    head = update.weights[HEAD].clone().requires_grad_()
    theta = theta_of(update)
    with torch.no_grad():
        for name, module in maps.items():
            module.weight += theta[name]
    parameters = [module.weight.requires_grad_() for module in maps.values()] + [head]
    names = [*maps, HEAD]
    total = {name: torch.zeros_like(parameter) for name, parameter in zip(names, parameters, strict=True)}
    for text in texts:
        trunk = encoder.trunk(encoder.tokens([text]))
        hidden = trunk.hidden
        for layer in top:
            hidden = trunk.call(layer, hidden)
        embedding = nn.functional.normalize(pool(hidden, trunk.mask), dim=1)[0]
        logarithms = torch.log_softmax(head @ (HEAD_SCALE * embedding), dim=0)
        for logarithm in logarithms:
            gradients = torch.autograd.grad(logarithm, parameters, retain_graph=True)
            for name, gradient in zip(names, gradients, strict=True):
                total[name] += logarithm.exp().detach() * gradient**2
    return {name: value / len(texts) for name, value in total.items()}


def test_fisher_information_goes_on_decayed(learn: Learn, data: TrainingSet, champion: Origin) -> None:
    assert champion.anchor is not None
    ones = {name: torch.ones_like(value) for name, value in champion.anchor.fisher.items()}
    with_past = dataclasses.replace(champion, anchor=dataclasses.replace(champion.anchor, fisher=ones))
    without = dataclasses.replace(champion, anchor=None)
    one = learn(data, with_past, ewc=0.0, fisher_decay=0.25).anchor
    other = learn(data, without, ewc=0.0, fisher_decay=0.25).anchor
    for name, value in one.fisher.items():
        torch.testing.assert_close(value, other.fisher[name] + 0.25)


def test_the_cost_of_the_fisher_pass_is_bounded_and_never_nothing(learn: Learn, data: TrainingSet) -> None:
    assert learn(data, fisher_samples=12, epochs=1).anchor.samples == 12 // len(LABELS)
    least = learn(data, fisher_samples=1, epochs=1).anchor
    assert least.samples == 1
    assert set(least.fisher) == set(least.theta)


def test_labels_that_a_head_was_given_since_its_update_are_free(
    encoder: Encoder, learn: Learn, requests: Requests, champion: Origin
) -> None:
    # As a head update does: rows of new labels come behind those that the anchor speaks of.
    row = torch.full((1, encoder.dim), 0.1)
    extended = dataclasses.replace(
        champion,
        labels=(*champion.labels, "aaa"),
        weights={**champion.weights, HEAD: torch.cat([champion.weights[HEAD], row])},
    )
    update = learn(training_set(requests(LABELS, 8)), extended, ewc=1e6)
    assert update.labels == ("aaa", *LABELS)
    assert champion.anchor is not None
    theta = theta_of(update)
    held = champion.anchor.penalty({**theta, HEAD: theta[HEAD][1:]})
    assert update.penalty == pytest.approx(1e6 * float(held), rel=1e-3)
    assert not torch.allclose(update.weights[HEAD][0], row[0], atol=0.01)
    assert update.anchor.fisher[HEAD].shape == (4, encoder.dim)
