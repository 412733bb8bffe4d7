from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future

import pytest

from perdure_services.serving.courier import Courier


def settle(futures):
    for number, future in enumerate(futures):
        future.set_result(number)


def test_results_and_errors_of_another_thread_arrive():
    async def ask():
        courier = Courier()
        answered, failed = Future(), Future()
        mine = [courier.future(answered), courier.future(failed)]
        threading.Thread(target=lambda: (answered.set_result(7), failed.set_exception(OSError("away")))).start()
        assert await mine[0] == 7
        with pytest.raises(OSError, match="away"):
            await mine[1]

    asyncio.run(ask())


def test_what_is_settled_together_wakes_the_loop_once(monkeypatch):
    async def ask():
        loop, calls = asyncio.get_running_loop(), []
        courier = Courier()
        wake = loop.call_soon_threadsafe
        monkeypatch.setattr(loop, "call_soon_threadsafe", lambda *args: (calls.append(args), wake(*args)))
        futures = [Future() for _ in range(50)]
        mine = [courier.future(future) for future in futures]
        # In this thread, so that the loop cannot take any of them before all are there.
        settle(futures)
        assert await asyncio.gather(*mine) == list(range(50))
        assert len(calls) == 1

    asyncio.run(ask())


def test_no_wake_up_is_lost_however_threads_and_loop_meet():
    async def ask():
        courier = Courier()
        for _ in range(200):
            futures = [Future() for _ in range(8)]
            mine = [courier.future(future) for future in futures]
            threads = [threading.Thread(target=settle, args=(part,)) for part in (futures[:4], futures[4:])]
            for thread in threads:
                thread.start()
            assert await asyncio.wait_for(asyncio.gather(*mine), 5) == [0, 1, 2, 3] * 2

    asyncio.run(ask())


def test_to_cancel_cancels_unless_it_is_to_go_on():
    async def ask():
        courier = Courier()
        given_up, kept = Future(), Future()
        mine = [courier.future(given_up), courier.future(kept, keep=True)]
        for future in mine:
            future.cancel()
        await asyncio.sleep(0)
        assert given_up.cancelled()
        assert not kept.cancelled()
        # Its result comes when nobody waits for it any more.
        kept.set_result(1)
        await asyncio.sleep(0)

    asyncio.run(ask())


def test_what_was_cancelled_over_there_is_cancelled_here():
    async def ask():
        courier = Courier()
        future = Future()
        mine = courier.future(future)
        future.cancel()
        with pytest.raises(asyncio.CancelledError):
            await mine

    asyncio.run(ask())


def test_a_result_that_comes_after_the_loop_has_ended_harms_nobody():
    future = Future()

    async def ask():
        Courier().future(future)

    asyncio.run(ask())
    future.set_result(1)
