"""How much the adapted head counts, and who decides that."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest

from perdure.learn.blend import HALVES_FROM, Unseen, fit_blend, unseen_blend, unseen_sharpened
from perdure.model.adapter import Adapter, AdapterShape, linear_names
from perdure.model.base import Scores
from perdure.model.classifier import AdaptedHead, AnalyticClassifier, shared_features
from perdure.model.encoder import Encoder
from perdure.records import Float

LABELS = ("card", "login", "parcel")
SHARES = (0.1, 0.5, 0.9)


@dataclasses.dataclass
class Heads:
    """Two heads; the scores of one and the embeddings of the other are made up by the tests."""

    champion: AnalyticClassifier
    adapted: AdaptedHead

    def embeddings(self, columns: Float) -> Float:
        """Embeddings for which the adapted head's logits are `columns`, times its temperature."""
        return np.pad(columns, ((0, 0), (0, self.adapted.weights.shape[1] - 3))).astype(np.float32)

    def rows(self, frozen: Float, adapted: Float, weights: list[float] | None = None) -> Unseen:
        """The first rows of `TRUTH`, for which the heads say `frozen` and `adapted`."""
        count = len(frozen)
        weighted = np.ones(count) if weights is None else np.asarray(weights)
        return Unseen(frozen, self.embeddings(adapted), tuple(NAMES[:count]), weighted)


@pytest.fixture
def heads(encoder: Encoder) -> Heads:
    targets = linear_names(encoder.copy_top())
    modules = dict(encoder.top.named_modules())
    weights = {}
    for name in targets:
        rows, columns = modules[name].weight.shape
        weights[f"{name}.A"] = modules[name].weight.new_zeros(2, columns)
        weights[f"{name}.B"] = modules[name].weight.new_zeros(rows, 2)
    adapter = Adapter(encoder, AdapterShape(2, 2, encoder.adapted_layers, targets), weights)
    head = AdaptedHead(adapter, LABELS, np.eye(3, encoder.dim, dtype=np.float32), temperature=1.0, share=0.5)
    champion = AnalyticClassifier(
        "v1",
        encoder,
        shared_features(encoder.inputs, 64, 1.0, 0),
        feature_seed=0,
        bandwidth=1.0,
        labels=LABELS,
        weights=np.zeros((64, 3), dtype=np.float32),
        temperature=1.0,
        adapted=None,
        batch=8,
    )
    return Heads(champion, head)


def says(truth: list[int], sure: float, wrong: Callable[[int], bool]) -> Float:
    """Scores that name the true column, or where `wrong` says so the next one."""
    columns = [(column + wrong(row)) % 3 for row, column in enumerate(truth)]
    return (sure * np.eye(3)[columns]).astype(np.float32)


TRUTH = [row % 3 for row in range(120)]
NAMES = [LABELS[column] for column in TRUTH]


def test_who_is_right_more_often_counts_more(heads: Heads) -> None:
    chosen = {}
    for frozen, adapted in ((2, 50), (50, 2)):
        scores = says(TRUTH, 4.0, lambda row, every=frozen: row % every == 0)
        logits = says(TRUTH, 1.0, lambda row, every=adapted: row % every == 1)
        chosen[frozen] = fit_blend(heads.champion, heads.adapted, heads.rows(scores, logits), SHARES).share
    assert chosen[50] < 0.5 < 0.8 < chosen[2]


def test_heads_that_err_apart_are_both_heard(heads: Heads) -> None:
    rows = heads.rows(
        says(TRUTH, 4.0, lambda row: row % 5 == 0),
        says(TRUTH, 1.0, lambda row: row % 5 == 2),
    )
    head = fit_blend(heads.champion, heads.adapted, rows, SHARES)
    assert head.share == pytest.approx(0.5, abs=1e-3)
    blended = heads.champion.with_adapted("v2", head).combine(rows.scores, rows.embeddings).probabilities
    truth = np.asarray(TRUTH)
    given = blended[np.arange(120), truth].mean()
    for share in (0.1, 0.9):
        other = dataclasses.replace(head, share=share)
        alone = heads.champion.with_adapted("v2", other).combine(rows.scores, rows.embeddings).probabilities
        assert np.log(alone[np.arange(120), truth]).mean() < np.log(blended[np.arange(120), truth]).mean()
    assert 0.5 < given < 1


def test_a_label_of_which_few_rows_are_left_counts_as_often_as_it_came(heads: Heads) -> None:
    """The adapted head has forgotten the first label, of which a tenth of the rows is there."""
    kept = np.asarray([TRUTH[row] != 0 or row % 30 == 0 for row in range(120)])
    rows = heads.rows(
        says(TRUTH, 4.0, lambda row: TRUTH[row] != 0 and row % 2 == 0),
        says(TRUTH, 1.0, lambda row: TRUTH[row] == 0),
        [10.0 if column == 0 else 1.0 for column in TRUTH],
    ).where(kept)
    alike = dataclasses.replace(rows, weights=np.ones(len(rows)))
    heard = fit_blend(heads.champion, heads.adapted, alike, SHARES).share
    assert fit_blend(heads.champion, heads.adapted, rows, SHARES).share < heard


def test_the_share_is_a_mean_weighted_by_what_each_share_makes_of_the_rows(heads: Heads) -> None:
    rows = heads.rows(
        says(TRUTH[:30], 4.0, lambda row: row % 5 == 0),
        says(TRUTH[:30], 1.0, lambda row: row % 10 == 2),
        [1.0 + (row % 3) for row in range(30)],
    )
    found = fit_blend(heads.champion, heads.adapted, rows, SHARES)
    # The same by plain means: the probability of all rows under each share, raised to rows that say as much.
    truth, weights = np.asarray(TRUTH[:30]), rows.weights
    logarithms = []
    for share in SHARES:
        one = fit_blend(heads.champion, heads.adapted, rows, (share,))
        said = heads.champion.with_adapted("v2", one).combine(rows.scores, rows.embeddings).probabilities
        logarithms.append(float(weights @ np.log(said[np.arange(30), truth])) * weights.sum() / (weights @ weights))
    given = np.exp(np.asarray(logarithms))
    assert found.share == pytest.approx(float(given @ SHARES / given.sum()), abs=1e-4)
    assert min(SHARES) < found.share < max(SHARES)


def test_few_rows_leave_the_share_in_the_middle_and_many_take_it_to_the_best(heads: Heads) -> None:
    def chosen(count: int) -> float:
        rows = [row % 120 for row in range(count)]
        truth = [TRUTH[row] for row in rows]
        scores = says(truth, 4.0, lambda row: row % 4 == 0)
        logits = says(truth, 1.0, lambda row: row % 40 == 20)
        asked = Unseen(scores, heads.embeddings(logits), tuple(LABELS[one] for one in truth), np.ones(count))
        return fit_blend(heads.champion, heads.adapted, asked, SHARES).share

    assert chosen(0) == pytest.approx(0.5)
    assert 0.5 < chosen(8) < chosen(40) < chosen(2400) == pytest.approx(0.9, abs=0.02)


def test_rows_do_not_choose_how_they_are_answered(heads: Heads) -> None:
    """Even rows say that the frozen head errs, odd ones that the adapted one does: each half is misled by the other."""
    rows = heads.rows(
        says(TRUTH, 4.0, lambda row: row % 4 == 0),
        says(TRUTH, 1.0, lambda row: row % 4 == 1),
    )
    unseen = unseen_blend(heads.champion, heads.adapted, rows, SHARES)
    even = rows.where(np.arange(120) % 2 == 0)
    seen = fit_blend(heads.champion, heads.adapted, even, SHARES)
    own = heads.champion.with_adapted("v2", seen).combine(even.scores, even.embeddings).probabilities
    truth = np.asarray(TRUTH)
    right = unseen.probabilities.argmax(axis=1) == truth
    assert (own.argmax(axis=1) == truth[::2]).mean() > 0.95
    assert right.mean() < 0.6


def test_a_few_rows_are_not_split(heads: Heads) -> None:
    few = HALVES_FROM - 1
    rows = heads.rows(
        says(TRUTH[:few], 4.0, lambda row: row % 4 == 0),
        says(TRUTH[:few], 1.0, lambda row: row % 4 == 1),
    )
    unseen = unseen_blend(heads.champion, heads.adapted, rows, SHARES)
    head = fit_blend(heads.champion, heads.adapted, rows, SHARES)
    whole = heads.champion.with_adapted("v2", head).combine(rows.scores, rows.embeddings)
    assert np.array_equal(unseen.probabilities, whole.probabilities)


def test_without_rows_the_scale_of_training_stays(heads: Heads) -> None:
    nothing = heads.rows(np.zeros((0, 3), dtype=np.float32), np.zeros((0, 3), dtype=np.float32))
    head = fit_blend(heads.champion, heads.adapted, nothing, SHARES)
    assert (head.temperature, head.sharpness) == (1.0, 1.0)
    assert unseen_blend(heads.champion, heads.adapted, nothing, SHARES).probabilities.shape == (0, 3)


def test_doubt_alone_is_no_gain(heads: Heads) -> None:
    # The world has turned round: the champion is sure, and wrong about every other row; the adapter knows nothing.
    sure = says(TRUTH[:80], 6.0, wrong=lambda row: row % 4 < 2)
    rows = heads.rows(sure, np.zeros((80, 3), dtype=np.float32))
    blended = unseen_blend(heads.champion, heads.adapted, rows, SHARES)
    served = heads.champion.combine(rows.scores, None)
    beside = unseen_sharpened(heads.champion, None, rows)
    assert log_score(blended, rows) > log_score(served, rows) + 0.5
    assert log_score(blended, rows) == pytest.approx(log_score(beside, rows), abs=0.01)
    assert beside.names() == served.names()
    assert beside.labels == served.labels


def test_the_champion_is_heard_with_its_own_adapter(heads: Heads) -> None:
    good = says(TRUTH[:80], 6.0, wrong=lambda _row: False)
    rows = heads.rows(np.zeros((80, 3), dtype=np.float32), np.zeros((80, 3), dtype=np.float32))
    champion = heads.champion.with_adapted("v2", heads.adapted)
    said = unseen_sharpened(champion, heads.embeddings(good), rows)
    assert tuple(said.names()) == rows.truth


def log_score(scores: Scores, rows: Unseen) -> float:
    column = [scores.labels.index(label) for label in rows.truth]
    return float(np.log(scores.probabilities[np.arange(len(rows)), column]).mean())
