"""What only a topic with several partitions does, and its bad days; the rest is in the conformance suite."""

from __future__ import annotations

import logging
import time
from collections import Counter

import pytest
from kafka import TopicPartition

from perdure.config import Settings
from perdure.errors import RecordError, SettingError, StreamError
from perdure.memory import ingest, open_memory
from perdure.records import Erasure, Feedback, Interaction
from perdure.stream.kafka import KafkaStream
from perdure.stream.payload import Payload

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(120)]


def said(name, text="hello", **values):
    return Interaction(id=name, time=values.pop("time", 1.0), text=text, **values)


def everything(stream, offset=None, limit=100):
    entries = []
    offset = offset or {}
    while (page := stream.read(offset, limit)).entries:
        entries += page.entries
        offset = page.next
    return entries


def memory_settings(settings_of, folder, **values):
    return Settings(stream=settings_of(**values)).with_values({"memory.path": str(folder / "memory")})


# ── partitions ──
def test_what_is_said_of_one_interaction_shares_its_partition(open_kafka):
    stream = open_kafka()
    names = [f"row-{number}" for number in range(40)]
    stream.append([said(name) for name in names])
    stream.append([Feedback(time=2.0, interaction=name, label="a") for name in names])
    where = {}
    for entry in everything(stream):
        record = entry.record()
        where.setdefault(record.id if isinstance(record, Interaction) else record.interaction, []).append(
            entry.partition
        )
    assert len(where) == 40
    assert all(len(found) == 2 and len(set(found)) == 1 for found in where.values())
    assert len({found[0] for found in where.values()}) == 3, "records should be spread over all partitions"


def test_an_erasure_reaches_every_partition(open_kafka):
    stream = open_kafka()
    stream.append([Erasure(time=1.0, subject="ann")])
    assert sorted(entry.partition for entry in everything(stream)) == ["0", "1", "2"]


def test_a_reader_of_some_partitions_sees_only_those(open_kafka):
    everybody, some = open_kafka(), open_kafka(only={0, 2})
    everybody.append([said(f"row-{number}") for number in range(30)])
    mine = everything(some)
    assert {entry.partition for entry in mine} == {"0", "2"}
    assert len(mine) == sum(entry.partition in "02" for entry in everything(everybody))
    assert set(some.end()) == {"0", "2"}
    # Another reader's offset of a partition that is not read here is left out.
    assert set(some.read(everybody.end(), 10).next) == {"0", "2"}


def test_partitions_that_were_added_are_read_from_their_beginning(open_kafka, admin, topic, monkeypatch):
    monkeypatch.setattr("perdure.stream.kafka.client.METADATA_MS", 500)
    stream = open_kafka()
    stream.append([said("first")])
    offset = stream.end()
    assert set(offset) == {"0", "1", "2"}
    admin.create_partitions({topic: 6})
    writer = open_kafka()
    deadline = time.monotonic() + 30
    while len(stream.end()) < 6:
        assert time.monotonic() < deadline, "the new partitions were never noticed"
        time.sleep(0.2)
    writer.append([said(f"row-{number}") for number in range(60)])
    found = everything(stream, offset)
    assert len(found) == 60
    assert {entry.partition for entry in found} == {"0", "1", "2", "3", "4", "5"}


# ── the topic ──
def test_a_missing_topic_is_made_as_the_settings_say(open_kafka, admin, topic):
    assert dict(open_kafka(partitions=5).end()) == {str(number): 0 for number in range(5)}
    (described,) = admin.describe_topics([topic])
    assert len(described["partitions"]) == 5


@pytest.mark.parametrize("use", ["append", "read", "end"])
def test_a_missing_topic_that_may_not_be_made_is_an_error(open_kafka, topic, use):
    stream = open_kafka(create_topic=False)
    with pytest.raises(StreamError, match=rf"'{topic}' is not there.*create_topic is false.*kafka-topics"):
        {"append": lambda: stream.append([said("a")]), "read": lambda: stream.read({}, 1), "end": stream.end}[use]()


def test_a_topic_that_was_made_anew_is_told(open_kafka, admin, topic):
    stream = open_kafka()
    stream.append([said(f"row-{number}") for number in range(30)])
    offset = stream.end()
    stream.close()
    admin.delete_topics([topic])
    time.sleep(1)
    with pytest.raises(StreamError, match="was made anew"):
        open_kafka().read(offset, 10)


# ── gaps ──
@pytest.fixture
def with_gap(open_kafka, admin, topic):
    """A reader's offset, and how many records that it has not read are gone."""
    stream = open_kafka()
    stream.append([said(f"row-{number}") for number in range(30)])
    offset = stream.read({}, 6).next
    ends = stream.end()
    begin = {TopicPartition(topic, int(name)): max(end - 1, 0) for name, end in ends.items()}
    admin.delete_records(begin)
    gone = sum(max(ends[name] - 1 - offset[name], 0) for name in ends)
    assert gone > 10
    return offset, gone


def test_records_that_retention_took_are_counted_and_the_rest_is_read(open_kafka, with_gap, caplog, topic):
    offset, gone = with_gap
    with caplog.at_level(logging.ERROR):
        page = open_kafka().read(offset, 100)
    assert page.lost == gone
    assert 1 <= len(page.entries) <= 3
    assert f"{gone} records of the topic '{topic}' were removed by its retention" in caplog.text
    assert open_kafka().read(page.next, 100).lost == 0


def test_a_reader_that_must_not_skip_stops_at_a_gap(open_kafka, with_gap):
    offset, gone = with_gap
    stream = open_kafka(on_gap="stop")
    for _ in range(2):
        with pytest.raises(StreamError, match=rf"{gone} records.*set stream.on_gap to skip"):
            stream.read(offset, 100)


def test_retention_may_overtake_an_open_reader(open_kafka, admin, topic):
    stream = open_kafka(partitions=1)
    stream.append([said(f"row-{number}") for number in range(5)])
    page = stream.read({}, 5)
    stream.append([said(f"later-{number}") for number in range(45)])
    admin.delete_records({TopicPartition(topic, 0): 40})
    rest = stream.read(page.next, 100)
    assert [entry.position for entry in rest.entries] == list(range(40, 50))
    assert rest.lost == 35


def test_memory_counts_what_was_lost(open_kafka, with_gap, settings_of, tmp_path):
    offset, gone = with_gap
    with open_memory(memory_settings(settings_of, tmp_path)) as memory:
        memory.ingest(type(open_kafka().read({}, 1))((), offset))
        assert ingest(open_kafka(), memory).lost == gone
        assert memory.counts().totals.lost == gone


# ── what others wrote ──
def test_unreadable_records_go_to_quarantine_and_to_the_dead_letter_topic(
    open_kafka, producer, settings_of, topic, tmp_path
):
    stream = open_kafka(dead_letter_topic=f"{topic}-dead")
    stream.append([said("good")])
    producer.send(topic, b"\xff\xfe", partition=1)
    producer.send(
        topic, b'{"kind": "feedback", "interaction": "x", "label": "b", "time": 1, "schema": 99}', partition=1
    )
    producer.send(topic, None, key=b"tombstone", partition=1)
    producer.flush()
    with open_memory(memory_settings(settings_of, tmp_path)) as memory:
        counts = ingest(stream, memory)
        assert (counts.interactions, counts.quarantined) == (1, 3)
        reasons = [one.reason for one in memory.quarantined()]
    assert any("not UTF-8" in reason for reason in reasons)
    assert any("schema 99 is newer" in reason for reason in reasons)
    dead = everything(open_kafka(topic=f"{topic}-dead"))
    assert Counter(entry.payload[:20] for entry in dead) == Counter(
        {b"\xff\xfe": 1, b'{"kind": "feedback",': 1, b"": 1}
    )


def test_a_record_that_is_too_large_for_the_topic_is_told_apart(open_kafka, admin, topic):
    admin.create_topics({topic: {"num_partitions": 1, "configs": {"max.message.bytes": "20000"}}})
    stream = open_kafka()
    with pytest.raises(RecordError, match=r"larger than the topic .* allows: raise its max\.message\.bytes"):
        stream.append([said("large", "x" * 30_000)])
    # Together they are too large for one request, one by one they are not.
    stream.append([said(f"row-{number}", "x" * 5000) for number in range(10)])
    assert len(everything(stream)) == 10
    with pytest.raises(RecordError, match="9000000 bytes, more than the 8000000 allowed"):
        stream.append_payloads([Payload(b"x" * 9_000_000, 1.0, "a", None)])


# ── bad days ──
def test_a_broker_that_is_away_is_an_error_in_time(settings_of):
    settings = settings_of(delivery_seconds=1.0)
    with KafkaStream(("127.0.0.1:9",), settings) as stream:
        for use in (lambda: stream.append([said("a")]), lambda: stream.read({}, 1), stream.end):
            begun = time.monotonic()
            with pytest.raises(StreamError, match=r"127.0.0.1:9.*broker cannot be reached.*start it"):
                use()
            assert time.monotonic() - begun < 15
        assert stream.forget("ann", 1.0) == 0


def test_a_closed_stream_says_so(open_kafka):
    stream = open_kafka()
    stream.append([said("a")])
    stream.close()
    for use in (lambda: stream.append([said("b")]), lambda: stream.read({}, 1), stream.end):
        with pytest.raises(StreamError, match="is closed: open it again"):
            use()


def test_appends_work_again_once_the_broker_is_back(own_broker, settings_of):
    broker = own_broker()
    settings = settings_of(delivery_seconds=5.0)
    with KafkaStream((broker.address,), settings) as stream:
        stream.append([said("before")])
        assert len(everything(stream)) == 1
        broker.kill()
        with pytest.raises(StreamError):
            stream.append([said("lost")])
        with pytest.raises(StreamError):
            stream.read({}, 100)
        broker.start()
        deadline = time.monotonic() + 60
        while True:
            try:
                stream.append([said("after")])
                break
            except StreamError:
                assert time.monotonic() < deadline
        texts = {entry.record().id for entry in everything(stream)}
    assert {"before", "after"} <= texts


def test_the_broker_is_told_how_far_memory_has_read(open_kafka, admin, settings_of, topic, monkeypatch):
    monkeypatch.setattr("perdure.stream.kafka.reader.COMMIT_SECONDS", 0.0)
    stream = open_kafka(group=f"group-{topic}")
    stream.append([said(f"row-{number}") for number in range(20)])
    page = stream.read({}, 15)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        stream.read(page.next, 1)
        found = admin.list_group_offsets([f"group-{topic}"])
        if found and str(found).count("offset=") >= 3:
            break
        time.sleep(0.2)
    committed = {key.partition: value.offset for key, value in found[f"group-{topic}"].items()}
    assert {str(key): value for key, value in committed.items()} == dict(page.next)


# ── security ──
def test_sasl_over_tls(own_broker, settings_of, tmp_path):
    broker = own_broker(sasl_ssl=True)
    secure = {
        "security": "SASL_SSL",
        "sasl_mechanism": "SCRAM-SHA-512",
        "sasl_username": broker.username,
        "sasl_password_file": str(broker.password_file),
        "tls_ca_file": str(broker.ca_file),
        "delivery_seconds": 10.0,
    }
    with KafkaStream((broker.address,), settings_of(**secure)) as stream:
        stream.append([said("a"), said("b")])
        assert len(everything(stream)) == 2
    wrong = tmp_path / "password"
    wrong.write_text("hunter2\n")
    with KafkaStream((broker.address,), settings_of(**secure | {"sasl_password_file": str(wrong)})) as stream:
        with pytest.raises(StreamError, match=r"does not answer this client.*stream\.sasl_") as caught:
            stream.append([said("a")])
        assert "hunter2" not in str(caught.value)
    other_ca = secure | {"tls_ca_file": ""}
    with KafkaStream((broker.address,), settings_of(**other_ca)) as stream, pytest.raises(StreamError):
        stream.append([said("a")])


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"security": "SASL_SSL"}, "sasl_password_file names no file"),
        ({"security": "SASL_PLAINTEXT", "sasl_password_file": "/nowhere"}, "'/nowhere', which cannot be read"),
        ({"security": "SSL", "tls_ca_file": "/nowhere.pem"}, r"tls_ca_file is '/nowhere.pem', which is no file"),
    ],
)
def test_settings_that_cannot_be_used_are_told(open_kafka, values, says):
    with pytest.raises(SettingError, match=says):
        open_kafka(**values).append([said("a")])
