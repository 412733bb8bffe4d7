"""What the demo says in figures."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from perdure.memory import Quarantined
from perdure_services.demo.progress import Answer, Progress
from perdure_services.demo.scenario import Scenario, Wave

WINDOW = 50
"""Answers in the moving accuracy."""


@dataclass(frozen=True, slots=True)
class WaveFigures:
    """One wave."""

    wave: int
    new_labels: tuple[str, ...]
    requests: int
    """Answered so far."""
    live: float
    """Share of the answers that were right, when they were given."""
    first_live: float | None
    """The same had version 1 answered; None before it has been asked."""
    confidence: float
    """Mean confidence of the answers."""
    accuracy: float | None
    """On the evaluation rows up to this wave, by what served at its end; None before."""
    first: float | None
    """The same for version 1."""
    version: str | None
    """What served at its end."""
    versions: tuple[str, ...]
    """What answered, in the order of first answers."""
    verdicts: tuple[str, ...]
    """`version outcome` of each candidate whose turn ended in it."""


@dataclass(frozen=True, slots=True)
class WrongLabels:
    """Feedback that was not the truth, and what became of it."""

    sent: int
    caught: int
    """Of these, how many are in quarantine."""
    innocent: int
    """Rows in quarantine whose label was right."""


class Scoreboard:
    """Figures from what has happened so far.

    Args:
        scenario: what is true.
        progress: what happened.
    """

    def __init__(self, scenario: Scenario, progress: Progress) -> None:
        self._scenario = scenario
        self._progress = progress

    def right(self, answer: Answer) -> bool:
        """Whether it is the truth."""
        return answer.label == self._scenario.requests[answer.number].label

    def answers(self, wave: Wave) -> tuple[Answer, ...]:
        """Those to the requests of a wave, in their order."""
        known = self._progress.answers
        return tuple(known[number] for number in range(wave.first, wave.end) if number in known)

    def live(self, last: int = WINDOW) -> float | None:
        """Share of the last answers that were right."""
        return _mean(self.right(answer) for answer in self._last(last))

    def first_live(self, last: int = WINDOW) -> float | None:
        """The same had version 1 answered them."""
        return _mean(self.first_right(answer.number) for answer in self._last(last))

    def confidence(self, last: int = WINDOW) -> float | None:
        """Mean confidence of the last answers."""
        return _mean(answer.confidence for answer in self._last(last))

    def first_right(self, number: int) -> bool | None:
        """Whether version 1 gets request `number` right; None before it has been asked."""
        wave = self._scenario.wave_of(number)
        found = self._progress.first_right.get(wave.number)
        return None if found is None else found[number - wave.first]

    def waves(self) -> tuple[WaveFigures, ...]:
        """All waves that have begun."""
        return tuple(self._wave(wave) for wave in self._scenario.waves if self.answers(wave))

    def exam(self) -> tuple[list[tuple[float, float]], list[tuple[float, float]]]:
        """(minutes, accuracy) of what served and of version 1: steps, as a version serves until the next one does."""
        scores = self._progress.scores
        return _steps([(score.seconds / 60, score.accuracy) for score in scores]), _steps(
            [(score.seconds / 60, score.first) for score in scores]
        )

    def minutes(self, wave: Wave) -> tuple[float, float] | None:
        """When a wave began and when it was over; None before."""
        times = [score.seconds / 60 for score in self._progress.scores if score.wave == wave.number]
        return (times[0], times[-1]) if times else None

    def moving(self) -> tuple[list[tuple[float, float]], list[tuple[float, float]], list[tuple[float, float]]]:
        """(requests, figure) over the last `WINDOW` answers: live accuracy, version 1's, and mean confidence."""
        answers = [self._progress.answers[number] for number in sorted(self._progress.answers)]
        live: list[tuple[float, float]] = []
        first: list[tuple[float, float]] = []
        confidence: list[tuple[float, float]] = []
        for end in range(WINDOW, len(answers) + 1, 5):
            window = answers[end - WINDOW : end]
            theirs = [self.first_right(answer.number) for answer in window]
            live.append((float(end), float(np.mean([self.right(answer) for answer in window]))))
            confidence.append((float(end), float(np.mean([answer.confidence for answer in window]))))
            if None not in theirs:
                first.append((float(end), float(np.mean([bool(one) for one in theirs]))))
        return live, first, confidence

    def wrong_labels(self, quarantined: Iterable[Quarantined]) -> WrongLabels:
        """How well the gate told wrong feedback from right."""
        known = {answer.id: answer.number for answer in self._progress.answers.values()}
        found = {known[one.id] for one in quarantined if one.id in known}
        wrong = {number for number in self._progress.told if self._scenario.requests[number].wrong}
        return WrongLabels(len(wrong), len(found & wrong), len(found - wrong))

    def unrecorded(self) -> int:
        """Answers that were not durable when they were given."""
        return sum(not answer.recorded for answer in self._progress.answers.values())

    def versions(self) -> tuple[str, ...]:
        """What has answered, in the order of first answers."""
        return tuple(dict.fromkeys(answer.version for answer in self._progress.answers.values()))

    def _last(self, count: int) -> list[Answer]:
        return list(self._progress.answers.values())[-count:]

    def _wave(self, wave: Wave) -> WaveFigures:
        answers = self.answers(wave)
        over = wave.number in self._progress.ended
        scores = [score for score in self._progress.scores if score.wave == wave.number]
        last = scores[-1] if scores and over else None
        first = self._progress.first_right.get(wave.number)
        return WaveFigures(
            wave=wave.number,
            new_labels=wave.new_labels,
            requests=len(answers),
            live=float(np.mean([self.right(answer) for answer in answers])),
            first_live=None
            if first is None
            else float(np.mean([first[answer.number - wave.first] for answer in answers])),
            confidence=float(np.mean([answer.confidence for answer in answers])),
            accuracy=last.accuracy if last else None,
            first=last.first if last else None,
            version=last.version if last else None,
            versions=tuple(dict.fromkeys(answer.version for answer in answers)),
            verdicts=tuple(
                f"{one.version} {one.outcome}"
                for turn in self._progress.turns
                if turn.wave == wave.number
                for one in turn.result.candidates
            ),
        )


def _steps(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    found = points[:1]
    for before, after in pairwise(points):
        found += [(after[0], before[1]), after]
    return found


def _mean(values: Iterable[float | bool | None]) -> float | None:
    found = [float(value) for value in values if value is not None]
    return float(np.mean(found)) if found else None
