"""An event loop that cannot keep up: what it refuses, and what not."""

from __future__ import annotations

import asyncio
import time

import pytest
from prometheus_client import CollectorRegistry, Counter

from perdure_services.serving.loop_lag import FEW, LATE_SECONDS, LoopLag
from perdure_services.serving.refusal import Refusal


@pytest.fixture
def registry():
    return CollectorRegistry()


@pytest.fixture
def lag(registry):
    return LoopLag(Counter("shed", "x", registry=registry))


def refused(lag, times):
    refusals = []
    for _ in range(times):
        try:
            lag.check()
        except Refusal as refusal:
            refusals.append((refusal.status_code, refusal.headers["Retry-After"]))
    assert set(refusals) <= {(429, "1")}
    return len(refusals)


def test_a_loop_in_time_refuses_nothing(lag):
    lag.under_way = 10 * FEW
    for _ in range(100):
        lag.note(LATE_SECONDS / 2)
    assert refused(lag, 1000) == 0


def test_a_loop_that_stays_behind_refuses_more_and_more(lag, registry):
    lag.under_way = FEW + 1
    for _ in range(2):
        lag.note(0.15)
    first = refused(lag, 1000)
    assert first == pytest.approx(300, abs=1)
    assert registry.get_sample_value("shed_total") == first
    for _ in range(20):
        lag.note(0.15)
    assert refused(lag, 1000) == 1000
    for _ in range(10):
        lag.note(0.0)
    assert refused(lag, 1000) == pytest.approx(500, abs=1)
    for _ in range(10):
        lag.note(0.0)
    assert refused(lag, 1000) == 0


def test_a_pause_with_few_requests_refuses_nothing(lag):
    lag.under_way = FEW
    lag.note(5.0)
    assert refused(lag, 1000) == 0


def test_a_turn_of_the_loop_that_is_too_long_is_noticed_in_the_middle_of_it(lag):
    lag.under_way = 10 * FEW

    async def busy():
        beating = asyncio.create_task(lag.beat())
        await asyncio.sleep(0)
        before = refused(lag, 100)
        time.sleep(0.45)
        during = refused(lag, 100)
        await asyncio.sleep(0.01)
        beating.cancel()
        return before, during, lag.share

    before, during, share = asyncio.run(busy())
    assert before == 0
    assert during >= 30
    assert share >= 0.3
