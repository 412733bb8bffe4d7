"""How good a version is, asked without the API: these questions must not be recorded as traffic."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from perdure.errors import PerdureError
from perdure.model.base import Classifier
from perdure_services.demo.scenario import Scenario, Wave

CHUNK = 32
"""Texts between two looks at whether the demo is stopping."""

Right = NDArray[np.bool_]


class Exam:
    """Which evaluation rows, and which requests, a version gets right; asked once for each version.

    Args:
        scenario: rows and requests.
        load: a version by its name.
        stop: once set, an exam under way is given up.
    """

    def __init__(self, scenario: Scenario, load: Callable[[str], Classifier], stop: threading.Event) -> None:
        self._scenario = scenario
        self._load = load
        self._stop = stop
        self._sessions = np.asarray([row.session for row in scenario.evaluation])
        self._evaluated: dict[str, Right] = {}

    def accuracy(self, version: str, wave: int) -> float:
        """Share of the evaluation rows of sessions up to `wave` that `version` gets right.

        Raises:
            PerdureError: the version cannot be loaded, or the demo is stopping.
        """
        if version not in self._evaluated:
            rows = self._scenario.evaluation
            self._evaluated[version] = self._right(version, [row.text for row in rows], [row.label for row in rows])
        return float(self._evaluated[version][self._sessions <= wave].mean())

    def requests(self, version: str, wave: Wave) -> Right:
        """For each request of `wave`, whether `version` would get it right.

        Raises:
            PerdureError: as above.
        """
        return self._right(version, [one.text for one in wave.requests], [one.label for one in wave.requests])

    def _right(self, version: str, texts: Sequence[str], truth: Sequence[str]) -> Right:
        classifier = self._load(version)
        names: list[str] = []
        for start in range(0, len(texts), CHUNK):
            if self._stop.is_set():
                raise PerdureError(f"the exam of version {version} was given up: the demo is stopping")
            names += classifier.scores(texts[start : start + CHUNK]).names()
        return np.asarray([name == label for name, label in zip(names, truth, strict=True)], dtype=np.bool_)
