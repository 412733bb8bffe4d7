"""Micro-batches: requests that wait together are answered by one forward pass of one version."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np

from perdure.model.base import Classifier, Scores
from perdure_services.serving.champion import Champion
from perdure_services.serving.metrics import Metrics
from perdure_services.serving.refusal import Refusal

MAX_QUEUE_CHARS = 64_000_000
"""Characters of text that wait at most, however many requests they belong to."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Answer:
    """The scores of one request's texts, all by one version."""

    version: str
    scores: Scores


@dataclass(frozen=True, slots=True)
class _Request:
    texts: tuple[str, ...]
    chars: int
    future: Future[Answer] = field(default_factory=Future)


class Batcher:
    """Answers requests in one thread of its own, in the order in which they came.

    The thread takes what waits, up to `max_batch` texts, and never waits for more. It asks for the champion once a
    batch, so that a request is answered by exactly one version, and a swap falls between two batches. A request with
    more than `max_batch` texts is a batch of its own, computed piece by piece by the same version.
    """

    def __init__(
        self, champion: Callable[[], Champion | None], *, max_batch: int, max_queue: int, metrics: Metrics
    ) -> None:
        self._champion = champion
        self._max_batch = max_batch
        self._max_queue = max_queue
        self._metrics = metrics
        self._waiting: deque[_Request] = deque()
        self._chars = 0
        self._changed = threading.Condition()
        self._closing = False
        self._answered = float("-inf")
        self._thread = threading.Thread(target=self._run, name="perdure-batcher", daemon=True)
        metrics.watch(metrics.queue, lambda: len(self._waiting))

    def start(self) -> None:
        """Begins to answer."""
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the thread that answers is running."""
        return self._thread.is_alive()

    @property
    def idle_seconds(self) -> float:
        """Seconds since a batch was last answered; infinite before the first."""
        return time.monotonic() - self._answered

    def submit(self, texts: Sequence[str]) -> Future[Answer]:
        """Queues `texts` (at least one). The future fails with `Refusal` (503) when nothing can be served.

        Raises:
            Refusal: 429 when too many requests wait, 503 when serving is stopping.
        """
        request = _Request(tuple(texts), sum(map(len, texts)))
        with self._changed:
            if self._closing:
                raise _stopping()
            # One long request alone is always let in.
            crowded = self._chars + request.chars > MAX_QUEUE_CHARS and bool(self._waiting)
            if len(self._waiting) >= self._max_queue or crowded:
                raise Refusal(
                    429,
                    f"{len(self._waiting)} requests wait for the model already",
                    value=len(self._waiting),
                    do="try again in a second, or start more processes",
                    headers={"Retry-After": "1"},
                )
            self._waiting.append(request)
            self._chars += request.chars
            self._changed.notify()
        return request.future

    def close(self, timeout: float) -> None:
        """Answers what waits, for up to `timeout` seconds, refuses the rest and stops."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join(timeout)
        with self._changed:
            left, self._waiting = list(self._waiting), deque()
        for request in left:
            if request.future.set_running_or_notify_cancel():
                request.future.set_exception(_stopping())

    def _run(self) -> None:
        while batch := self._take():
            wanted = [request for request in batch if request.future.set_running_or_notify_cancel()]
            if wanted:
                self._answer(wanted)

    def _take(self) -> list[_Request]:
        with self._changed:
            while not self._waiting and not self._closing:
                self._changed.wait()
            batch: list[_Request] = []
            size = 0
            while self._waiting and (not batch or size + len(self._waiting[0].texts) <= self._max_batch):
                request = self._waiting.popleft()
                self._chars -= request.chars
                size += len(request.texts)
                batch.append(request)
            return batch

    def _answer(self, batch: list[_Request]) -> None:
        champion = self._champion()
        if champion is None:
            for request in batch:
                request.future.set_exception(no_champion())
            return
        try:
            scores = self._scores(champion.classifier, [text for request in batch for text in request.texts])
        except Exception as error:  # noqa: BLE001
            if len(batch) > 1:
                # One text that the model cannot take must not fail those that happened to come with it.
                for request in batch:
                    self._answer([request])
                return
            _log.exception("version %s failed on a request with %d texts", champion.version, len(batch[0].texts))
            batch[0].future.set_exception(error)
            return
        self._answered = time.monotonic()
        start = 0
        for request in batch:
            end = start + len(request.texts)
            rows = scores.probabilities[start:end]
            request.future.set_result(Answer(champion.version, Scores(scores.labels, rows)))
            start = end

    def _scores(self, classifier: Classifier, texts: list[str]) -> Scores:
        start = time.perf_counter()
        pieces = [
            classifier.scores(texts[first : first + self._max_batch]) for first in range(0, len(texts), self._max_batch)
        ]
        probabilities = np.concatenate([piece.probabilities for piece in pieces])
        if probabilities.shape != (len(texts), len(pieces[0].labels)) or not np.isfinite(probabilities).all():
            raise ArithmeticError(
                f"version {classifier.version} answered {len(texts)} texts with probabilities of shape "
                f"{probabilities.shape} that are not all finite"
            )
        self._metrics.batch_texts.observe(len(texts))
        self._metrics.batch_seconds.observe(time.perf_counter() - start)
        # Rounding may carry a probability past 1, which no record takes.
        return Scores(pieces[0].labels, probabilities.clip(0, 1))


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
