from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis  # type: ignore[import-untyped]

from contestants.base import Context, Order, Rows, Session
from contestants.contest import contend
from contestants.entrants import ENTRANTS
from contestants.features import FrozenFeatures
from contestants.frozen import (
    Moments,
    NearestClassMean,
    NearestNeighbours,
    RandomFeaturesRidge,
    StreamingLda,
    linear_discriminant,
    softmax,
    votes,
)
from perdure.model.encoder import load_encoder

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

CLASSES = "abc"


def ridge(given: Context) -> RandomFeaturesRidge:
    return RandomFeaturesRidge(given, size=64, bandwidth=1.0, ridge=0.5)


def sample(rng: np.random.Generator, rows: int = 90, dim: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Skewed classes with a shared, correlated covariance."""
    labels = rng.choice(list(CLASSES), rows, p=[0.5, 0.3, 0.2])
    mixing = rng.normal(size=(dim, dim))
    centres = {label: rng.normal(size=dim) for label in CLASSES}
    return np.stack([centres[label] for label in labels]) + rng.normal(size=(rows, dim)) @ mixing, labels


def test_streaming_lda_is_lda_with_shrinkage() -> None:
    vectors, labels = sample(np.random.default_rng(0))
    moments = Moments(6, scatter=True)
    for block in np.array_split(np.arange(len(vectors)), 7):
        moments.add(vectors[block], labels[block].tolist())
    weights, bias = linear_discriminant(moments, 0.3)
    found = softmax(vectors @ weights.T + bias)[:, [moments.labels.index(label) for label in CLASSES]]
    means = np.stack([vectors[labels == label].mean(axis=0) for label in CLASSES])
    apart = vectors - means[[CLASSES.index(label) for label in labels]]
    covariance = apart.T @ apart / len(vectors)
    inverse = np.linalg.inv(0.7 * covariance + 0.3 * np.trace(covariance) / 6 * np.eye(6))
    distance = np.stack([((vectors - mean) @ inverse * (vectors - mean)).sum(axis=1) for mean in means], axis=1)
    np.testing.assert_allclose(found, softmax(-distance / 2), atol=1e-6)


def test_streaming_lda_answers_as_the_library_does_on_balanced_classes() -> None:
    rng = np.random.default_rng(1)
    labels = np.repeat(list(CLASSES), 30)
    vectors = rng.normal(size=(90, 6)) @ rng.normal(size=(6, 6)) + np.repeat(rng.normal(size=(3, 6)), 30, axis=0)
    moments = Moments(6, scatter=True)
    moments.add(vectors, labels.tolist())
    weights, bias = linear_discriminant(moments, 0.3)
    reference = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.3, priors=[1 / 3] * 3).fit(vectors, labels)
    np.testing.assert_allclose(softmax(vectors @ weights.T + bias), reference.predict_proba(vectors), atol=1e-5)


def test_moments_do_not_depend_on_the_order() -> None:
    vectors, labels = sample(np.random.default_rng(2))
    found = []
    for order in (np.arange(90), np.random.default_rng(3).permutation(90)):
        moments = Moments(6, scatter=True)
        for row in order:
            moments.add(vectors[[row]], [labels[row]])
        places = [moments.labels.index(label) for label in CLASSES]
        found.append((moments.mean[places], moments.count[places], moments.scatter))
    for first, second in zip(*found, strict=True):
        np.testing.assert_allclose(first, second, atol=1e-9)


def test_neighbours_vote_with_their_cosines() -> None:
    vectors = np.asarray([[1, 0], [0.8, 0.6], [0, 1], [-1, 0]], dtype=np.float32)
    columns = np.asarray([0, 1, 1, 2])
    found = votes(np.asarray([[1, 0]], dtype=np.float32), vectors, columns, 3, 3)
    np.testing.assert_allclose(found, [[1 / 1.8, 0.8 / 1.8, 0]], atol=1e-5)
    alone = votes(np.asarray([[-1, 0]], dtype=np.float32), vectors, columns, 3, 1)
    np.testing.assert_allclose(alone, [[0, 0, 1]], atol=1e-5)


def test_ridge_is_the_solution_of_its_normal_equations(context: Callable[..., Any], two_sessions: Order) -> None:
    given = context()
    solved = ridge(given)
    for session in two_sessions.sessions:
        solved.learn(session)
    texts = [text for session in two_sessions.sessions for text in session.rows.texts]
    labels = [label for session in two_sessions.sessions for label in session.rows.labels]
    hidden = solved.hidden(given.features.of(texts))
    target = np.asarray([[label == one for one in solved.labels] for label in labels], dtype=float)
    weights = np.linalg.solve(hidden.T @ hidden + 0.5 * np.eye(64), hidden.T @ target)
    np.testing.assert_allclose(solved.scores(given.features.of(texts)), hidden @ weights, atol=1e-8)


def test_random_features_approximate_the_gaussian_kernel(context: Callable[..., Any], two_sessions: Order) -> None:
    wide = RandomFeaturesRidge(context(), size=20000, bandwidth=0.5, ridge=0.1)
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(5, 32)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors[1] = 0.9 * vectors[0] + 0.1 * vectors[1]
    hidden = wide.hidden(vectors)
    distance = ((vectors[:, None] - vectors[None]) ** 2).sum(2)
    np.testing.assert_allclose(hidden @ hidden.T, np.exp(-distance / (2 * 0.25)), atol=0.04)


def test_nearest_class_mean_by_hand(context: Callable[..., Any], two_sessions: Order) -> None:
    given = context()
    contestant = NearestClassMean(given)
    for session in two_sessions.sessions:
        contestant.learn(session)
    rows = two_sessions.sessions[0].rows
    means = np.stack(
        [
            given.features.of([t for t, one in zip(s.rows.texts, s.rows.labels, strict=True) if one == label]).mean(0)
            for label in contestant.labels
            for s in two_sessions.sessions
            if label in s.rows.labels
        ]
    )
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    nearest = (given.features.of(rows.texts) @ means.T).argmax(1)
    assert (contestant.probabilities(rows.texts).argmax(1) == nearest).all()


@pytest.mark.parametrize("name", ["ncm", "slda", "knn", "ridge"])
def test_frozen_contestants_learn_within_their_budget_and_say_what_they_use(
    context: Callable[..., Any], watched: Callable[..., Any], two_sessions: Order, name: str
) -> None:
    given = context(memory=6, random_features=256, ridge=0.01, bandwidth=0.2)
    recipe, seen = watched(given.recipe)
    make = ENTRANTS[name].make
    assert make is not None
    contestant = make(replace(given, recipe=recipe))
    outcome = contend(contestant, two_sessions, given.features, memory=6)
    # Else a run with another recipe would be taken for done.
    assert seen == set(ENTRANTS[name].uses)
    assert outcome.sessions[-1].acc_seen > 0.5
    found = contestant.probabilities(two_sessions.evaluation[0].texts)
    assert found.shape == (24, 4)
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-5)
    assert contestant.bytes_kept() > 0


def test_bytes_kept_count_every_matrix(context: Callable[..., Any], two_sessions: Order) -> None:
    given = context(memory=2)
    kept = {}
    for kind in (NearestClassMean, StreamingLda, NearestNeighbours, ridge):
        contestant = kind(given)
        contend(contestant, two_sessions, given.features, memory=2)
        kept[kind] = contestant.bytes_kept()
    means = 4 * 32 * 8 + 4 * 8
    assert kept[NearestClassMean] == means
    assert kept[StreamingLda] == means + 32 * 32 * 8
    assert kept[NearestNeighbours] == 8 * 32 * 4 + 2 * len("card" + "login" + "parcel" + "refund")
    assert kept[ridge] == 64 * 64 * 8 + 64 * 4 * 8


def test_a_row_that_is_learned_from_is_charged_and_one_that_is_asked_for_is_not(context: Callable[..., Any]) -> None:
    features = context().features
    features.of(["the card stolen"] if "the card stolen" in features._rows else list(features._rows)[:1])
    assert features.charged == 0
    features.learned(list(features._rows)[:3])
    assert features.charged == pytest.approx(features._seconds[:3].sum())
    assert features.charged > 0


def test_a_class_that_returns_is_known(context: Callable[..., Any]) -> None:
    given = context(memory=3)
    texts = list(given.features._rows)
    for kind in (NearestClassMean, StreamingLda, NearestNeighbours, ridge):
        contestant = kind(given)
        for number, label in enumerate("aba"):
            contestant.learn(Session(number, Rows(tuple(texts[number * 5 : number * 5 + 5]), (label,) * 5)))
        assert contestant.labels == ("a", "b")


def test_all_layers_are_the_frozen_features_of_perdure(context: Callable[..., Any], tmp_path: Path) -> None:
    given = context()
    encoder = load_encoder(given.backbone.name, max_tokens=given.backbone.max_tokens, adapted_layers=1)
    features = FrozenFeatures(given.backbone, tmp_path, all_layers=True)
    texts = ["pay the card", "where is my parcel that I sent"]
    features.prepare(texts)
    found = features.of(texts)
    assert found.shape == (2, features.dim) == (2, encoder.inputs)
    np.testing.assert_allclose(found, encoder.features(texts, 8), atol=1e-5)
