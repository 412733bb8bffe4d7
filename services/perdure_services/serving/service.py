"""The parts of a serving process, and the few things that they do together."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from fastapi import Request
from starlette.concurrency import run_in_threadpool

from perdure.config import ModelSettings, ServingSettings
from perdure.model.base import Classifier, Prediction
from perdure.records import Erasure, Feedback, Interaction, Record, new_id, now
from perdure.registry import Registry, Remembered
from perdure.stream.base import Stream
from perdure_services.serving.batcher import Answer, Batcher, no_champion
from perdure_services.serving.champion import WARM_UP, ChampionWatcher
from perdure_services.serving.choice import check_labels, choices
from perdure_services.serving.cores import batches_at_once
from perdure_services.serving.courier import Courier
from perdure_services.serving.deadline import current_deadline, too_late
from perdure_services.serving.exclusive import shared
from perdure_services.serving.limits import check_texts
from perdure_services.serving.metrics import Metrics
from perdure_services.serving.pace import CHARS_PER_TOKEN
from perdure_services.serving.recorder import Recorder
from perdure_services.serving.refusal import Refusal
from perdure_services.serving.spool.forwarder import Forwarder
from perdure_services.serving.spool.spooled_stream import SpooledStream
from perdure_services.serving.thresholds import Thresholds
from perdure_services.serving.tracing import note

RECORD_SECONDS = 0.25
"""How long an answer waits for its record to be durable."""

ERASURE_SECONDS = 5.0
"""How long a request to forget waits for its record to be durable."""

FRESH_SECONDS = 10.0
"""An answer younger than this proves that the model works; without one, readiness asks for an answer of its own."""

PROBE_SECONDS = 2.0
"""How long that answer may take; and a batch, on the processor of a loaded machine, before it counts as stuck."""

STUCK_SECONDS = 60.0
"""A batch that takes longer will not end any more: only a restart helps."""

BALANCED_SECONDS = 60.0
"""Readiness was asked for lately if it was within this."""

FLUSH_SECONDS = 1.0
"""What writing records may take at the end, even where requests have used up the time."""

_log = logging.getLogger(__name__)

Fate = Literal["recorded", "waiting", "dropped"]
"""What became of a record within the time that a request waits: durable, still queued, or given up."""


@dataclass(frozen=True, slots=True)
class Answered:
    """One prediction that was served."""

    id: str
    prediction: Prediction
    version: str
    recorded: bool
    abstained: bool | None = None
    """Whether its confidence is below the version's threshold; None where nobody asked, or there is none."""


@dataclass(frozen=True, slots=True)
class Readiness:
    """Whether requests should be sent here; `reason` says why not."""

    ready: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Removed:
    """Entries of a subject that were removed at once."""

    stream: int
    spool: int | None
    """None where there is no spool."""
    until: float
    """What came later stays; seconds since the epoch."""


class Service:
    """Registry, stream, champion, batcher and recorder of one serving process; and a forwarder behind a spool.

    Args:
        settings: of serving.
        registry: where versions and promotions are.
        stream: where records go.
        load: a version by its name.
        max_tokens: how much of a text the encoder sees.
        remembered: what was served last, to start with while the registry is away.

    Raises:
        ValueError: a remote stream without a spool: recording would wait for the network.
    """

    def __init__(
        self,
        settings: ServingSettings,
        *,
        registry: Registry,
        stream: Stream,
        load: Callable[[str], Classifier],
        max_tokens: int = ModelSettings().max_tokens,
        remembered: Remembered | None = None,
    ) -> None:
        if stream.remote:
            raise ValueError(f"the stream {type(stream).__name__} is remote: give with_spool(stream, ...) instead")
        self.settings = settings
        self.registry = registry
        self.stream = stream
        self.metrics = Metrics()
        self.champions = ChampionWatcher(
            registry,
            lambda version: shared(load(version)),
            interval=settings.refresh_seconds,
            metrics=self.metrics,
            remembered=remembered,
        )
        self.batcher = Batcher(
            lambda: self.champions.current,
            threads=batches_at_once(settings),
            max_batch=settings.max_batch,
            max_queue=settings.max_queue,
            queue_seconds=settings.queue_seconds,
            batch_seconds=settings.batch_seconds,
            cut=max_tokens * CHARS_PER_TOKEN,
            metrics=self.metrics,
        )
        self.thresholds = Thresholds(registry)
        self.recorder = Recorder(stream, max_records=settings.record_queue, metrics=self.metrics)
        self.forwarder: Forwarder | None = None
        if isinstance(stream, SpooledStream):
            self.forwarder = Forwarder(stream.spool, stream.beyond, self.metrics)
        self._draining = False
        self._asked_ready = float("-inf")
        self.asked_elsewhere = float("-inf")
        """When another process of this server was last asked for readiness, in seconds of `time.monotonic`."""
        self._end: float | None = None
        self.ending = asyncio.Event()
        """Set once nothing new is to be taken, and what is under way has `seconds_left`."""

    @cached_property
    def _courier(self) -> Courier:
        # Made by the first request, in the loop that answers.
        return Courier()

    def start(self) -> None:
        """Starts the threads."""
        if self.forwarder is not None:
            self.forwarder.start()
        self.recorder.start()
        self.batcher.start()
        self.champions.start()

    def drain(self) -> None:
        """From now on readiness says no; what comes nevertheless is still answered."""
        self._draining = True

    @property
    def draining(self) -> bool:
        """Whether the process is on its way out."""
        return self._draining

    @property
    def balanced(self) -> bool:
        """Whether something asks for readiness, to know where to send requests."""
        return time.monotonic() - max(self._asked_ready, self.asked_elsewhere) < BALANCED_SECONDS

    @property
    def asked_ready(self) -> float:
        """When readiness was last asked for here, in seconds of `time.monotonic`; minus infinity for never."""
        return self._asked_ready

    def end_within(self, seconds: float) -> None:
        """What is under way and `close` have that many seconds from now. To be called in the event loop."""
        self._end = time.monotonic() + seconds
        self.ending.set()

    @property
    def seconds_left(self) -> float:
        """What is left of `drain_seconds`; all of it before the end has begun."""
        left = self.settings.drain_seconds
        return left if self._end is None else max(min(left, self._end - time.monotonic()), 0.0)

    def close(self) -> None:
        """Answers what waits, writes what was recorded and stops the threads, all within `drain_seconds`.

        Where `end_within` was called they count from then; but writing has `FLUSH_SECONDS` at least. What a remote
        stream has not taken by then stays in the spool.
        """
        self.drain()
        end = time.monotonic() + self.settings.drain_seconds
        if self._end is not None:
            end = max(min(end, self._end), time.monotonic() + min(FLUSH_SECONDS, self.settings.drain_seconds))
        for stop in (self.batcher.close, self.recorder.close, self.champions.stop):
            stop(max(end - time.monotonic(), 0.0))
        if self.forwarder is not None:
            self.forwarder.close(max(end - time.monotonic(), 0.0))

    @property
    def live(self) -> bool:
        """Whether every thread still runs, and none is stuck; when not, only a restart helps."""
        forwarding = self.forwarder is None or self.forwarder.alive
        working = self.batcher.alive and self.batcher.busy_seconds < STUCK_SECONDS
        return working and self.recorder.alive and self.champions.alive and forwarding

    @property
    def started(self) -> bool:
        """Whether the version that is to serve has been loaded, or has failed to be."""
        return self.champions.current is not None or self.champions.wait_for_first_look(0)

    async def ready(self) -> Readiness:
        """Whether a request would be answered: where no answer is fresh, one text is really asked."""
        self._asked_ready = time.monotonic()
        if self._draining:
            return Readiness(False, "stopping")
        if not self.live:
            return Readiness(False, "a thread of this process has died or is stuck: restart it")
        if self.champions.current is None:
            if not self.started:
                return Readiness(False, "starting: the version that is to serve is being loaded")
            return Readiness(False, self.champions.problem or "no version is promoted yet: run `perdure fit`")
        if (busy := self.batcher.busy_seconds) > PROBE_SECONDS:
            return Readiness(False, f"the model has given no answer for {busy:.0f} seconds")
        if self.batcher.idle_seconds > FRESH_SECONDS:
            try:
                await asyncio.wait_for(asyncio.wrap_future(self.batcher.submit(WARM_UP[:1])), PROBE_SECONDS)
            except TimeoutError:
                return Readiness(False, f"the model gave no answer within {PROBE_SECONDS:g} seconds")
            except Refusal as refusal:
                return Readiness(False, refusal.what)
            except Exception as error:  # noqa: BLE001
                _log.warning("the model failed when readiness asked it: %s", error)
                return Readiness(False, f"the model failed: {type(error).__name__}")
        return Readiness(True, "serving")

    async def predict(
        self,
        texts: Sequence[str],
        *,
        top: int = 1,
        subject: str | None = None,
        labels: Sequence[str] | None = None,
        abstain: bool | None = None,
        deadline: float | None = None,
    ) -> tuple[Answered, ...]:
        """One answer for each text, all by one version, recorded together as they are given.

        To cancel it while the texts wait frees their place, and they are not computed.

        Args:
            texts: at least one.
            top: how many of the most probable labels to give.
            subject: whose data the texts are.
            labels: those that may be answered; None for all that the version knows.
            abstain: whether to say which answers are below the version's threshold; None as the settings say.
            deadline: when the answer must be there, in seconds of `time.monotonic`, and never later than
                `timeout_seconds` from now; None for that of the request which is being answered.

        Raises:
            Refusal: 413 a text is too long, 422 too many texts, or a label that the version does not know; 429 they
                would wait too long; 503 nothing is served, a card cannot be read, or nothing can be recorded where the
                operator chose to refuse then; 504 no answer in time.
        """
        check_texts(texts, self.settings)
        asked_for = current_deadline() if deadline is None else deadline
        until = min(asked_for, time.monotonic() + self.settings.timeout_seconds)
        if (current := self.champions.current) is None:
            raise no_champion()
        if labels is not None:
            # Before the model is asked; the version that answers may be a newer one, and is asked again.
            check_labels(current.version, current.classifier.labels, labels)
        if self.settings.record and self._refuses and self.recorder.failing:
            raise _unrecorded()
        answer = await self._scores(texts, until)
        note("queue", answer.queued, answer.begun)
        note("model", answer.begun, answer.done, {"perdure.version": answer.version, "perdure.texts": len(texts)})
        wanted = self.settings.abstain if abstain is None else abstain
        threshold = await self.thresholds.of(answer.version) if wanted else None
        chosen = choices(answer.version, answer.scores, answer.first, top=top, allowed=labels, threshold=threshold)
        predictions = [one.prediction for one in chosen]
        self.metrics.predicted(answer.version, [prediction.label for prediction in predictions])
        at = now()
        interactions = [
            Interaction(
                time=at,
                id=new_id(),
                text=text,
                label=prediction.label,
                confidence=prediction.confidence,
                version=answer.version,
                top=prediction.top if top > 1 else (),
                subject=subject,
            )
            for text, prediction in zip(texts, predictions, strict=True)
        ]
        recorded = self.settings.record and await self._record(interactions) == "recorded"
        return tuple(
            Answered(interaction.id, one.prediction, answer.version, recorded, one.abstained)
            for interaction, one in zip(interactions, chosen, strict=True)
        )

    async def _scores(self, texts: Sequence[str], deadline: float) -> Answer:
        submitted = self.batcher.submit(texts, deadline=deadline)
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                return await self._courier.future(submitted)
        except TimeoutError as error:
            # The timeout has cancelled it: where it waited still, it is not computed.
            raise too_late() from error

    async def learn(self, labels: Sequence[tuple[str, str, str]]) -> bool:
        """Takes (interaction id, label, source); whether they are durable already.

        Raises:
            Refusal: 409 recording is off; 503 they cannot be recorded, where the operator chose to refuse then.
        """
        if not self.settings.record:
            raise Refusal(409, "this process records nothing", do="set serving.record to true and start it again")
        at = now()
        fate = await self._record(
            [Feedback(time=at, interaction=id, label=label, source=source) for id, label, source in labels]
        )
        return fate == "recorded"

    async def forget(self, subject: str) -> Removed:
        """Records that `subject` is to be forgotten, and removes it from the stream, and from the spool before it.

        Raises:
            Refusal: 503 the request could not be recorded.
            StreamError: it was recorded, but the stream could not remove the entries.
            StoreFull: it was recorded, but the spool could not be rewritten.
        """
        erasure = Erasure(time=now(), subject=subject)
        return await self._forget([erasure], subject, erasure.time)

    async def forget_until(self, subject: str, until: float) -> Removed:
        """Removes here what another process of this server has recorded as to be forgotten; raises what `forget` does.

        Args:
            subject: whose records.
            until: the time of the request to forget, in seconds since the epoch.
        """
        return await self._forget([], subject, until)

    async def _forget(self, first: Sequence[Record], subject: str, until: float) -> Removed:
        # Through the recorder: what waits there of the subject is written before, and so is reached.
        if await self._wait(first, ERASURE_SECONDS) != "recorded":
            raise _unrecorded()
        return await run_in_threadpool(self._remove, subject, until)

    def _remove(self, subject: str, until: float) -> Removed:
        if isinstance(self.stream, SpooledStream):
            spooled = self.stream.spool.forget(subject, until)
            return Removed(self.stream.beyond.forget(subject, until), spooled, until)
        return Removed(self.stream.forget(subject, until), None, until)

    @property
    def _refuses(self) -> bool:
        return self.settings.on_record_failure == "refuse"

    async def _record(self, records: Sequence[Record]) -> Fate:
        # While the stream is known to fail, waiting for it would only slow every answer down.
        begin = time.perf_counter()
        fate = await self._wait(records, 0.0 if self.recorder.failing else RECORD_SECONDS, withdraw=self._refuses)
        end = time.perf_counter()
        self.metrics.record_seconds.observe(end - begin)
        note("record", begin, end, {"perdure.fate": fate})
        if fate != "recorded" and self._refuses:
            raise _unrecorded()
        return fate

    async def _wait(self, records: Sequence[Record], seconds: float, *, withdraw: bool = True) -> Fate:
        done = self.recorder.submit(records)
        if done is None:
            return "dropped"
        try:
            async with asyncio.timeout(seconds):
                return "recorded" if await self._courier.future(done, keep=not withdraw) else "dropped"
        except TimeoutError:
            return "waiting"


def service_of(request: Request) -> Service:
    """The service of the app that answers `request`."""
    service = request.app.state.service
    assert isinstance(service, Service)
    return service


async def parts_of(request: Request) -> Service:
    """The same, for endpoints to depend on: what is not a coroutine would cost them a thread of a pool."""
    return service_of(request)


def _unrecorded() -> Refusal:
    return Refusal(
        503,
        "this cannot be recorded now: the stream does not take it in time, or there is no room for it",
        do="send the request again later; the server's log says what is wrong",
        headers={"Retry-After": "1"},
    )
