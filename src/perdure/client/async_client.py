"""The asynchronous client."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self, TypeVar, overload

import httpcore

from perdure.client import operation as ask
from perdure.client.answers import Erasure, Prediction, Promoted, Readiness, Receipt, Versions
from perdure.client.attempts import Fault, Pause
from perdure.client.endpoint import Endpoint, reply_of
from perdure.client.exchange import FAULTS, Trace
from perdure.client.operation import NOT_READY, Operation, Reply, Said

T = TypeVar("T")


class AsyncClient(Endpoint):
    """`Client` for asyncio. Tasks of one event loop may share one.

    A call that is cancelled is over at once, and its connection is closed. Whether a cancelled `promote` or `rollback`
    was done is not known.
    """

    @overload
    async def predict(self, text: str, *, top: int | None = None, subject: str | None = None) -> Prediction: ...

    @overload
    async def predict(
        self, text: list[str] | tuple[str, ...], *, top: int | None = None, subject: str | None = None
    ) -> tuple[Prediction, ...]: ...

    async def predict(
        self, text: str | list[str] | tuple[str, ...], *, top: int | None = None, subject: str | None = None
    ) -> Prediction | tuple[Prediction, ...]:
        """As `Client.predict`."""
        if isinstance(text, str):
            return await self._call(ask.predict_one(text, top, subject))
        return await self._call(ask.predict_many(text, top, subject))

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
        """Closes the connections; nothing can be asked afterwards."""
        self._closed = True
        await self._pool.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _open(self) -> None:
        self._pool = self._new_pool(keep=True)

    def _new_pool(self, *, keep: bool) -> httpcore.AsyncConnectionPool:
        return httpcore.AsyncConnectionPool(**self._pool_options(keep=keep))

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
        if operation.repeatable:
            return await self._try(self._pool, operation, seconds)
        # A connection of its own: one that the API closes while it idles would leave the outcome unknown.
        async with self._new_pool(keep=False) as pool:
            return await self._try(pool, operation, seconds)

    async def _try(self, pool: httpcore.AsyncConnectionPool, operation: Operation[T], seconds: float) -> Reply | Fault:
        trace = Trace()
        try:
            async with asyncio.timeout(seconds):
                return reply_of(await pool.request(**self._request(operation, seconds, trace.note_async)))
        except (*FAULTS, TimeoutError) as error:
            return trace.fault(error)
