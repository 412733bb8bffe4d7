"""Serving as the chart runs it: probes, traffic, a rolling restart, the way out, a crash."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count

import pytest
import yaml

from perdure.client import Client
from perdure.config import Settings
from perdure.errors import ApiError
from perdure.records import Feedback, Interaction
from perdure.stream import open_stream

from .conftest import texts
from .pods import Balancer, Cluster, Pod, metric, until

pytestmark = [pytest.mark.e2e, pytest.mark.kafka, pytest.mark.timeout(900)]

CONNECTIONS = 3
STARTS_SECONDS = 240.0
"""What a start may take on a machine that does other things too."""


@dataclass
class Load:
    """Asks through the balancer with Perdure's own client, each question once; nothing that fails is asked again."""

    url: str
    recorded: dict[str, str] = field(default_factory=dict)
    """Text by id of what was answered as recorded."""
    told: set[tuple[str, str]] = field(default_factory=set)
    failures: list[str] = field(default_factory=list)
    answers: int = 0
    _stop: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> Load:
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(CONNECTIONS)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(30)

    def _run(self, connection: int) -> None:
        with Client(self.url, tries=1, timeout=20) as api:
            for number in count():
                if self._stop.is_set():
                    return
                text = f"where is my parcel {connection} {number}"
                try:
                    prediction = api.predict(text)
                    self.answers += 1
                    if prediction.recorded:
                        self.recorded[prediction.id] = text
                    if number % 5 == 0 and api.feedback(prediction.id, "parcel").recorded:
                        self.told.add((prediction.id, "parcel"))
                except ApiError as error:
                    self.failures.append(f"{type(error).__name__}: {error}")
                time.sleep(0.04)


def settings_of(pod: Pod) -> Settings:
    """As the pod's processes read them."""
    (file,) = (place / "perdure.yaml" for place in pod.mounts.values() if (place / "perdure.yaml").exists())
    tree = yaml.safe_load(file.read_text(encoding="utf-8"))
    return Settings().with_values(
        {
            f"{section}.{name}": value
            for section, rest in tree.items()
            if isinstance(rest, dict)
            for name, value in rest.items()
        }
    )


def arrived(settings: Settings) -> tuple[dict[str, str], set[tuple[str, str]]]:
    """The topic's live interactions, and labels given."""
    live: dict[str, str] = {}
    told: set[tuple[str, str]] = set()
    offset: dict[str, int] = {}
    with open_stream(settings.stream) as stream:
        while (page := stream.read(offset, 1000)).entries:
            offset = dict(page.next)
            for record in (entry.record() for entry in page.entries):
                if isinstance(record, Interaction) and record.version is not None:
                    live[record.id] = record.text
                elif isinstance(record, Feedback) and record.source != "import":
                    told.add((record.interaction, record.label))
    return live, told


@pytest.fixture(scope="module")
def cluster(install: Callable[..., Cluster]) -> Cluster:
    """A release with a first version, made in the trainer's place."""
    cluster = install()
    rows = [
        json.dumps({"text": text, "label": label})
        for label in ("refund", "parcel", "login", "card")
        for text in texts(label, 12)
    ]
    job = cluster.pod("trainer")
    (job.mounts["/tmp"] / "rows.jsonl").write_text("\n".join(rows), encoding="utf-8")
    said = job.run("perdure", "fit", "--data", "/tmp/rows.jsonl", "--config", "/etc/perdure/perdure.yaml", "--json")
    assert json.loads(said)["champion"] == "v000001-head"
    return cluster


@pytest.fixture
def serving(cluster: Cluster) -> Iterator[list[Pod]]:
    pods = [cluster.pod("serving").start() for _ in range(cluster.workload("serving")["spec"]["replicas"])]
    yield pods
    for pod in pods:
        pod.kill()


def test_a_release_of_serving_lives_as_its_manifests_say(cluster: Cluster, serving: list[Pod]) -> None:
    assert len(serving) == 2
    for pod in serving:
        until(lambda pod=pod: pod.ready, STARTS_SECONDS, lambda pod=pod: pod.log)
        assert pod.passes("livenessProbe")
    settings = settings_of(serving[0])
    took: list[float] = []
    seen: list[int] = []
    with Balancer(lambda: list(serving), "http") as service, Load(service.url) as load:
        until(lambda: load.answers > 30, 30, lambda: str(load.failures))
        # A rolling update: one more, and when that is ready, one less.
        for place in (0, 1):
            old, new = serving[place], cluster.pod("serving").start()
            serving.append(new)
            until(lambda new=new: new.ready, STARTS_SECONDS, lambda new=new: new.log)
            took.append(old.delete())
            seen.append(load.answers)
        del serving[:2]
        until(lambda: load.answers > seen[1] + 30, 30)
        rolled = len(load.failures)
        assert load.failures == []
        assert service.refused == 0

        # A container that is killed is started again in its pod, where its spool lies.
        crashed = serving[0]
        crashed.crash()
        until(lambda: crashed.ready, STARTS_SECONDS, lambda: crashed.log)
        until(lambda: load.answers > seen[1] + 60, 30)
    # Whoever was asking just then got no answer; nobody else noticed.
    assert len(load.failures) - rolled <= 2 * CONNECTIONS, load.failures
    assert {failure.partition(":")[0] for failure in load.failures} <= {
        "ApiUnreachable",
        "ApiTimeout",
        "ApiOutcomeUnknown",
        "ApiBusy",
    }
    for pod in tuple(serving):
        until(lambda pod=pod: metric(pod, "perdure_spool_records", "http") == 0, 30)
        took.append(pod.delete())

    # Each took its preStop and its lame duck, and no more than a part of the grace that the chart computed.
    grace = serving[0].grace
    least = 1 + settings.serving.lame_duck_seconds
    assert grace >= least + settings.serving.drain_seconds + 15
    assert all(least <= seconds < least + settings.serving.drain_seconds + 5 for seconds in took), took
    live, told = arrived(settings)
    lost = load.recorded.keys() - live.keys()
    assert not lost, f"{len(lost)} of {len(load.recorded)} recorded predictions did not arrive"
    assert live.items() >= load.recorded.items()
    assert told >= load.told
    assert len(load.recorded) >= load.answers - 2 * CONNECTIONS
    assert max(Counter(live.values()).values()) == 1, "nothing came twice"
    for pod in cluster.pods:
        assert pod.probes == []
        assert "Traceback" not in pod.log
