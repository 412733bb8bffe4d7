"""Live traffic: requests over HTTP at a steady rate, and feedback a moment after their answers."""

from __future__ import annotations

import heapq
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from types import TracebackType
from typing import Literal, Self

from perdure.client import Client, Prediction, Receipt
from perdure.errors import ApiError, PerdureError
from perdure_services.demo.progress import Answer, Progress
from perdure_services.demo.scenario import Request, Wave

CONNECTIONS = 6
TIMEOUT_SECONDS = 20.0

LOOK_SECONDS = 0.05
"""How often `tick` is called, about."""

RETRY_SECONDS = 1.0
TRIES = 5
"""A request that fails so often ends the demo."""

CUSTOMERS = 41
"""Every fourth request says whose it is; so many take turns."""

Step = Literal["predict", "feedback"]

Reply = Prediction | Receipt


class Traffic:
    """Sends waves to the API at `url`.

    Args:
        url: of the API.
        rate: requests a second, feedback not counted.
        progress: takes every answer as it comes; what it has already is not sent again.
        tick: called many times a second; whatever it raises ends the wave.
    """

    def __init__(self, url: str, rate: float, progress: Progress, tick: Callable[[], None]) -> None:
        self._rate = rate
        self._progress = progress
        self._tick = tick
        # One try: what fails is counted and shown, and sent again from here, where it keeps no connection waiting.
        # No key: one in the environment is not for the API of the demo.
        self._client = Client(
            url, api_key="", timeout=TIMEOUT_SECONDS, deadline=TIMEOUT_SECONDS, tries=1, connections=CONNECTIONS
        )
        self._tries: Counter[tuple[Step, int]] = Counter()

    def send(self, wave: Wave) -> None:
        """Sends what has not been answered yet, and the feedback that is owed.

        Raises:
            PerdureError: a request failed again and again.
        """
        due = self._plan(wave)
        running: dict[Future[Reply], tuple[Step, int, float]] = {}
        pool = ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="perdure-traffic")
        try:
            while due or running:
                while due and due[0][0] <= time.monotonic() and len(running) < CONNECTIONS:
                    _, number, step = heapq.heappop(due)
                    request = wave.requests[number - wave.first]
                    running[pool.submit(self._ask, step, number, request)] = (step, number, time.monotonic())
                if running:
                    wait(running, timeout=LOOK_SECONDS, return_when=FIRST_COMPLETED)
                else:
                    time.sleep(min(LOOK_SECONDS, max(due[0][0] - time.monotonic(), 0.0)))
                for future in [future for future in running if future.done()]:
                    self._take(future, *running.pop(future), wave, due)
                self._tick()
        finally:
            # What is under way has been taken by the API, and its answer must not be lost.
            pool.shutdown(cancel_futures=True)
            for future, (_, number, begun) in running.items():
                if not future.cancelled() and future.exception() is None:
                    self._accept(future.result(), number, begun)

    def close(self) -> None:
        """Closes the connections."""
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _plan(self, wave: Wave) -> list[tuple[float, int, Step]]:
        """What is to be done when: (time, request, step), as a heap."""
        begin = time.monotonic()
        due: list[tuple[float, int, Step]] = []
        place = 0
        for number, request in enumerate(wave.requests, start=wave.first):
            if number not in self._progress.answers:
                due.append((begin + place / self._rate, number, "predict"))
                place += 1
            elif request.said and number not in self._progress.told:
                due.append((begin, number, "feedback"))
        heapq.heapify(due)
        return due

    def _ask(self, step: Step, number: int, request: Request) -> Reply:
        if step == "predict":
            subject = request.subject or (f"customer-{number % CUSTOMERS}" if number % 4 == 0 else None)
            return self._client.predict(request.text, subject=subject)
        return self._client.feedback(self._progress.answers[number].id, request.said or "", source="customer")

    def _take(
        self,
        future: Future[Reply],
        step: Step,
        number: int,
        begun: float,
        wave: Wave,
        due: list[tuple[float, int, Step]],
    ) -> None:
        try:
            reply = future.result()
        except ApiError as error:
            self._failed(step, number, error)
            heapq.heappush(due, (time.monotonic() + RETRY_SECONDS, number, step))
            return
        self._accept(reply, number, begun)
        if step == "predict" and wave.requests[number - wave.first].said:
            heapq.heappush(due, (time.monotonic() + _thinking_seconds(number), number, "feedback"))

    def _accept(self, reply: Reply, number: int, begun: float) -> None:
        if isinstance(reply, Receipt):
            self._progress.taught(number)
            return
        self._progress.answered(
            Answer(
                number,
                id=reply.id,
                label=reply.label,
                confidence=reply.confidence,
                version=reply.version,
                recorded=reply.recorded,
                seconds=time.monotonic() - begun,
            )
        )

    def _failed(self, step: Step, number: int, error: ApiError) -> None:
        why = f"{type(error).__name__}: {error}"
        self._progress.failure(number, why)
        self._tries[step, number] += 1
        # A process that died tells more than the connection that it left.
        self._tick()
        if self._tries[step, number] >= TRIES:
            raise PerdureError(f"the API refused the {step} of request {number} {TRIES} times, last with {why}")


def _thinking_seconds(number: int) -> float:
    """How long somebody takes to say what an answer should have been."""
    return 0.4 + number % 5 * 0.2
