"""The API is killed while it holds what the broker has not taken yet."""

from __future__ import annotations

from collections import Counter

import pytest

from perdure.records import Feedback
from perdure.stream.payload import payloads
from perdure_services.serving.spool.frame import encode_frame

pytestmark = [pytest.mark.e2e, pytest.mark.kafka, pytest.mark.timeout(240)]

MAX_BYTES = 100_000
"""What some seconds of the load bring."""


def tear(api):
    """Leaves at the end of the spool what a write that was cut short leaves."""
    (torn,) = payloads([Feedback(time=1.0, interaction="never-answered", label="torn")])
    last = max(api.spool.glob("*.log"))
    with last.open("ab") as file:
        file.write(encode_frame(torn)[:-7])


def test_an_api_that_is_killed_again_and_again_with_its_spool_full_at_last(
    own_broker, make_api, load_on, arrive, wait_until, lasting
):
    broker = own_broker()
    api = make_api(broker.address, spool__max_bytes=MAX_BYTES).start()
    broker.kill()
    with load_on(api) as load:
        # Killed while records come in; each time some wait in the spool, and more the next time.
        for life in range(2):
            load.wait(2)
            api.kill()
            kept = load.recorded
            assert kept > 60 * (life + 1)
            tear(api)
            api.start()
            assert api.log.count("ended in the middle of a write") == life + 1
            assert api.metric("spool_records") >= kept
        wait_until(lambda: any(one.status == 200 and not one.recorded for one in load.asked), 60)
        load.wait(1)
        api.kill()
    full = load.recorded
    tear(api)
    api.launch()
    broker.start()
    api.answers()
    api.drained()
    arrived = arrive(broker.address)
    arrived.tell("killed with a full spool", load)
    assert api.log.count("ended in the middle of a write") == 3
    # Killed between a write and its answer, a few are kept that nobody was told of: at most one for each connection.
    assert 0 <= api.metric("stream_acknowledged_total") - full <= 3 * 2
    assert len([one for one in load.asked if not one.recorded]) > 5
    assert Counter(one.status for one in load.asked).keys() == {200, 0}
    assert {one.status for one in load.said if one.recorded} == {202}
    assert {one.status for one in load.said if not one.recorded} <= {202, 0}
    assert "never-answered" not in {id for id, _ in arrived.feedback}
    arrived.check(load)
