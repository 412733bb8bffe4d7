"""A thread for what must not stand in the way of answers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, TypeVar

from perdure_services.serving.deadline import current_deadline, too_late
from perdure_services.serving.refusal import Refusal

MAX_WAITING = 16
"""Requests that wait for the thread, or are in it."""

T = TypeVar("T")


class Aside:
    """One thread, which does one thing after the other; nothing that answers ordinary requests waits for it."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="perdure-aside")
        self._under_way: set[Future[Any]] = set()

    async def do(self, work: Callable[[], T]) -> T:
        """What `work` returns or raises, called in the thread. A caller that is cancelled before its turn costs none,
        nor does one whose deadline (`current_deadline`) comes before it.

        Raises:
            Refusal: 429 too many wait already; 503 this process is stopping; 504 it was not done by the deadline.
        """
        if len(self._under_way) >= MAX_WAITING:
            raise Refusal(
                429,
                f"{MAX_WAITING} requests for embeddings or explanations wait already",
                value=MAX_WAITING,
                do="try again in a second, or start more processes",
                headers={"Retry-After": "1"},
            )
        try:
            done = self._pool.submit(work)
        except RuntimeError as error:
            raise Refusal(
                503, "this process is stopping", do="send the request again", headers={"Retry-After": "1"}
            ) from error
        self._under_way.add(done)
        done.add_done_callback(self._under_way.discard)
        try:
            async with asyncio.timeout(current_deadline() - time.monotonic()) as limit:
                return await asyncio.wrap_future(done)
        except TimeoutError as error:
            if not limit.expired():
                raise
            # What is under way cannot be stopped, and keeps its place until it ends.
            raise too_late() from error

    def close(self, timeout: float) -> bool:
        """Takes no more and gives up what waits; whether what was under way has ended within `timeout` seconds."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        return not wait(tuple(self._under_way), timeout).not_done
