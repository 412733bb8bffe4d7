"""Members of a group that shares a topic, at a real broker."""

from __future__ import annotations

import threading
import time
from contextlib import closing

import pytest

from perdure.stream.kafka import Membership

pytestmark = [pytest.mark.kafka, pytest.mark.e2e]

PARTITIONS = 4
GROUPS = 8
COMING_SECONDS = 2.8
"""Between the first and the last member of a group."""
DEALT_SECONDS = 10.0
"""Members are told of a newcomer with their next sign of life. Who loses a round waits for the session to end, which
takes ten seconds."""


def test_three_that_come_one_after_the_other_are_dealt_all_partitions(settings_of, kafka_broker):
    """In several groups at once: it depends on when they come."""
    held, stopped = {}, threading.Event()

    def take_part(group, number):
        time.sleep(number * COMING_SECONDS * (group + 1) / GROUPS / 2)
        settings = settings_of(partitions=PARTITIONS).model_copy(update={"group": f"group-{group}"})
        with closing(Membership((kafka_broker.address,), settings)) as membership:
            while not stopped.is_set():
                held[group, number] = membership.partitions()

    def dealt(group):
        parts = [held.get((group, number), frozenset()) for number in range(3)]
        return sorted(map(len, parts)) == [1, 1, 2] and frozenset().union(*parts) == frozenset(range(PARTITIONS))

    members = [
        threading.Thread(target=take_part, args=(group, number)) for group in range(GROUPS) for number in range(3)
    ]
    for member in members:
        member.start()
    try:
        end = time.monotonic() + COMING_SECONDS + DEALT_SECONDS
        while waiting := [group for group in range(GROUPS) if not dealt(group)]:
            assert time.monotonic() < end, f"not dealt in {DEALT_SECONDS} s: groups {waiting} of {held}"
            time.sleep(0.05)
    finally:
        stopped.set()
        for member in members:
            member.join(30)
