"""The story: version 1, live traffic in waves, a trainer that learns from it, and what came of it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perdure.config import Settings
from perdure.errors import PerdureError
from perdure.model.base import Classifier
from perdure_services.demo.exam import Exam
from perdure_services.demo.interruption import Interruption
from perdure_services.demo.lookout import Lookout, Sight
from perdure_services.demo.processes import Processes
from perdure_services.demo.progress import Progress, Score, SeenTurn
from perdure_services.demo.scenario import Scenario, Wave
from perdure_services.demo.scoreboard import Scoreboard
from perdure_services.demo.traffic import Traffic
from perdure_services.demo.view import Said, Status, View

LOOK_SECONDS = 1.0
"""How often registry and memory are looked at."""

SETTLE_SECONDS = 150.0
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
        keep_reports: called with the name of each candidate that was judged.
    """

    def __init__(self, parts: Parts, cache: Path, keep_reports: Callable[[str], None]) -> None:
        self._parts = parts
        self._cache = cache
        self._keep_reports = keep_reports
        self.scoreboard = Scoreboard(parts.scenario, parts.progress)
        self._exam = Exam(parts.scenario, self._load, parts.interruption.stop)
        self._examiner = ThreadPoolExecutor(1, thread_name_prefix="perdure-exam")
        # Answered in the order in which they were asked.
        self._exams: deque[tuple[Future[Any], Callable[[Any], None]]] = deque()
        self._sight: Sight | None = None
        self._examined = parts.progress.promotions
        self._next_look = 0.0
        self._activity = "starting"
        self._wave: Wave | None = None

    def finished(self) -> bool:
        """Every wave has been run before."""
        return all(wave.number in self._parts.progress.ended for wave in self._parts.scenario.waves)

    def fit(self, data: Path) -> None:
        """Makes version 1 from `data`, unless it is there."""
        if self._parts.progress.first is not None:
            return
        opening = self._parts.scenario.opening
        labels = len({request.label for request in opening})
        self._begin(f"fitting version 1 from {len(opening)} requests with {labels} intents")
        self._parts.processes.fit(data, self._tick)
        champion = self._parts.lookout.registry.champion()
        if champion is None:
            raise PerdureError("`perdure fit` promoted no version: its verdict stands in logs/fit.log; add --fresh")
        self._parts.progress.fitted(champion.version, champion.number)
        self._examined = champion.number
        self._look()

    def start(self) -> str:
        """Starts API and trainer; the API's URL."""
        self._begin("starting the API and the trainer")
        url = self._parts.processes.serve(self._tick)
        self._parts.processes.train()
        self._parts.view.say(f"The API answers at {url}; the trainer watches the stream.")
        return url

    def waves(self, url: str) -> None:
        """Sends what has not been sent, and waits after each wave until the trainer has learned from it."""
        progress, scenario = self._parts.progress, self._parts.scenario
        self._score_now(scenario.waves[0], sent=0, wave=0)
        with Traffic(url, self._parts.rate, progress, self._tick) as traffic:
            for wave in scenario.waves:
                if wave.number not in progress.ended:
                    self._run(wave, traffic)

    def wait(self, activity: str) -> None:
        """Goes on until a signal comes.

        Raises:
            KeyboardInterrupt: it came.
        """
        self._begin(activity)
        while True:
            self._tick()
            time.sleep(STEP_SECONDS)

    def close(self) -> None:
        """Gives up exams under way."""
        self._parts.interruption.stop.set()
        self._examiner.shutdown(cancel_futures=True)

    def _run(self, wave: Wave, traffic: Traffic) -> None:
        progress = self._parts.progress
        self._wave = wave
        new = f"new intents: {', '.join(wave.new_labels)}" if wave.new_labels else "no new intents, but new wording"
        self._begin(f"wave {wave.number}: {new}")
        if wave.number not in progress.first_right:
            self._ask(
                lambda: self._exam.requests(progress.first or "", wave).tolist(),
                lambda right: progress.compared(wave.number, right),
            )
        self._score_now(wave, sent=wave.first, wave=wave.number)
        traffic.send(wave)
        begun = time.monotonic()
        self._begin(f"wave {wave.number}: waiting until the trainer has learned from it")
        self._look()
        while not (self._sight and self._sight.settled):
            if time.monotonic() - begun > SETTLE_SECONDS:
                self._parts.view.say(f"The trainer needs more than {SETTLE_SECONDS:.0f} s: the next wave begins.")
                break
            self._pause()
        waited = time.monotonic() - begun
        self._begin(f"wave {wave.number}: examining what serves now")
        self._score(wave.number, promotion=None)
        while self._exams:
            self._pause()
        progress.wave_ended(wave.number, waited)

    # ── exams ──
    def _score_now(self, wave: Wave, *, sent: int, wave_number: int | None = None) -> None: ...
