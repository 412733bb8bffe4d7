"""Tasks and threads that share a client, cancel its calls, or close it."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from perdure.client import AsyncClient, Client, idle

pytestmark = pytest.mark.filterwarnings("error::ResourceWarning")


def test_a_cancelled_call_is_over_and_leaves_no_connection(api, acts):
    async def main():
        async with AsyncClient(api.url, connections=1) as client:
            api.script = [acts.hang, acts.good]
            call = asyncio.create_task(client.predict("order"))
            while not api.asked:
                await asyncio.sleep(0.005)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            # The one connection there may be is free again.
            assert (await client.predict("order")).id == "id-1"

    asyncio.run(main())
    assert [asked.connection for asked in api.asked] == [1, 2]


def test_a_cancelled_pause_is_over(api, acts):
    async def main():
        async with AsyncClient(api.url) as client:
            api.script = [acts.answer({}, 503, "Retry-After: 20")]
            call = asyncio.create_task(client.predict("order"))
            while not api.asked:
                await asyncio.sleep(0.005)
            await asyncio.sleep(0.05)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call

    begun = time.monotonic()
    asyncio.run(main())
    assert time.monotonic() - begun < 3
    assert len(api.asked) == 1


def test_many_at_once_share_the_connections(api, acts):
    async def main():
        async with AsyncClient(api.url, connections=4) as client:
            return await asyncio.gather(*(client.predict(f"order {number}") for number in range(40)))

    api.script = [acts.good]
    assert len(asyncio.run(main())) == 40
    assert api.connections <= 4
    assert len({asked.body for asked in api.asked}) == 40


def test_threads_share_a_client_but_never_a_connection(api, acts, caplog):
    """More threads than connections: they are handed from one to the other all the time."""
    caplog.set_level("INFO", logger="perdure")
    api.script = [acts.good]
    with Client(api.url, connections=4) as client, ThreadPoolExecutor(8) as pool:
        assert {answer.id for answer in pool.map(client.predict, ["order"] * 400)} == {"id-1"}
    assert len(api.asked) == 400
    assert api.connections <= 4
    assert caplog.text == "", "something had to be repeated"


def test_a_client_that_is_closed_during_a_call_lets_it_end(api, acts):
    def slow(connection, server):
        time.sleep(0.2)
        return acts.good(connection, server)

    api.script = [slow]
    with Client(api.url) as client, ThreadPoolExecutor(1) as pool:
        call = pool.submit(client.predict, "order")
        while not api.asked:
            time.sleep(0.005)
        client.close()
        assert call.result(5).id == "id-1"
        while api.closed < 1:
            time.sleep(0.005)


def test_connections_that_idled_too_long_are_closed(api, acts, monkeypatch):
    monkeypatch.setattr(idle, "IDLE_SECONDS", 0.1)
    api.script = [acts.good]
    with Client(api.url) as client:
        client.predict("order")
        time.sleep(0.15)
        client.predict("order")
        client.predict("order")
        assert [asked.connection for asked in api.asked] == [1, 2, 2]


def test_an_asynchronous_client_that_is_closed_during_a_call_lets_it_end(api, acts):
    def slow(connection, server):
        time.sleep(0.2)
        return acts.good(connection, server)

    async def main():
        async with AsyncClient(api.url) as client:
            call = asyncio.create_task(client.predict("order"))
            while not api.asked:
                await asyncio.sleep(0.005)
            await client.close()
            assert (await call).id == "id-1"
            while api.closed < 1:
                await asyncio.sleep(0.005)

    api.script = [slow]
    asyncio.run(asyncio.wait_for(main(), 5))


class Held:
    """A connection whose closing takes for ever, or none."""

    def __init__(self, *, stuck):
        self.stuck = stuck
        self.closed = False

    def is_idle(self):
        return False

    async def aclose(self):
        if self.stuck:
            await asyncio.sleep(60)
        self.closed = True


def test_a_call_that_is_cancelled_while_old_connections_are_closed_leaves_none_open(monkeypatch):
    kept = Held(stuck=False)

    async def main():
        async with AsyncClient() as client:
            client._idle.take = lambda: (kept, [Held(stuck=True)])
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(client.predict("order"), 0.05)

    asyncio.run(main())
    assert kept.closed
