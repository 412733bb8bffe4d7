"""The blocking client."""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Self, TypeVar, overload

import httpcore

from perdure.client import operation as ask
from perdure.client.answers import Embeddings, Erasure, Prediction, Promoted, Readiness, Receipt, Versions
from perdure.client.attempts import Fault, Pause
from perdure.client.deadline import Deadline, DeadlineBackend
from perdure.client.endpoint import Endpoint, reply_of
from perdure.client.exchange import FAULTS, Trace
from perdure.client.idle import Idle
from perdure.client.operation import NOT_READY, Operation, Reply, Said, Wanted

T = TypeVar("T")


class Client(Endpoint):
    """Asks the API at `url`, and waits for its answers. Threads may share one.

    What a method may raise beside what it says: `ApiUnreachable`, `ApiTimeout`, `ApiAnswerUnreadable`, `ApiKeyRefused`,
    `ApiRequestInvalid` and `ApiBusy`, and `ApiRefused` for other answers; all are an `ApiError`.
    """

    @overload
    def predict(
        self,
        text: str,
        *,
        top: int | None = None,
        subject: str | None = None,
        labels: Collection[str] | None = None,
        abstain: bool | None = None,
        neighbours: int | bool | None = None,
    ) -> Prediction: ...

    @overload
    def predict(
        self,
        text: list[str] | tuple[str, ...],
        *,
        top: int | None = None,
        subject: str | None = None,
        labels: Collection[str] | None = None,
        abstain: bool | None = None,
        neighbours: int | bool | None = None,
    ) -> tuple[Prediction, ...]: ...

    def predict(
        self,
        text: str | list[str] | tuple[str, ...],
        *,
        top: int | None = None,
        subject: str | None = None,
        labels: Collection[str] | None = None,
        abstain: bool | None = None,
        neighbours: int | bool | None = None,
    ) -> Prediction | tuple[Prediction, ...]:
        """Classifies one text, or several by the same version.

        Repeated where no answer came. The API may then have recorded it twice, under two ids: the one that is not
        returned stays an interaction without feedback.

        Args:
            text: one, or a list or tuple of them, answered in their order.
            top: how many of the most probable labels to return beside the best.
            subject: whose data this is; `forget` goes by it.
            labels: answer only with one of these, which the version must know; None for all that it knows.
            abstain: say of each answer whether its confidence is below the version's threshold; None as the API is set.
            neighbours: how many of the nearest remembered samples to show with each answer; True for as many as the API
                is set to. The key needs the scope `explain` too.
        """
        wanted = Wanted(top=top, subject=subject, labels=labels, abstain=abstain, neighbours=neighbours)
        if isinstance(text, str):
            return self._call(ask.predict_one(text, wanted))
        return self._call(ask.predict_many(text, wanted))

    def embeddings(self, texts: Sequence[str]) -> Embeddings:
        """Where `texts` (at least one) lie in the space that the version that serves compares texts in.

        Repeated where no answer came: nothing is recorded.

        Raises:
            ApiRefused: 501, the version has no embeddings.
        """
        return self._call(ask.embeddings(texts))

    @overload
    def feedback(self, said: str, label: str, *, source: str | None = None) -> Receipt: ...

    @overload
    def feedback(self, said: list[Said] | tuple[Said, ...]) -> Receipt: ...

    def feedback(
        self, said: str | list[Said] | tuple[Said, ...], label: str | None = None, *, source: str | None = None
    ) -> Receipt:
        """Says what the label of a prediction really is, or of up to a thousand of them.

        Repeated where no answer came: saying the same twice changes nothing. (The last one wins: who contradicts it
        within that same call may be overruled by the repetition.)

        Args:
            said: the id of a prediction, or a list or tuple of `Said`.
            label: its real label, which may be a new one.
            source: who says so.
        """
        return self._call(ask.feedback_of(said, label, source))

    def versions(self) -> Versions:
        """What is served, what should be, and everything that could be. Repeated where no answer came."""
        return self._call(ask.versions())

    def promote(self, version: str, *, reason: str | None = None) -> Promoted:
        """Serves `version` from now on.

        Sent again only while no byte of it can have arrived, or after 429: a second promotion would be a second entry
        in the log, and undo what somebody else has promoted in between.

        Raises:
            ApiNotFound: there is no such version.
            ApiConflict: it is damaged, or somebody else promoted at the same moment.
            ApiOutcomeUnknown: it was sent, and no answer came.
        """
        return self._call(ask.promote(version, reason))

    def rollback(self, *, reason: str | None = None) -> Promoted:
        """Serves what was served before the champion.

        Sent again only while no byte of it can have arrived, or after 429: two go back by two champions.

        Raises:
            ApiConflict: there is nothing to go back to, or somebody else promoted at the same moment.
            ApiOutcomeUnknown: it was sent, and no answer came.
        """
        return self._call(ask.rollback(reason))

    def forget(self, subject: str) -> Erasure:
        """Forgets everything recorded of `subject` until now.

        Repeated where no answer came: what is gone stays gone, and what came in between goes too.
        """
        return self._call(ask.forget(subject))

    def ready(self) -> Readiness:
        """Whether a request would be answered; asked once. An API that cannot be reached is not ready."""
        try:
            return self._call(ask.ready())
        except NOT_READY as error:
            return ask.unready(error)

    def close(self) -> None:
        """Closes the connections; nothing can be asked afterwards. Calls under way in other threads go on."""
        for connection in self._idle.close():
            connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(self) -> None:
        self._idle: Idle[httpcore.HTTPConnection] = Idle()
        self._slots = threading.BoundedSemaphore(self._connections)
        self._deadline = Deadline()
        self._backend = DeadlineBackend(self._deadline)

    def _call(self, operation: Operation[T]) -> T:
        steps = self._steps(operation)
        outcome: Reply | Fault | None = None
        while True:
            try:
                step = steps.send(outcome)
            except StopIteration as ended:
                return self._value(operation, ended.value)
            if isinstance(step, Pause):
                time.sleep(step.seconds)
                outcome = None
            else:
                outcome = self._exchange(operation, step.seconds)

    def _exchange(self, operation: Operation[T], seconds: float) -> Reply | Fault:
        trace = Trace()
        try:
            with self._deadline.of(seconds), self._connection(seconds, fresh=not operation.repeatable) as connection:
                # Waiting for the connection has taken some of it.
                left = self._deadline.left(seconds, httpcore.PoolTimeout)
                return reply_of(connection.request(**self._request(operation, left, trace.note)))
        except FAULTS as error:
            return trace.fault(error)

    @contextmanager
    def _connection(self, seconds: float, *, fresh: bool) -> Iterator[httpcore.HTTPConnection]:
        if not self._slots.acquire(timeout=seconds):
            raise httpcore.PoolTimeout
        try:
            kept, old = (None, []) if fresh else self._idle.take()
            for connection in old:
                connection.close()
            connection = kept or httpcore.HTTPConnection(
                self._origin, ssl_context=self._tls, network_backend=self._backend
            )
            try:
                yield connection
            finally:
                if not self._idle.put(connection):
                    connection.close()
        finally:
            self._slots.release()
