"""The asynchronous client."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Self, TypeVar, overload

import httpcore

from perdure.client import operation as ask
from perdure.client.answers import Embeddings, Erasure, Prediction, Promoted, Readiness, Receipt, Versions
from perdure.client.attempts import Fault, Pause
from perdure.client.endpoint import Endpoint, reply_of
from perdure.client.exchange import FAULTS, Trace
from perdure.client.handshake import CancellableBackend
from perdure.client.idle import Idle
from perdure.client.operation import NOT_READY, Operation, Reply, Said, Wanted

T = TypeVar("T")


class AsyncClient(Endpoint):
    """`Client` for asyncio. Tasks of one event loop may share one.

    A call that is cancelled is over at once, and its connection is closed. Whether a cancelled `promote` or `rollback`
    was done is not known.
    """

    @overload
    async def predict(
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
    async def predict(
        self,
        text: list[str] | tuple[str, ...],
        *,
        top: int | None = None,
        subject: str | None = None,
        labels: Collection[str] | None = None,
        abstain: bool | None = None,
        neighbours: int | bool | None = None,
    ) -> tuple[Prediction, ...]: ...

    async def predict(
        self,
        text: str | list[str] | tuple[str, ...],
        *,
        top: int | None = None,
        subject: str | None = None,
        labels: Collection[str] | None = None,
        abstain: bool | None = None,
        neighbours: int | bool | None = None,
    ) -> Prediction | tuple[Prediction, ...]:
        """As `Client.predict`."""
        wanted = Wanted(top=top, subject=subject, labels=labels, abstain=abstain, neighbours=neighbours)
        if isinstance(text, str):
            return await self._call(ask.predict_one(text, wanted))
        return await self._call(ask.predict_many(text, wanted))

    async def embeddings(self, texts: Sequence[str]) -> Embeddings:
        """As `Client.embeddings`."""
        return await self._call(ask.embeddings(texts))

    @overload
    async def feedback(self, said: str, label: str, *, source: str | None = None) -> Receipt: ...

    @overload
    async def feedback(self, said: list[Said] | tuple[Said, ...]) -> Receipt: ...

    async def feedback(
        self, said: str | list[Said] | tuple[Said, ...], label: str | None = None, *, source: str | None = None
    ) -> Receipt:
        """As `Client.feedback`."""
        return await self._call(ask.feedback_of(said, label, source))

    async def versions(self) -> Versions:
        """As `Client.versions`."""
        return await self._call(ask.versions())

    async def promote(self, version: str, *, reason: str | None = None) -> Promoted:
        """As `Client.promote`."""
        return await self._call(ask.promote(version, reason))

    async def rollback(self, *, reason: str | None = None) -> Promoted:
        """As `Client.rollback`."""
        return await self._call(ask.rollback(reason))

    async def forget(self, subject: str) -> Erasure:
        """As `Client.forget`."""
        return await self._call(ask.forget(subject))

    async def ready(self) -> Readiness:
        """As `Client.ready`."""
        try:
            return await self._call(ask.ready())
        except NOT_READY as error:
            return ask.unready(error)

    async def close(self) -> None:
        """As `Client.close`."""
        for connection in self._idle.close():
            await connection.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _open(self) -> None:
        self._idle: Idle[httpcore.AsyncHTTPConnection] = Idle()
        self._backend = CancellableBackend()
        self._slots = asyncio.BoundedSemaphore(self._connections)

    async def _call(self, operation: Operation[T]) -> T:
        steps = self._steps(operation)
        outcome: Reply | Fault | None = None
        while True:
            try:
                step = steps.send(outcome)
            except StopIteration as ended:
                return self._value(operation, ended.value)
            if isinstance(step, Pause):
                await asyncio.sleep(step.seconds)
                outcome = None
            else:
                outcome = await self._exchange(operation, step.seconds)

    async def _exchange(self, operation: Operation[T], seconds: float) -> Reply | Fault:
        trace = Trace()
        end = time.monotonic() + seconds
        try:
            async with asyncio.timeout(seconds), self._connection(fresh=not operation.repeatable) as connection:
                # Waiting for the connection has taken some of it.
                left = max(end - time.monotonic(), 0.0)
                return reply_of(await connection.request(**self._request(operation, left, trace.note_async)))
        except (*FAULTS, TimeoutError) as error:
            return trace.fault(error)

    @asynccontextmanager
    async def _connection(self, *, fresh: bool) -> AsyncIterator[httpcore.AsyncHTTPConnection]:
        async with self._slots:
            kept, old = (None, []) if fresh else self._idle.take()
            connection = kept or httpcore.AsyncHTTPConnection(
                self._origin, ssl_context=self._tls, network_backend=self._backend
            )
            try:
                # Inside: the task may be cancelled meanwhile.
                for expired in old:
                    await expired.aclose()
                yield connection
            finally:
                if not self._idle.put(connection):
                    await connection.aclose()
