"""Micro-batches: requests that wait together are answered by one forward pass of one version."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from perdure.model.base import Classifier, Prediction, Scores
from perdure_services.serving.admission import Admission, Run
from perdure_services.serving.champion import Champion
from perdure_services.serving.deadline import too_late
from perdure_services.serving.metrics import Metrics
from perdure_services.serving.pace import Pace, TextSize, measured
from perdure_services.serving.refusal import Refusal
from perdure_services.serving.waiting_line import WaitingLine, WaitingRequest

WORTH_A_LANE = 4.0
"""Times its fixed cost that a batch must hold to be run beside another one."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Answer:
    """The scores of one request's texts, all by one version."""

    version: str
    scores: Scores
    first: tuple[Prediction, ...]
    """The best label of each text, computed for the whole batch at once, and not in the event loop."""
    queued: float = 0.0
    """When the request came, in seconds of `time.perf_counter`."""
    begun: float = 0.0
    """When its batch was begun."""
    done: float = 0.0
    """When its batch was done."""


_Request: TypeAlias = WaitingRequest[Answer]


@dataclass(frozen=True, slots=True)
class _Batch:
    requests: list[_Request]
    texts: list[str]
    parts: list[list[int]]
    run: Run | None
    """None where there are no requests."""


class Batcher:
    """Answers requests in threads of its own.

    A thread takes what waits, oldest first and those of like length with it, and never waits for more. It asks for
    the champion once a batch, so that a request is answered by exactly one version, and a swap falls between two
    batches. A batch may be run in parts, by the same version. Several batches run at once where the champion may be
    asked by several threads.

    Args:
        champion: what answers now.
        threads: that run batches.
        max_batch: most texts in one forward pass.
        max_queue: most requests that wait.
        queue_seconds: longest expected wait that is accepted in a burst.
        batch_seconds: what a forward pass of several texts should take at most.
        cut: characters of a text that the encoder sees, about.
        metrics: where it is counted.
    """

    def __init__(
        self,
        champion: Callable[[], Champion | None],
        *,
        threads: int = 1,
        max_batch: int,
        max_queue: int,
        queue_seconds: float,
        batch_seconds: float,
        cut: int,
        metrics: Metrics,
    ) -> None:
        self._champion = champion
        self._cut = cut
        self._batch_seconds = batch_seconds
        self._metrics = metrics
        self._pace = Pace()
        self._line: WaitingLine[Answer] = WaitingLine(self._pace, max_batch=max_batch, batch_seconds=batch_seconds)
        self._admission = Admission(
            self._line,
            self._pace,
            max_requests=max_queue,
            max_seconds=queue_seconds,
            max_batch=max_batch,
            now=time.monotonic(),
        )
        self._changed = threading.Condition()
        self._closing = False
        self._answered = float("-inf")
        self._threads = [
            threading.Thread(target=self._run, name=f"perdure-batcher-{number}", daemon=True)
            for number in range(threads)
        ]
        metrics.watch(metrics.queue, lambda: len(self._line))
        metrics.watch(metrics.queue_wait, lambda: self.expected_wait)

    def start(self) -> None:
        """Begins to answer."""
        for thread in self._threads:
            thread.start()

    @property
    def alive(self) -> bool:
        """Whether the threads that answer are running."""
        return all(thread.is_alive() for thread in self._threads)

    @property
    def idle_seconds(self) -> float:
        """Seconds since a batch was last answered; infinite before the first."""
        return time.monotonic() - self._answered

    @property
    def busy_seconds(self) -> float:
        """Seconds that the batch which has been run for longest has taken so far; 0 while none is run."""
        with self._changed:
            since = self._admission.running_since
        return 0.0 if since is None else max(time.monotonic() - since, 0.0)

    @property
    def expected_wait(self) -> float:
        """Seconds until what waits now is expected to be answered."""
        with self._changed:
            return self._admission.wait(time.monotonic())

    def check(self, deadline: float = math.inf) -> None:
        """Refuses at the door what `submit` would refuse, before anything is spent on it.

        Raises:
            Refusal: 429 when a request that wants its answer by `deadline` (monotonic seconds) may not wait.
        """
        with self._changed:
            self._check(deadline, 0)

    def submit(self, texts: Sequence[str], *, deadline: float = math.inf) -> Future[Answer]:
        """Queues `texts` (at least one), which are not computed any more after `deadline` (monotonic seconds).

        The future fails with `Refusal`: 503 when nothing can be served, 504 when it was too late. To cancel it frees
        its place.

        Raises:
            Refusal: 429 when it would wait too long, 503 when serving is stopping.
        """
        request = WaitingRequest[Answer](tuple(texts), measured(texts, self._cut), sum(map(len, texts)), deadline)
        with self._changed:
            if self._closing:
                raise _stopping()
            self._check(deadline, request.chars)
            self._line.put(request)
            self._changed.notify()
        # Outside of the lock, which the callback takes.
        request.future.add_done_callback(lambda future: self._left(request) if future.cancelled() else None)
        return request.future

    def close(self, timeout: float) -> None:
        """Answers what waits, for up to `timeout` seconds, refuses the rest and stops."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        until = time.monotonic() + timeout
        for thread in self._threads:
            if thread.is_alive():
                thread.join(max(until - time.monotonic(), 0.0))
        left: list[_Request] = []
        with self._changed:
            while batch := self._line.take(-math.inf)[0]:
                left.extend(batch)
        for request in left:
            if request.future.set_running_or_notify_cancel():
                request.future.set_exception(_stopping())

    def _check(self, deadline: float, chars: int) -> None:
        refusal = self._admission.refusal(time.monotonic(), deadline, chars)
        if refusal is not None:
            self._metrics.shed.inc()
            raise refusal

    def _left(self, request: _Request) -> None:
        with self._changed:
            gone = self._line.remove(request)
        if gone:
            self._metrics.abandoned.inc()

    def _run(self) -> None:
        while (batch := self._take()) is not None:
            if batch.requests:
                self._answer_in_time(batch)

    def _take(self) -> _Batch | None:
        """The next batch, which may be empty; None at the end."""
        with self._changed:
            while not (self._closing or self._may_begin()):
                # What waits beside a batch that takes longer than it should is looked at again.
                self._changed.wait(self._batch_seconds if len(self._line) else None)
            taken, late = self._line.take(time.monotonic())
            # Without what was cancelled since it was put.
            requests = [request for request in taken if request.future.set_running_or_notify_cancel()]
            batch = self._begun(requests) if requests else _Batch([], [], [], None)
        for request in late:
            self._metrics.abandoned.inc()
            if request.future.set_running_or_notify_cancel():
                request.future.set_exception(too_late())
        return batch if taken or late else None

    def _may_begin(self) -> bool:
        line, running = self._line, self._admission.running
        if not running:
            return len(line) > 0
        if running >= self._admission.lanes or not len(line):
            return False
        # Beside another one a batch takes a core from all else that answers: a small one, which costs little more than
        # the fixed part, had better wait until it is larger or the other is done, if that is soon.
        worth = self._pace.per_work * line.work >= WORTH_A_LANE * self._pace.fixed
        return worth or self._admission.soonest(time.monotonic()) > self._batch_seconds

    def _begun(self, requests: list[_Request]) -> _Batch:
        texts = [text for request in requests for text in request.texts]
        parts = self._line.pieces([measured([text], self._cut) for text in texts])
        return _Batch(
            requests, texts, parts, self._admission.begun(measured(texts, self._cut), len(parts), time.monotonic())
        )

    def _answer_in_time(self, batch: _Batch) -> None:
        """Answers `batch`, and learns how long that took."""
        try:
            self._answer(batch.requests, batch.texts, batch.parts)
        except Exception as error:  # noqa: BLE001
            # Whatever it was, the next batch may be better.
            _log.exception("a batch of %d requests failed", len(batch.requests))
            for request in batch.requests:
                if not request.future.done():
                    request.future.set_exception(error)
        finally:
            assert batch.run is not None
            with self._changed:
                self._admission.ended(batch.run, time.monotonic())
                self._changed.notify()

    def _answer(self, batch: list[_Request], texts: list[str], parts: list[list[int]]) -> None:
        champion = self._champion()
        if champion is None:
            for request in batch:
                request.future.set_exception(no_champion())
            return
        with self._changed:
            self._admission.lanes = len(self._threads) if champion.classifier.concurrent else 1
        start = time.perf_counter()
        try:
            scores = self._scores(champion.classifier, texts, parts)
        except Exception as error:  # noqa: BLE001
            if len(batch) > 1:
                # One text that the model cannot take must not fail those that happened to come with it.
                for request in batch:
                    own = list(request.texts)
                    sizes = [measured([text], self._cut) for text in own]
                    self._answer([request], own, self._line.pieces(sizes))
                return
            said = "version %s failed on a request with %d texts"
            batch[0].context.run(_log.exception, said, champion.version, len(batch[0].texts))
            batch[0].future.set_exception(error)
            return
        self._answered = time.monotonic()
        best = scores.predictions()
        done = time.perf_counter()
        self._metrics.waited(champion.version, [start - request.since for request in batch])
        first = 0
        for request in batch:
            last = first + len(request.texts)
            rows = scores.probabilities[first:last]
            answered = Scores(scores.labels, rows)
            request.future.set_result(Answer(champion.version, answered, best[first:last], request.since, start, done))
            first = last

    def _scores(self, classifier: Classifier, texts: list[str], parts: list[list[int]]) -> Scores:
        probabilities = None
        for places in parts:
            part = [texts[place] for place in places]
            start = time.perf_counter()
            scores = classifier.scores(part)
            seconds = time.perf_counter() - start
            if (
                scores.probabilities.shape != (len(part), len(scores.labels))
                or not np.isfinite(scores.probabilities).all()
            ):
                raise ArithmeticError(
                    f"version {classifier.version} answered {len(part)} texts with probabilities of shape "
                    f"{scores.probabilities.shape} that are not all finite"
                )
            size: TextSize = measured(part, self._cut)
            with self._changed:
                self._pace.learn(size.padded, seconds)
            self._metrics.computed(classifier.version, len(part), seconds)
            if probabilities is None:
                probabilities = np.empty((len(texts), len(scores.labels)), dtype=scores.probabilities.dtype)
            probabilities[places] = scores.probabilities
        assert probabilities is not None
        # Rounding may carry a probability past 1, which no record takes.
        return Scores(scores.labels, probabilities.clip(0, 1))


def no_champion() -> Refusal:
    """The answer while no version can be served."""
    return Refusal(
        503,
        "no version is served yet",
        do="make the first one with `perdure fit --data FILE`; if there is one, GET /v1/versions says what is wrong",
        headers={"Retry-After": "1"},
    )


def _stopping() -> Refusal:
    return Refusal(503, "this process is stopping", do="send the request again", headers={"Retry-After": "1"})
