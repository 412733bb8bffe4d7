"""The thread beside the one that answers: what it takes, gives up and refuses."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from perdure_services.serving.aside import Aside
from perdure_services.serving.deadline import wanted_by
from perdure_services.serving.refusal import Refusal


@pytest.fixture
def aside():
    aside = Aside()
    yield aside
    aside.close(5)


def test_what_goes_wrong_within_is_told_as_it_is(aside):
    def fail():
        raise TimeoutError("the disk did not answer")

    async def run():
        with wanted_by(time.monotonic() + 10):
            return await aside.do(fail)

    with pytest.raises(TimeoutError, match="the disk"):
        asyncio.run(run())


def test_without_a_deadline_it_takes_the_time_that_it_takes(aside):
    assert asyncio.run(aside.do(lambda: 3)) == 3


def test_at_the_end_what_waits_is_given_up_and_what_is_under_way_has_its_time(aside):
    gate, begun = threading.Event(), threading.Event()

    async def run():
        first = asyncio.create_task(aside.do(lambda: (begun.set(), gate.wait(10))))
        await asyncio.to_thread(begun.wait, 5)
        second = asyncio.create_task(aside.do(lambda: "never"))
        await asyncio.sleep(0)
        assert not await asyncio.to_thread(aside.close, 0.02)
        with pytest.raises(asyncio.CancelledError):
            await second
        gate.set()
        assert (await first)[1]
        assert aside.close(5)
        with pytest.raises(Refusal) as refusal:
            await aside.do(lambda: "never")
        return refusal.value.status_code

    assert asyncio.run(run()) == 503
