"""There is no room to record: the disk under the spool is full, or the spool holds as much as it may."""

from __future__ import annotations

import resource
import subprocess
import time
from collections import Counter
from contextlib import ExitStack

import httpx
import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.kafka, pytest.mark.timeout(240)]

POLICIES = ("answer", "refuse")
ROOM = 64 * 1024


class Bound:
    """The spool's own bound."""

    def __init__(self):
        self.settings = {"spool__max_bytes": ROOM}

    def take(self, api):
        pass

    give = None


class FileSizeLimit:
    """The system lets the process write no more, where the file is as long as this; anybody may set it."""

    def __init__(self):
        self.settings = {}

    def take(self, api):
        resource.prlimit(api.process.pid, resource.RLIMIT_FSIZE, (ROOM, resource.RLIM_INFINITY))

    def give(self, api):
        resource.prlimit(api.process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


class SmallDisk:
    """A disk of its own, in memory, half full with something else."""

    def __init__(self, folder, name):
        self.disk = folder / f"disk-{name}"
        self.disk.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={2 * ROOM}", "tmpfs", str(self.disk)]
        self.mounted = subprocess.run(command, capture_output=True).returncode == 0
        self.settings = {"spool__path": self.disk / "spool"}

    def take(self, api):
        (self.disk / "ballast").write_bytes(bytes(ROOM))

    def give(self, api):
        (self.disk / "ballast").unlink()

    def close(self):
        if self.mounted:
            subprocess.run(["umount", "-l", str(self.disk)], check=True)


@pytest.fixture
def rooms(request, tmp_path):
    """What bounds the spool of each policy's API."""
    if request.param != "small disk":
        yield {policy: {"bound": Bound, "file size limit": FileSizeLimit}[request.param]() for policy in POLICIES}
        return
    with ExitStack() as stack:
        disks = {policy: SmallDisk(tmp_path, policy) for policy in POLICIES}
        for disk in disks.values():
            stack.callback(disk.close)
        # Only root may mount one.
        yield (
            disks if all(disk.mounted for disk in disks.values()) else {policy: FileSizeLimit() for policy in POLICIES}
        )


@pytest.mark.parametrize("rooms", ["bound", "file size limit", "small disk"], indirect=True)
def test_what_finds_no_room_is_said_and_counted_and_recording_resumes(
    own_broker, make_api, load_on, arrive, wait_until, topic, rooms
):
    broker = own_broker()
    apis, loads = {}, {}
    for policy in POLICIES:
        settings = {"serving__on_record_failure": policy, **rooms[policy].settings}
        apis[policy] = make_api(broker.address, topic=f"{topic}-{policy}", **settings)
        apis[policy].launch()
    for policy, api in apis.items():
        api.answers()
        rooms[policy].take(api)
    with ExitStack() as stack:
        for policy in POLICIES:
            loads[policy] = stack.enter_context(load_on(apis[policy]))
        answer, refuse = loads["answer"], loads["refuse"]
        time.sleep(2)
        assert all(one.recorded for load in loads.values() for one in [*load.asked, *load.said])
        broker.pause()
        wait_until(lambda: all(any(not one.recorded for one in load.asked) for load in loads.values()), 60)
        full = time.monotonic()
        time.sleep(2)
        for load in loads.values():
            assert len(load.since(full)) > 8
            assert not any(one.recorded for one in load.since(full + 0.5)), "there should have been no room"
        for api in apis.values():
            assert api.metric("records_total", outcome="dropped") > 8
            for path in ("healthz", "readyz"):
                assert httpx.get(f"{api.url}/{path}").status_code == 200
        if rooms["answer"].give is not None:
            for policy, api in apis.items():
                rooms[policy].give(api)
            given = time.monotonic()
            wait_until(lambda: all(any(one.recorded for one in load.since(given)) for load in loads.values()), 5)
        broker.resume()
        for api in apis.values():
            wait_until(lambda api=api: api.metric("spool_records") < 20, 40)
        again = time.monotonic()
        time.sleep(1.5)
    for load in loads.values():
        assert len(load.since(again)) > 5
        assert all(one.recorded for one in load.since(again)), "recording did not resume"
    assert Counter(one.status for one in answer.asked) == {200: len(answer.asked)}
    assert {one.status for one in refuse.asked} == {200, 503}
    assert all(one.recorded == (one.status == 200) for one in refuse.asked)
    for policy, load in loads.items():
        assert {one.status for one in load.said} <= ({202, 503} if policy == "refuse" else {202})
        assert all(one.recorded == (one.status == 202) for one in load.said) or policy == "answer"
        api = apis[policy]
        api.drained()
        fates = {fate: api.metric("records_total", outcome=fate) for fate in ("recorded", "dropped", "withdrawn")}
        assert sum(fates.values()) == len(load.asked) + len(load.said), fates
        assert fates["recorded"] >= load.recorded
        assert api.metric("stream_acknowledged_total") == fates["recorded"]
        arrived = arrive(broker.address, f"{topic}-{policy}")
        arrived.tell(f"{type(rooms[policy]).__name__}, {policy}", load)
        arrived.check(load)
