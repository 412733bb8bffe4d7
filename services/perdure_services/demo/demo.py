"""The story: version 1, live traffic in waves, a trainer that learns from it, and how well that goes."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from perdure.config import Settings
from perdure.errors import PerdureError
from perdure.model.base import Classifier
from perdure.registry import Promotion
from perdure_services.demo.exam import Exam
from perdure_services.demo.interruption import Interruption
from perdure_services.demo.lookout import Lookout, Sight
from perdure_services.demo.processes import Processes
from perdure_services.demo.progress import Progress, Score, SeenTurn
from perdure_services.demo.scenario import Scenario, Wave
from perdure_services.demo.scoreboard import Scoreboard
from perdure_services.demo.traffic import Traffic
from perdure_services.demo.view import Said, Status, View, named

LOOK_SECONDS = 1.0
"""How often registry and memory are looked at."""

SETTLE_SECONDS = 300.0
"""How long the trainer is waited for after a wave; then the next one begins all the same."""

USUAL_SETTLE_SECONDS = 45.0
"""What is expected of that before any wave has ended."""

STEP_SECONDS = 0.1


@dataclass(frozen=True)
class Parts:
    """What a demo is made of."""

    scenario: Scenario
    settings: Settings
    progress: Progress
    processes: Processes
    lookout: Lookout
    view: View
    interruption: Interruption
    rate: float
    """Requests a second."""


class Demo:
    """Runs what has not been run yet.

    Args:
        parts: what it is made of.
        cache: a local folder for versions.
        on_turn: called with each turn that is seen to be finished.
    """

    def __init__(self, parts: Parts, cache: Path, on_turn: Callable[[SeenTurn], None]) -> None:
        self._parts = parts
        self._cache = cache
        self._on_turn = on_turn
        self._scoreboard = Scoreboard(parts.scenario, parts.progress)
        self._exam = Exam(parts.scenario, self._load, parts.interruption.stop)
        self._examiner = ThreadPoolExecutor(1, thread_name_prefix="perdure-exam", initializer=_stand_back)
        # Answered in the order in which they were asked.
        self._exams: deque[tuple[Future[Any], Callable[[Any], None]]] = deque()
        self._sight: Sight | None = None
        self._examined = parts.progress.promotions
        self._next_look = 0.0
        self._activity = "starting"
        self._wave: Wave | None = None
        self._turn_begun: float | None = None

    @property
    def finished(self) -> bool:
        """Every wave is over."""
        return all(wave.number in self._parts.progress.ended for wave in self._parts.scenario.waves)

    def fit(self, data: Path) -> None:
        """Makes version 1 from the file `data`, unless it is there."""
        progress, opening = self._parts.progress, self._parts.scenario.opening
        if progress.first is not None:
            return
        labels = len({request.label for request in opening})
        self._begin(f"fitting version 1 from {len(opening)} requests with {labels} intents")
        self._parts.processes.fit(data, self._tick)
        champion = self._parts.lookout.registry.champion()
        if champion is None:
            raise PerdureError("`perdure fit` promoted no version: logs/fit.log says why; change the data, or --set")
        progress.fitted(champion.version, champion.number)
        self._examined = champion.number
        self._look()
        self._score(0)

    def start(self) -> str:
        """Starts API and trainer; the API's URL."""
        self._begin("starting the API and the trainer")
        self._parts.processes.train()
        url = self._parts.processes.serve(self._tick)
        self._parts.view.say(f"The API answers at {url}, the trainer watches the stream.")
        return url

    def waves(self, url: str) -> None:
        """Sends what has not been sent, and waits after each wave until the trainer has learned from it."""
        progress, scenario = self._parts.progress, self._parts.scenario
        with Traffic(url, self._parts.rate, progress, self._tick) as traffic:
            for wave in scenario.waves:
                if wave.number not in progress.ended:
                    self._run(wave, traffic)
        self._begin("examining what serves now")
        while self._exams:
            self._pause()
        self._wave = None

    def wait(self) -> None:
        """Lets API and trainer run until a signal comes.

        Raises:
            KeyboardInterrupt: it came.
            PerdureError: one of the two has ended.
        """
        while True:
            self._parts.interruption.check()
            self._parts.processes.check()
            time.sleep(STEP_SECONDS)

    def close(self) -> None:
        """Gives up exams under way."""
        self._parts.interruption.stop.set()
        self._examiner.shutdown(cancel_futures=True)

    def _run(self, wave: Wave, traffic: Traffic) -> None:
        progress = self._parts.progress
        self._wave = wave
        self._begin(f"wave {wave.number}: {named(wave.new_labels)}")
        if wave.number not in progress.first_right:
            version = progress.first or ""
            self._ask(
                lambda: self._exam.requests(version, wave).tolist(), lambda right: progress.compared(wave.number, right)
            )
        if not any(score.wave == wave.number for score in progress.scores):
            self._score(wave.number)
        traffic.send(wave)
        self._begin(f"wave {wave.number}: the trainer takes in what is left of it")
        waited = self._settle()
        # Examined while the next wave begins.
        self._score(wave.number)
        progress.wave_ended(wave.number, waited)

    def _settle(self) -> float:
        """Waits until the trainer has had everything; the seconds that it took."""
        begun = time.monotonic()
        self._sight = None
        while not self._settled():
            if time.monotonic() - begun > SETTLE_SECONDS:
                self._parts.view.say(f"The trainer needs more than {SETTLE_SECONDS:.0f} s: the demo goes on.")
                break
            self._pause()
        return time.monotonic() - begun

    def _settled(self) -> bool:
        return self._sight is not None and self._sight.settled

    # ── exams ──
    def _score(self, wave: int, promotion: Promotion | None = None) -> None:
        """Has the version that was promoted, or that serves, examined beside version 1."""
        progress = self._parts.progress
        champion = promotion or self._parts.lookout.registry.champion()
        first = progress.first
        assert champion is not None
        assert first is not None
        version, number = champion.version, champion.number
        seconds, sent = progress.seconds, progress.sent
        self._ask(
            lambda: (self._exam.accuracy(version, wave), self._exam.accuracy(first, wave)),
            lambda found: progress.scored(
                Score(seconds, sent, wave, version, accuracy=found[0], first=found[1], promotion=promotion is not None),
                number,
            ),
        )

    def _ask(self, question: Callable[[], Any], then: Callable[[Any], None]) -> None:
        self._exams.append((self._examiner.submit(question), then))

    def _load(self, version: str) -> Classifier:
        # Imported here: a demo that is over is shown again without waiting for torch.
        import torch

        from perdure.model.classifier import load_classifier

        model = self._parts.settings.model
        # All of it in the thread that stands back.
        torch.set_num_threads(1)
        folder = self._parts.lookout.registry.fetch(version, self._cache)
        return load_classifier(folder, version, batch=model.batch, encoder=model.name)

    # ── looking ──
    def _begin(self, activity: str) -> None:
        self._activity = activity
        self._tick()

    def _pause(self) -> None:
        self._tick()
        time.sleep(STEP_SECONDS)

    def _tick(self) -> None:
        """Everything that goes on beside what is being done."""
        self._parts.interruption.check()
        while self._exams and self._exams[0][0].done():
            future, then = self._exams.popleft()
            then(future.result())
        if time.monotonic() >= self._next_look:
            self._parts.processes.check()
            if self._parts.progress.first is not None:
                self._look()
            self._next_look = time.monotonic() + LOOK_SECONDS
        self._parts.view.show(self._status())

    def _look(self) -> None:
        sight = self._parts.lookout.look()
        if sight is None:
            return
        self._sight = sight
        progress = self._parts.progress
        wave = self._wave or self._parts.scenario.wave_of(progress.sent)
        seen = {turn.result.number for turn in progress.turns}
        for result in sight.turns:
            if result.number not in seen:
                # The first is that of `perdure fit`, before any wave.
                turn = SeenTurn(wave.number if result.number > 1 else 0, progress.sent, result)
                self._on_turn(turn)
                progress.turned(turn)
                self._parts.view.say(f"  turn {result.number}: {result.drift}".rstrip(": "))
                for one in result.candidates:
                    self._parts.view.say(f"  {one.version}: {one.sentence}")
        for promotion in sight.promotions[self._examined :]:
            self._score(wave.number, promotion)
            self._examined = promotion.number
        if not sight.learning:
            self._turn_begun = None
        elif self._turn_begun is None:
            self._turn_begun = time.monotonic()

    def _status(self) -> Status:
        progress, scenario, wave = self._parts.progress, self._parts.scenario, self._wave
        last = next(reversed(progress.answers.values()), None)
        return Status(
            activity=self._activity,
            wave=wave.number if wave else 0,
            waves=scenario.waves[-1].number,
            answered=sum(number in progress.answers for number in range(wave.first, wave.end)) if wave else 0,
            requests=len(wave.requests) if wave else 0,
            sent=progress.sent,
            total=len(scenario.requests),
            live=self._scoreboard.live(),
            first_live=self._scoreboard.first_live(),
            confidence=self._scoreboard.confidence(),
            exam=progress.scores[-1].accuracy if progress.scores else None,
            first_exam=progress.scores[-1].first if progress.scores else None,
            version=last.version if last else progress.first,
            trainer=self._trainer(),
            failed=progress.failed,
            seconds=progress.seconds,
            left=self._left(),
            verdicts=tuple(
                Said(one.version, one.outcome, one.sentence)
                for turn in progress.turns[-4:]
                for one in turn.result.candidates
            ),
            figures=self._scoreboard.waves(),
        )

    def _trainer(self) -> str:
        if self._sight is None:
            return ""
        if self._turn_begun is not None:
            return f"learning for {time.monotonic() - self._turn_begun:.0f} s"
        return f"{self._sight.waiting} labels wait" if self._sight.waiting else "up to date"

    def _left(self) -> float | None:
        """Seconds to the end, by what the waves so far have taken."""
        progress, scenario = self._parts.progress, self._parts.scenario
        if progress.first is None:
            return None
        settle = float(np.mean(list(progress.ended.values()))) if progress.ended else USUAL_SETTLE_SECONDS
        waves = sum(wave.number not in progress.ended for wave in scenario.waves)
        return (len(scenario.requests) - progress.sent) / self._parts.rate + waves * settle


def _stand_back() -> None:
    """Exams take what is left of the processor: the turn that they look at goes first."""
    if sys.platform == "linux":
        # There, and only there, a thread has a priority of its own.
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
