"""The broker dies, hangs or is not there yet, while people ask."""

from __future__ import annotations

import time
from collections import Counter
from itertools import pairwise

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.kafka, pytest.mark.timeout(240)]


def all_answered_and_recorded(load, at_least):
    """Nobody noticed anything."""
    assert len(load.asked) >= at_least, "that is no steady load"
    assert Counter(one.status for one in load.asked) == {200: len(load.asked)}
    assert Counter(one.status for one in load.said) == {202: len(load.said)}
    assert len(load.said) >= at_least // 5 - 1
    # On a busy machine a write may take longer than an answer waits for it; that it arrives is checked all the same.
    assert load.recorded >= 0.99 * load.sent, "some were answered recorded: false"


def test_a_broker_that_is_killed_under_load_and_comes_back(own_broker, make_api, load_on, arrive, lasting):
    broker = own_broker()
    api = make_api(broker.address).start()
    with load_on(api) as load:
        load.wait(4)
        broker.kill()
        away = time.monotonic()
        assert load.wait(lasting(60, 12)) > 0
        spooled = api.metric("spool_records")
        assert spooled > 0.9 * sum(one.recorded for one in load.since(away))
        broker.start()
        load.wait(3)
    api.drained()
    arrived = arrive(broker.address)
    arrived.tell("killed", load)
    all_answered_and_recorded(load, at_least=100)
    assert len(load.since(away)) > 60
    arrived.check(load)


def test_a_broker_that_is_not_there_when_the_api_starts(own_broker, make_api, load_on, arrive, lasting):
    broker = own_broker()
    broker.kill()
    api = make_api(broker.address).start()
    with load_on(api) as load:
        load.wait(lasting(30, 8))
        assert api.metric("stream_acknowledged_total") == 0
        assert api.metric("spool_records") > 40
        broker.start()
        load.wait(2)
    api.drained()
    arrived = arrive(broker.address)
    arrived.tell("away at the start", load)
    all_answered_and_recorded(load, at_least=100)
    assert api.metric("stream_acknowledged_total") == load.sent
    arrived.check(load)


def test_a_broker_that_hangs(own_broker, make_api, load_on, arrive, lasting):
    broker = own_broker()
    api = make_api(broker.address).start()
    with load_on(api) as load:
        load.wait(3)
        broker.pause()
        load.wait(lasting(30, 8))
        broker.resume()
        load.wait(2)
    api.drained()
    arrived = arrive(broker.address)
    arrived.tell("paused", load)
    all_answered_and_recorded(load, at_least=100)
    arrived.check(load)


def test_metrics_tell_of_an_outage(own_broker, make_api, load_on, arrive, wait_until):
    broker = own_broker()
    api = make_api(broker.address).start()
    with load_on(api) as load:
        load.wait(3)
        wait_until(lambda: api.metric("stream_acknowledged_total") > 50, 20)
        assert api.metric("spool_oldest_seconds") < 2
        broker.kill()
        seen = []
        for _ in range(4):
            load.wait(1.5)
            names = ("spool_records", "spool_bytes", "spool_oldest_seconds", "records_unsent")
            seen.append(tuple(api.metric(name) for name in names))
            assert api.metric("records_total", outcome="dropped") == 0
        broker.start()
        load.wait(1)
    for before, after in pairwise(seen):
        assert after[0] > before[0] + 30, seen
        assert after[1] > before[1] + 30 * 100, seen
        assert 1.2 < after[2] - before[2] < 6, seen
        assert after[3] < 10, seen
    api.drained()
    assert api.metric("spool_bytes") == api.metric("spool_oldest_seconds") == 0
    assert api.metric("stream_acknowledged_total") == load.sent
    assert api.metric("records_total", outcome="recorded") == load.sent
    assert api.metric("stream_resent_total") > 0
    assert api.metric("records_total", outcome="dropped") == api.metric("spool_damaged_segments") == 0
    all_answered_and_recorded(load, at_least=100)
    arrive(broker.address).check(load)
