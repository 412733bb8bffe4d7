"""What an ingester tells Prometheus and probes, over partitions in memory."""

from __future__ import annotations

import logging
import threading
import time

import pytest

from perdure.config import Settings
from perdure.errors import RegistryError, StreamError
from perdure.records import Erasure, Interaction
from perdure.stream import MemoryStream
from perdure_services.ingester import ingester as module
from perdure_services.ingester import shard as shard_module
from perdure_services.ingester.ingester import Ingester
from perdure_services.ingester.metrics import IngesterMetrics


class Partition(MemoryStream):
    """Outlives the shard that reads it."""

    def close(self):
        pass


class Group:
    """A consumer group of one."""

    def __init__(self):
        self.dealt = frozenset({0})
        self.away = False
        self.hangs = threading.Event()
        self.hangs.set()

    def partitions(self):
        self.hangs.wait(20)
        time.sleep(0.05)
        if self.away:
            raise StreamError("the broker is away")
        return self.dealt

    def close(self):
        pass


@pytest.fixture
def group():
    return Group()


@pytest.fixture
def partitions():
    return {0: Partition(), 1: Partition()}


@pytest.fixture
def ingester(group, partitions, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "Membership", lambda servers, settings: group)
    monkeypatch.setattr(module, "KafkaStream", lambda servers, settings, only: partitions[next(iter(only))])
    monkeypatch.setattr(module, "IDLE_SECONDS", 0.05)
    monkeypatch.setattr(module, "RETRY_SECONDS", 0.05)
    monkeypatch.setattr(shard_module, "LAG_SECONDS", 0.0)
    settings = Settings().with_values(
        {
            "stream.url": "kafka://nowhere:9092",
            "registry.url": str(tmp_path / "registry"),
            "ingest.path": str(tmp_path / "shards"),
            "ingest.snapshot_seconds": 0.5,
        }
    )
    made = Ingester(settings, lambda memory: None)
    thread = threading.Thread(target=made.run)
    thread.start()
    yield made
    group.hangs.set()
    made.stop()
    thread.join(10)
    assert not thread.is_alive()


def until(true, seconds=20.0):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.01)


def value(ingester, name, **labels):
    return ingester.metrics.registry.get_sample_value(f"perdure_ingest_{name}", labels)


def records(name, count):
    return [Interaction(time=time.time(), id=f"{name}-{number}", text=f"{name} {number}") for number in range(count)]


def test_the_names_are_those_that_dashboards_and_alerts_ask_for():
    families = {
        family.name + ("_total" if family.type == "counter" else ""): family.type
        for family in IngesterMetrics().registry.collect()
        if family.name.startswith("perdure_")
    }
    assert families == {
        "perdure_ingest_records_total": "counter",
        "perdure_ingest_partitions": "gauge",
        "perdure_ingest_lag_records": "gauge",
        "perdure_ingest_snapshot_timestamp_seconds": "gauge",
    }


def test_it_tells_what_it_reads_and_what_is_its(ingester, group, partitions):
    partitions[0].append(records("a", 7))
    until(lambda: value(ingester, "records_total") == 7)
    partitions[0].append([*records("a", 2), Erasure(time=1.0, subject="bob")])
    until(lambda: value(ingester, "records_total") == 10)
    until(lambda: value(ingester, "lag_records", partition="0") == 0)
    assert value(ingester, "partitions") == 1
    began = time.time()
    until(lambda: value(ingester, "snapshot_timestamp_seconds") >= began)
    group.dealt = frozenset({1})
    partitions[1].append(records("b", 3))
    until(lambda: value(ingester, "records_total") == 13)
    assert value(ingester, "partitions") == 1
    assert value(ingester, "lag_records", partition="0") is None, "that is somebody else's to tell"
    group.dealt = frozenset()
    until(lambda: value(ingester, "partitions") == 0)


def test_what_is_not_in_a_snapshot_yet_makes_the_last_one_old(ingester, partitions):
    until(lambda: value(ingester, "snapshot_timestamp_seconds") > 0)
    until(lambda: ingester._held)
    ingester._held[0]._interval = 1000.0
    partitions[0].append(records("a", 2))
    until(lambda: value(ingester, "records_total") == 2)
    time.sleep(0.2)
    last = value(ingester, "snapshot_timestamp_seconds")
    time.sleep(0.3)
    assert value(ingester, "snapshot_timestamp_seconds") == last


def test_what_cannot_be_read_yet_is_its_lag(ingester, partitions, monkeypatch):
    until(lambda: value(ingester, "lag_records", partition="0") == 0)
    monkeypatch.setattr(shard_module, "ingest", lambda stream, memory, go_on: shard_module.IngestCounts())
    partitions[0].append(records("a", 5))
    until(lambda: value(ingester, "lag_records", partition="0") == 5)
    assert value(ingester, "records_total") == 0


def test_a_broker_that_is_away_is_no_reason_to_restart(ingester, group, monkeypatch):
    monkeypatch.setattr(module, "SILENT_SECONDS", 0.5)
    until(lambda: value(ingester, "partitions") == 1)
    group.away = True
    for _ in range(10):
        time.sleep(0.1)
        assert ingester.problem() == ""


def test_a_membership_that_hangs_is(ingester, group, monkeypatch):
    monkeypatch.setattr(module, "SILENT_SECONDS", 0.5)
    until(lambda: value(ingester, "partitions") == 1)
    group.hangs.clear()
    until(lambda: "the broker was last asked" in ingester.problem())
    group.hangs.set()
    until(lambda: ingester.problem() == "")


def test_reading_that_hangs_is(ingester, partitions, monkeypatch):
    monkeypatch.setattr(module, "STUCK_SECONDS", 0.5)
    until(lambda: value(ingester, "partitions") == 1)
    go_on = threading.Event()

    def hanging(stream, memory, _go_on):
        go_on.wait(20)
        return shard_module.IngestCounts()

    monkeypatch.setattr(shard_module, "ingest", hanging)
    until(lambda: "reading has not come forward" in ingester.problem())
    go_on.set()
    until(lambda: ingester.problem() == "")


@pytest.mark.parametrize("what", ["reading", "membership"])
def test_what_goes_wrong_for_long_is_said_once(what, ingester, group, monkeypatch, caplog):
    until(lambda: value(ingester, "partitions") == 1)
    tries = []

    def failing(*_):
        tries.append(1)
        raise RegistryError("the store is away")

    with caplog.at_level(logging.INFO):
        if what == "reading":
            with monkeypatch.context() as patch:
                patch.setattr(shard_module, "ingest", failing)
                until(lambda: len(tries) > 5)
        else:
            group.away = True
            time.sleep(0.5)
            group.away = False
        until(lambda: f"{what} goes on" in caplog.messages)
    problems = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(problems) == 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_membership_that_has_ended_is(ingester, group, monkeypatch):
    until(lambda: value(ingester, "partitions") == 1)

    def broken():
        raise RuntimeError("an error that nobody thought of")

    monkeypatch.setattr(group, "partitions", broken)
    until(lambda: "the thread that asks the broker" in ingester.problem())
