"""The broker that tests run: it keeps its records over a crash, and does to a test what it says."""

from __future__ import annotations

import importlib.util
import os
import random
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer
from kafka.errors import KafkaError, KafkaTimeoutError

BROKER = Path(__file__).parents[2] / "deploy" / "kafka" / "broker.py"

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(120)]


def make_topic(address: str, topic: str, **configs: str) -> None:
    with KafkaAdminClient(bootstrap_servers=address) as admin:
        admin.create_topics({topic: {"num_partitions": 1, "configs": configs}}, wait_for_metadata=True)


def produce(address: str, topic: str, *values: bytes, **security: Any) -> None:
    with KafkaProducer(bootstrap_servers=address, max_block_ms=15_000, **security) as producer:
        for sent in [producer.send(topic, value) for value in values]:
            sent.get(timeout=15)


def consume(address: str, topic: str, count: int, **security: Any) -> list[bytes]:
    """The first `count` values of a topic of one partition; fewer where they do not come within 15 s."""
    with KafkaConsumer(
        topic, bootstrap_servers=address, auto_offset_reset="earliest", consumer_timeout_ms=15_000, **security
    ) as consumer:
        return [record.value for record in islice(consumer, count)]


def security(broker: Any, password: str) -> dict[str, Any]:
    return {
        "security_protocol": "SASL_SSL",
        "sasl_mechanism": "SCRAM-SHA-512",
        "sasl_plain_username": broker.username,
        "sasl_plain_password": password,
        "ssl_cafile": str(broker.ca_file),
    }


def alive(pid: int) -> bool:
    """Whether the process runs; one that has ended and waits for its parent does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone(pid: int, seconds: float = 10) -> bool:
    deadline = time.monotonic() + seconds
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not alive(pid)


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A copy of the broker's module that this test may change."""
    spec = importlib.util.spec_from_file_location("broker_under_test", BROKER)
    assert spec is not None
    assert spec.loader is not None
    copy = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(copy)
    return copy


@pytest.fixture
def distribution(module: Any) -> Any:
    return sys.modules["kafka_distribution"]


# ── the shared one ──
def test_a_record_comes_back(kafka_broker: Any) -> None:
    topic = f"round-trip-{os.getpid()}"
    make_topic(kafka_broker.address, topic)
    produce(kafka_broker.address, topic, b"one")
    assert consume(kafka_broker.address, topic, 1) == [b"one"]


def test_a_misspelt_topic_is_an_error(kafka_broker: Any) -> None:
    with (
        KafkaProducer(bootstrap_servers=kafka_broker.address, max_block_ms=1500) as producer,
        pytest.raises(KafkaTimeoutError),
    ):
        producer.send("nobody-made-this", b"one").get(timeout=5)


def test_retention_runs_at_once(kafka_broker: Any) -> None:
    topic = f"retention-{os.getpid()}"
    old = int(time.time() * 1000) - 3_600_000
    make_topic(kafka_broker.address, topic, **{"retention.ms": "1000", "segment.ms": "100"})
    with KafkaProducer(bootstrap_servers=kafka_broker.address) as producer:
        producer.send(topic, b"old", timestamp_ms=old).get(timeout=15)
        producer.send(topic, b"new").get(timeout=15)
    with KafkaConsumer(topic, bootstrap_servers=kafka_broker.address) as consumer:
        deadline = time.monotonic() + 15
        while not (begin := list(consumer.beginning_offsets(consumer_partitions(consumer, topic)).values()))[0]:
            assert time.monotonic() < deadline, f"retention did not run: the topic begins at {begin}"
            time.sleep(0.2)


def consumer_partitions(consumer: Any, topic: str) -> list[Any]:
    from kafka import TopicPartition

    return [TopicPartition(topic, number) for number in consumer.partitions_for_topic(topic)]


# ── one that a test may kill ──
def test_it_survives_a_crash_and_a_pause_beside_another(kafka_broker: Any, own_broker: Callable[..., Any]) -> None:
    broker = own_broker()
    address = broker.address
    assert address != kafka_broker.address
    make_topic(address, "kept")
    produce(address, "kept", b"before")
    with KafkaAdminClient(bootstrap_servers=kafka_broker.address) as other:
        assert "kept" not in other.list_topics()

    # Killed, with the record nowhere but in the broker's own files.
    killed, watch = broker.pid, broker._watch.pid
    assert str(killed) in Path(f"/proc/{watch}/cmdline").read_text().split("\0")
    broker.kill()
    assert broker.pid is None
    assert gone(killed)
    assert gone(watch)
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", broker.port), timeout=5)
    assert broker.start().address == address
    assert consume(address, "kept", 1) == [b"before"]

    # Paused: it takes a record only afterwards, and until then does not answer, though its port is open.
    broker.pause()
    socket.create_connection(("127.0.0.1", broker.port), timeout=5).close()
    sent = threading.Thread(target=produce, args=(address, "kept", b"meanwhile"))
    sent.start()
    sent.join(1.5)
    assert sent.is_alive()
    broker.resume()
    sent.join(20)
    assert not sent.is_alive()
    assert consume(address, "kept", 2) == [b"before", b"meanwhile"]

    with pytest.raises(type(broker).start.__globals__["BrokerError"], match="runs already"):
        broker.start()
    broker.pause()
    broker.stop()
    assert broker.pid is None


def test_sasl_ssl_asks_who_it_is(own_broker: Callable[..., Any]) -> None:
    broker = own_broker(sasl_ssl=True, settings={"num.partitions": "3"})
    password = broker.password_file.read_text(encoding="utf-8")
    assert broker.password_file.stat().st_mode & 0o077 == 0
    right = security(broker, password)
    with KafkaAdminClient(bootstrap_servers=broker.address, **right) as admin:
        admin.create_topics(["secret"], wait_for_metadata=True)
        assert len(admin.describe_topics(["secret"])[0]["partitions"]) == 3
    produce(broker.address, "secret", b"one", **right)
    with KafkaConsumer("secret", bootstrap_servers=broker.address, auto_offset_reset="earliest", **right) as consumer:
        assert next(consumer).value == b"one"

    # The client tries a wrong password again and again, so what it says in the end is that time is over.
    for stranger in (security(broker, password + "x"), {}):
        with pytest.raises(KafkaError):
            KafkaAdminClient(bootstrap_servers=broker.address, bootstrap_timeout_ms=1500, **stranger)
    with (
        socket.create_connection(("127.0.0.1", broker.port), timeout=5) as plain,
        pytest.raises(ssl.SSLCertVerificationError),
    ):
        ssl.create_default_context().wrap_socket(plain, server_hostname="localhost")


def test_no_two_listeners_get_one_port(module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Unlucky:
        def sample(self, ports: Any, count: int) -> list[int]:
            return list(ports)[:count]

    monkeypatch.setattr(random, "SystemRandom", Unlucky)
    monkeypatch.setattr(sys.modules["local_server"], "is_free", lambda port: True)
    broker = module.Broker(tmp_path)
    ports = [broker.port, *broker._inner_ports()]
    assert len(set(ports)) == 3


# ── the command ──
def test_the_command_says_where_it_is_and_ends_in_order(kafka_broker: Any, module: Any, tmp_path: Path) -> None:
    port = module.Broker(tmp_path).port
    command = [sys.executable, str(BROKER), "--port", str(port), "--folder", str(tmp_path / "kept")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == f"127.0.0.1:{port}\n"
            make_topic(f"127.0.0.1:{port}", "there")
            taken = subprocess.run(command, capture_output=True, text=True, timeout=30)
            assert (taken.returncode, taken.stdout) == (1, "")
            assert f"port {port} is taken" in taken.stderr
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 0
        finally:
            process.kill()
    assert module.is_free(port)


def test_a_broker_ends_with_whoever_started_it(tmp_path: Path) -> None:
    """With a process in the broker's place: who was killed could not end it."""
    script = f"""
import subprocess, sys, threading, time
sys.path.insert(0, {str(BROKER.parents[1])!r})
import local_process
held = []
def start():
    # A thread that ends must not take the broker with it.
    held.append(subprocess.Popen(["sleep", "60"], start_new_session=True))
    held.append(local_process.watch(held[0].pid))
thread = threading.Thread(target=start)
thread.start()
thread.join()
print(held[0].pid, flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        os.kill(pid, signal.SIGSTOP)  # a paused broker has to go too
        time.sleep(0.5)
        assert alive(pid)
        parent.kill()
    assert gone(pid)


# ── bad days, without Java ──
def test_it_says_which_program_is_missing(distribution: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    distribution.java_program.cache_clear()
    with pytest.raises(distribution.ProgramMissing, match=r"Java 17 is needed .* install Java 17"):
        distribution.fetch()
    old = tmp_path / "java"
    old.write_text("#!/bin/sh\necho 'openjdk version \"11.0.2\" 2019-01-15' >&2\n")
    old.chmod(0o755)
    with pytest.raises(distribution.ProgramMissing, match=r"needs Java 17, but .* says 'openjdk version \"11\.0\.2\""):
        distribution.fetch()
    old.write_text("#!/bin/sh\necho 'openjdk version \"21\" 2023-09-19' >&2\n")
    monkeypatch.setattr(distribution, "FILES", tmp_path / "files")
    with pytest.raises(distribution.ProgramMissing, match=r"Maven is needed .*apt-get install maven"):
        distribution.fetch()
    distribution.java_program.cache_clear()


def test_the_files_are_brought_once_and_whole(
    distribution: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    maven = tmp_path / "mvn"
    calls = tmp_path / "calls"
    maven.write_text(
        f"""#!/bin/sh
echo call >> {calls}
for one; do case $one in -DoutputDirectory=*) folder=${{one#*=}};; esac; done
echo half > "$folder/kafka.jar"
/bin/sleep 0.3
[ -e {tmp_path}/broken ] && {{ echo 'no route to host'; exit 1; }}
echo whole > "$folder/kafka.jar"
"""
    )
    maven.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(distribution, "FILES", tmp_path / "files")
    (tmp_path / "broken").touch()
    with pytest.raises(distribution.BrokerError, match="no route to host"):
        distribution.fetch()
    assert [file.name for file in (tmp_path / "files").iterdir()] == ["lock"]

    (tmp_path / "broken").unlink()
    calls.unlink()
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(distribution.fetch())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1
    assert len(found) == 4
    assert (found[0] / "kafka.jar").read_text() == "whole\n"
    assert calls.read_text().split() == ["call"]


def test_a_broker_that_cannot_start_says_why(module: Any, kafka_broker: Any, tmp_path: Path) -> None:
    broken = module.Broker(tmp_path / "broken", settings={"num.io.threads": "none"})
    with pytest.raises(module.BrokerError, match=r"num\.io\.threads"):
        broken.start()
    assert broken.pid is None
    assert not list((tmp_path / "broken").glob("data*"))

    with pytest.raises(ValueError, match=r"cannot hold 'log\.dirs'"):
        module.Broker(tmp_path, settings={"log.dirs": "elsewhere"})
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = module.Broker(tmp_path, port=other.getsockname()[1])
        with pytest.raises(module.BrokerError, match=f"port {taken.port} is taken"):
            taken.start()
    with pytest.raises(module.BrokerError, match="does not run"):
        taken.pause()
    taken.stop()
    taken.kill()
    (tmp_path / "data").mkdir()
    with pytest.raises(module.BrokerError, match="made without SASL_SSL"):
        module.Broker(tmp_path, sasl_ssl=True).start()
