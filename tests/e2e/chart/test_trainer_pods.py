"""Two trainers on one registry, as when a node hangs and comes back: one works, the other is fenced."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from perdure.errors import StoreBusy, UsageError
from perdure.memory import open_memory
from perdure.records import Feedback, Interaction
from perdure.registry import Registry
from perdure.stream import open_stream

from .conftest import texts
from .pods import Cluster, Pod, metric, samples, until
from .test_serving_pods import STARTS_SECONDS, settings_of

pytestmark = [pytest.mark.e2e, pytest.mark.kafka, pytest.mark.timeout(900)]

OTHER_CLAIM = "other-release-memory"


def teach(pod: Pod, *labels: str) -> None:
    """Labelled traffic, as serving records it."""
    records: list[Interaction | Feedback] = []
    for label in labels:
        for number, text in enumerate(texts(label, 20)):
            records.append(Interaction(time=time.time(), id=f"{label}-{number}", text=text))
            records.append(Feedback(time=time.time(), interaction=f"{label}-{number}", label=label))
    with open_stream(settings_of(pod).stream) as stream:
        stream.append(records)


def turn_of(pod: Pod) -> int | None:
    """Process id of the turn that runs."""
    assert pod.process is not None
    with suppress(FileNotFoundError, ProcessLookupError):
        for thread in Path(f"/proc/{pod.process.pid}/task").iterdir():
            if children := (thread / "children").read_text().split():
                return int(children[0])
    return None


def ended(pid: int) -> bool:
    """Whether a process is over; its parent may not have taken note of it."""
    try:
        return "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True


def frozen(pod: Pod) -> bool:
    """Whether its turn has fixed its rows, its champion and the number of its promotion."""
    settings = settings_of(pod).with_values({"memory.path": pod.environ["PERDURE_MEMORY__PATH"]})
    try:
        with open_memory(settings, read_only=True) as memory:
            return memory.turn().stage == "frozen"
    except (UsageError, StoreBusy):
        return False


@pytest.fixture
def cluster(install: Callable[..., Cluster]) -> Cluster:
    # To export takes longer than to learn, and nobody serves here.
    return install(config__model__export="none")


@pytest.fixture
def trainers(cluster: Cluster) -> Iterator[list[Pod]]:
    """The trainer's pod twice, each with a claim of its own for its memory, over one registry and one topic."""
    (claim,) = (
        each["persistentVolumeClaim"]["claimName"]
        for each in cluster.workload("trainer")["spec"]["template"]["spec"]["volumes"]
        if each["name"] == "memory"
    )
    pods = [cluster.pod("trainer"), cluster.pod("trainer", claims={claim: OTHER_CLAIM})]
    yield pods
    for pod in pods:
        if (pid := turn_of(pod)) is not None:
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
        pod.kill()


def test_a_trainer_that_was_stopped_finds_its_term_over(cluster: Cluster, trainers: list[Pod]) -> None:
    first, second = trainers
    registry = Registry(settings_of(first).registry.url)
    first.start()
    until(lambda: first.ready and metric(first, "perdure_trainer_leader") == 1, STARTS_SECONDS, lambda: first.log)
    second.start()
    until(lambda: "this trainer waits" in second.log, STARTS_SECONDS, lambda: second.log)
    assert second.passes("livenessProbe"), "to wait is to be well"
    assert metric(second, "perdure_trainer_leader") == 0

    # The first version is made as soon as there are labels.
    teach(first, "refund", "parcel")
    until(lambda: frozen(first), STARTS_SECONDS, lambda: first.log)
    pid = turn_of(first)
    assert pid is not None
    assert first.process is not None
    # The whole pod, as with a node that hangs: first what would notice.
    os.kill(first.process.pid, signal.SIGSTOP)
    os.killpg(pid, signal.SIGSTOP)
    stopped = time.monotonic()
    assert registry.promotions() == ()

    until(lambda: metric(second, "perdure_trainer_leader") == 1, STARTS_SECONDS, lambda: second.log)
    # A third of it may have been over when the first was stopped.
    assert time.monotonic() - stopped >= settings_of(first).trainer.lease_seconds * 0.6
    until(lambda: outcomes(second)["promoted"] == 1, STARTS_SECONDS, lambda: second.log)
    assert [(entry.number, entry.version) for entry in registry.promotions()] == [(1, "v000001-head")]
    assert not ended(pid)

    # It wakes: its turn first, so that it comes to its end by itself.
    os.killpg(pid, signal.SIGCONT)
    until(lambda: ended(pid), STARTS_SECONDS)
    os.kill(first.process.pid, signal.SIGCONT)
    until(lambda: "the turn was ended, and promoted nothing" in first.log, STARTS_SECONDS, lambda: first.log)
    assert "term 1 of the trainers' lease is over" in first.log
    assert "has taken term 2" in first.log
    until(lambda: "this trainer does not lead any more" in first.log, STARTS_SECONDS, lambda: first.log)
    until(lambda: metric(first, "perdure_trainer_leader") == 0, 10)
    assert outcomes(first)["fenced"] == 1
    assert first.passes("livenessProbe")
    assert [(entry.number, entry.version) for entry in registry.promotions()] == [(1, "v000001-head")]
    assert registry.versions() == ("v000001-head",), "it wrote no version either"

    # The second leaves in good order, and the first need not wait until the lease has run out.
    assert second.delete() < second.grace
    until(lambda: "this trainer leads, in term 3" in first.log, STARTS_SECONDS, lambda: first.log)
    # Its turn goes on with the number that it had fixed. The memories are equal, since both have read the same: what
    # was promoted meanwhile is what it would have promoted, and nothing is promoted twice.
    until(lambda: outcomes(first)["promoted"] + outcomes(first)["stale"] == 1, STARTS_SECONDS, lambda: first.log)
    assert [(entry.number, entry.version) for entry in registry.promotions()] == [(1, "v000001-head")]
    assert first.delete() < first.grace
    for pod in trainers:
        assert pod.probes == []
        assert "Traceback" not in pod.log


def outcomes(pod: Pod) -> dict[str, float]:
    """How many turns ended how."""
    return {labels["outcome"]: value for labels, value in samples(pod, "perdure_turns_total", "metrics")}
