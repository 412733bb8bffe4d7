"""The first learner: the analytic head, brought up to date. Seconds, and exact."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from perdure.config import Settings
from perdure.errors import TooFewLabels
from perdure.judge.evidence import Evidence, Source, traffic_weights
from perdure.learn.candidate import Candidate
from perdure.learn.imprint import Scored, spoken
from perdure.learn.leverage import Leverage, unseen_scores
from perdure.learn.material import Labelled, Material
from perdure.learn.temperature import fit_balance, fit_temperature
from perdure.memory import Delta
from perdure.model.base import Scores
from perdure.model.classifier import AnalyticClassifier, Encoded, shared_features
from perdure.model.encoder import Encoder
from perdure.model.features import RandomFeatures
from perdure.model.head import Double, Solution, Statistics, choose_ridge, leave_one_out, solve
from perdure.records import Float, is_held_out

logger = logging.getLogger(__name__)

RIDGE_ROWS = 1500
"""Rows that the ridge penalty is chosen by; more would not choose better, and each costs D² operations."""

GROWTH = 1.2
"""The penalty is chosen anew when there are so many times the rows that it was chosen at: it moves slowly."""


class HeadLearner:
    """Keeps the head's statistics and solves for the head.

    Args:
        encoder: the frozen encoder.
        settings: features, bandwidth, penalties and seed.
    """

    def __init__(self, encoder: Encoder, settings: Settings) -> None:
        model = settings.model
        self._encoder = encoder
        self._settings = settings
        self.features: RandomFeatures = shared_features(encoder.inputs, model.features, model.bandwidth, settings.seed)

    def absorb(self, statistics: Statistics, deltas: Sequence[Delta], material_features: Float) -> None:
        """Puts `deltas` into the statistics.

        Args:
            statistics: changed in place.
            deltas: n labels with their signs.
            material_features: frozen features of their texts, n × inputs.
        """
        for rows, features in self.features.blocks(material_features):
            part = deltas[rows]
            statistics.update(features, [delta.label for delta in part], [delta.sign for delta in part])

    def candidate(
        self,
        statistics: Statistics,
        classes: Mapping[str, int],
        material: Material,
        champion: AnalyticClassifier | None,
        champion_leverage: Leverage | None,
        carried: Mapping[str, bytes],
        name: str,
    ) -> Candidate:
        """A version whose head knows every label joined so far.

        Args:
            statistics: G and Q of everything joined.
            classes: labels with enough examples.
            material: this turn's rows and samples.
            champion: what is served now.
            champion_leverage: of the champion's head.
            carried: files of the champion that go on unchanged, such as the EWC anchor.
            name: the version's name.

        Raises:
            TooFewLabels: fewer than two labels have enough examples.
        """
        labels = [label for label in classes if statistics.counts.get(label, 0) > 0]
        if len(labels) < 2:
            raise TooFewLabels(
                f"a classifier needs at least two labels with {self._settings.memory.class_rows} examples "
                f"each, but there {'is' if len(labels) == 1 else 'are'} {', '.join(map(repr, labels)) or 'none'}: "
                "add rows of another label, or lower memory.pending_labels_below"
            )
        known = frozenset(labels)
        fresh, remembered = material.fresh(), material.remembered()
        fresh = fresh.where([label in known for label in fresh.labels])
        remembered = remembered.where([label in known for label in remembered.labels])
        rows = fresh + remembered
        encoded = material.encodings(rows.texts)
        solution, chosen = self._solve(statistics, labels, rows, encoded.features, champion_leverage, material)
        scores, pulls = self._asked(solution, encoded.features)
        leverage = Leverage(self._leverages(solution, rows, pulls, material), solution.ridge, chosen)
        unseen = leave_one_out(scores, leverage(rows.keys), rows.labels, labels)
        balance = self._balance(unseen, rows, labels, statistics, material.turn)
        weights = traffic_weights(rows.labels, statistics.counts)
        temperature = fit_temperature(unseen * balance, rows.labels, labels, weights)
        share = self._settings.memory.holdout_share
        imprint = np.asarray([not is_held_out(key, share) for key in rows.keys], dtype=np.bool_)
        # Of rows that the champion's adapter was trained on its head has nothing to say that counts.
        alone = imprint & (np.arange(len(rows)) >= len(fresh))
        adapted = logits = None
        if champion is not None and champion.adapted is not None and encoded.adapted is not None:
            frozen = Scored(labels, unseen, np.float32(temperature) * balance, weights * ~alone)
            adapted, logits = spoken(champion.adapted, frozen, rows, encoded.adapted, imprint)
        classifier = AnalyticClassifier(
            name,
            self._encoder,
            self.features,
            feature_seed=self._settings.seed,
            bandwidth=self._settings.model.bandwidth,
            labels=labels,
            weights=solution.weights,
            temperature=temperature,
            balance=balance,
            adapted=adapted,
            batch=self._settings.model.batch,
        )
        sources: list[Source] = ["fresh"] * len(fresh)
        sources += ["leave_one_out"] * len(remembered)
        before = None
        if champion is not None:
            seen_before = champion_leverage or Leverage({})
            then = unseen_scores(champion, seen_before, encoded.features, rows.keys, rows.labels)
            before = _said(champion, then, _logits(champion, encoded), alone)
        evidence = Evidence(
            texts=rows.texts,
            truth=rows.labels,
            source=tuple(sources),
            champion=before,
            candidate=_said(classifier, unseen, logits, alone),
        )
        return Candidate(
            kind="first" if champion is None else "head",
            classifier=classifier,
            leverage=leverage,
            evidence=evidence,
            extra=carried,
            metrics={"ridge": solution.ridge, "temperature": classifier.temperature, "rows": float(statistics.rows)},
        )

    def _solve(
        self,
        statistics: Statistics,
        labels: Sequence[str],
        rows: Labelled,
        vectors: Float,
        before: Leverage | None,
        material: Material,
    ) -> tuple[Solution, int]:
        """The head, and the number of rows that its penalty was chosen at."""
        ridges = self._settings.model.ridge
        # An erasure may have taken most rows away: then, too, the penalty is to be chosen anew.
        kept = before is not None and before.chosen / GROWTH < statistics.rows < GROWTH * before.chosen
        if before and kept and before.ridge in ridges:
            return solve(statistics, labels, before.ridge), before.chosen
        some = np.random.default_rng(self._settings.seed + material.turn).permutation(len(rows))[:RIDGE_ROWS]
        solution = choose_ridge(
            statistics,
            labels,
            self.features(vectors[some]),
            [rows.labels[row] for row in some],
            ridges,
            copies=material.copies(rows.keys)[some],
            start=before.ridge if before else None,
            upwards=material.turn % 2 == 0,
        )
        return solution, statistics.rows

    def _balance(
        self, unseen: Float, rows: Labelled, labels: Sequence[str], statistics: Statistics, turn: int
    ) -> Float:
        some = np.random.default_rng(self._settings.seed + turn).permutation(len(rows))[:RIDGE_ROWS]
        return fit_balance(unseen[some], [rows.labels[row] for row in some], labels, statistics.counts)

    def _asked(self, solution: Solution, vectors: Float) -> tuple[Float, Double]:
        """Scores (n × C) and leverages (n) of n frozen feature vectors."""
        scores, pulls = np.empty((len(vectors), len(solution.labels)), dtype=np.float32), np.empty(len(vectors))
        for rows, features in self.features.blocks(vectors):
            scores[rows], pulls[rows] = solution.scores(features), solution.leverage(features)
        return scores, pulls

    def _leverages(self, solution: Solution, rows: Labelled, pulls: Double, material: Material) -> Mapping[str, float]:
        """Of `rows` with all their copies, and of what is in quarantine: memory may ask about that later."""
        labelled, barred = material.labelled(), material.doubtful()
        doubtful = labelled.where([key in barred for key in labelled.keys])
        found = dict(zip(rows.keys, (pulls * material.copies(rows.keys)).tolist(), strict=True))
        if len(doubtful):
            _, more = self._asked(solution, material.encodings(doubtful.texts).features)
            found.update(zip(doubtful.keys, (more * material.copies(doubtful.keys)).tolist(), strict=True))
        return found


def _logits(champion: AnalyticClassifier, encoded: Encoded) -> Float | None:
    if champion.adapted is None or encoded.adapted is None:
        return None
    return champion.adapted.logits(encoded.adapted)


def _said(classifier: AnalyticClassifier, scores: Float, logits: Float | None, alone: NDArray[np.bool_]) -> Scores:
    """Probabilities of n rows; where `alone` is true those of the frozen head alone."""
    if logits is None:
        return classifier.blend(scores, None)
    both, frozen = classifier.blend(scores, logits), classifier.blend(scores, None)
    return Scores(both.labels, np.where(alone[:, None], frozen.probabilities, both.probabilities))
