from __future__ import annotations

import logging
import threading
import time

import pytest

from perdure.errors import StoreBusy, StreamError
from perdure.records import Feedback, Interaction
from perdure.stream import MemoryStream
from perdure_services.serving import recorder as module
from perdure_services.serving.metrics import Metrics
from perdure_services.serving.recorder import Recorder


class GatedStream(MemoryStream):
    """Notes the size of each append, and waits at its gate."""

    def __init__(self):
        super().__init__()
        self.appends = []
        self.gate = threading.Event()
        self.gate.set()

    def _append(self, records):
        self.appends.append(len(records))
        assert self.gate.wait(10)
        super()._append(records)


@pytest.fixture
def gated():
    return GatedStream()


@pytest.fixture
def start():
    started = []

    def begin(stream, max_records=1000):
        recorder = Recorder(stream, max_records=max_records, metrics=Metrics())
        recorder.start()
        started.append(recorder)
        return recorder

    yield begin
    for recorder in started:
        recorder.close(1)


def interaction(name, text="hello"):
    return Interaction(time=1.0, id=str(name), text=text)


def names(records):
    return [record.id for record in records]


def metric(recorder, name, **labels):
    return recorder._metrics.registry.get_sample_value(f"perdure_{name}", labels) or 0.0


def test_a_group_is_done_once_it_is_in_the_stream(gated, start, records, until):
    recorder = start(gated)
    gated.gate.clear()
    done = recorder.submit([interaction(1), interaction(2)])
    until(lambda: gated.appends)
    assert not done.done()
    assert recorder.unsent == 2
    assert recorder.oldest_seconds() > 0
    gated.gate.set()
    assert done.result(5) is True
    assert names(records(gated)) == ["1", "2"]
    until(lambda: recorder.unsent == 0)
    assert recorder.oldest_seconds() == 0
    assert metric(recorder, "records_total", outcome="recorded") == 2


def test_what_waits_is_appended_at_once_and_in_order(gated, start, records, until):
    recorder = start(gated)
    gated.gate.clear()
    recorder.submit([interaction("first")])
    until(lambda: gated.appends)
    futures = [recorder.submit([interaction(f"{number}{part}") for part in "ab"]) for number in range(20)]
    gated.gate.set()
    assert all(future.result(5) for future in futures)
    assert gated.appends == [1, 40]
    assert names(records(gated)) == ["first"] + [f"{number}{part}" for number in range(20) for part in "ab"]


def test_one_append_is_bounded_but_never_splits_a_group(gated, start, until, monkeypatch):
    monkeypatch.setattr(module, "MAX_COMMIT", 5)
    recorder = start(gated)
    gated.gate.clear()
    recorder.submit([interaction("first")])
    until(lambda: gated.appends)
    futures = [recorder.submit([interaction(number)] * size) for number, size in enumerate((3, 3, 7, 1))]
    gated.gate.set()
    assert all(future.result(5) for future in futures)
    assert gated.appends == [1, 3, 3, 7, 1]


def test_a_failing_stream_loses_nothing_and_is_logged_once(stream, start, records, until, caplog, monkeypatch):
    monkeypatch.setattr(module, "FIRST_RETRY_SECONDS", 0.001)
    caplog.set_level(logging.INFO, logger=module.__name__)
    recorder = start(stream)
    stream.fail_with(StreamError("the disk is full"))
    futures = [recorder.submit([interaction(number)]) for number in range(3)]
    until(lambda: metric(recorder, "record_retries_total") >= 4)
    assert recorder.failing
    assert not any(future.done() for future in futures)
    assert records(stream) == []
    stream.heal()
    assert all(future.result(5) for future in futures)
    assert names(records(stream)) == ["0", "1", "2"]
    until(lambda: not recorder.failing)
    assert [record.levelname for record in caplog.records] == ["ERROR", "INFO"]
    assert "the disk is full" in caplog.messages[0]


def test_a_failing_stream_is_tried_less_and_less_often(stream, start, until, monkeypatch):
    monkeypatch.setattr(module, "FIRST_RETRY_SECONDS", 0.01)
    recorder = start(stream)
    stream.fail_with(StreamError("the disk is full"))
    recorder.submit([interaction(1)])
    time.sleep(0.4)
    assert 2 <= metric(recorder, "record_retries_total") <= 7
    stream.heal()
    until(lambda: recorder.unsent == 0)


@pytest.mark.parametrize("failure", [StoreBusy("locked"), OSError("no space")])
def test_other_troubles_of_a_store_are_waited_out_too(start, until, failure, monkeypatch, records):
    monkeypatch.setattr(module, "FIRST_RETRY_SECONDS", 0.001)
    troubles = [failure]

    class Troubled(MemoryStream):
        def _append(self, records):
            if troubles:
                raise troubles.pop()
            super()._append(records)

    stream = Troubled()
    assert start(stream).submit([interaction(1)]).result(5) is True
    assert names(records(stream)) == ["1"]


def test_a_full_queue_drops_the_new_and_counts_it(gated, start, until, records):
    recorder = start(gated, max_records=3)
    gated.gate.clear()
    first = recorder.submit([interaction(1)])
    until(lambda: gated.appends)
    second = recorder.submit([interaction(2), interaction(3)])
    assert recorder.submit([interaction(4)]) is None
    assert recorder.unsent == 3
    assert metric(recorder, "records_total", outcome="dropped") == 1
    gated.gate.set()
    assert first.result(5)
    assert second.result(5)
    until(lambda: recorder.unsent == 0)
    assert recorder.submit([interaction(5)]).result(5)
    assert names(records(gated)) == ["1", "2", "3", "5"]


def test_the_queue_is_bounded_in_text_too(gated, start, until, monkeypatch):
    monkeypatch.setattr(module, "MAX_QUEUE_CHARS", 100)
    recorder = start(gated)
    gated.gate.clear()
    first = recorder.submit([interaction(1, "x" * 60)])
    assert recorder.submit([interaction(2, "x" * 60)]) is None
    assert recorder.submit([Feedback(time=1.0, interaction="1", label="a")]) is not None
    gated.gate.set()
    assert first.result(5)
    until(lambda: recorder.unsent == 0)
    assert recorder.submit([interaction(3, "x" * 60)]).result(5)


def test_a_record_that_cannot_be_encoded_holds_nobody_up(gated, start, until, records):
    recorder = start(gated)
    gated.gate.clear()
    recorder.submit([interaction("first")])
    until(lambda: gated.appends)
    # No validated record is like this one; what slips through all the same must not stop the others.
    odd = interaction("b", "x").model_copy(update={"text": "\ud800"})
    futures = [recorder.submit([record]) for record in (interaction("a", "x"), odd, interaction("c", "x"))]
    gated.gate.set()
    assert [future.result(5) for future in futures] == [True, False, True]
    assert names(records(gated)) == ["first", "a", "c"]
    assert metric(recorder, "records_total", outcome="dropped") == 1


def test_a_withdrawn_group_is_not_written(gated, start, until, records):
    recorder = start(gated)
    gated.gate.clear()
    first = recorder.submit([interaction(1)])
    until(lambda: gated.appends)
    second = recorder.submit([interaction(2)])
    assert second.cancel()
    assert not first.cancel(), "it is being written already"
    gated.gate.set()
    until(lambda: recorder.unsent == 0)
    assert names(records(gated)) == ["1"]
    assert metric(recorder, "records_total", outcome="withdrawn") == 1


def test_closing_writes_what_waits(gated, start, until, records):
    recorder = start(gated)
    gated.gate.clear()
    recorder.submit([interaction(1)])
    until(lambda: gated.appends)
    last = recorder.submit([interaction(2)])
    threading.Timer(0.05, gated.gate.set).start()
    assert recorder.close(5) == 0
    assert last.result(0)
    assert names(records(gated)) == ["1", "2"]
    assert not recorder.alive
    assert recorder.submit([interaction(3)]) is None


def test_closing_over_a_dead_stream_gives_up_in_time_and_says_so(stream, start, until, caplog):
    recorder = start(stream)
    stream.fail_with(StreamError("gone"))
    recorder.submit([interaction(1)])
    until(lambda: recorder.failing)
    recorder.submit([interaction(2), interaction(3)])
    begin = time.monotonic()
    assert recorder.close(0.2) == 3
    assert time.monotonic() - begin < 1
    assert "3 records could not be written" in caplog.text
    assert not recorder.alive


def test_closing_gives_a_failing_stream_its_last_chance(stream, start, until, records):
    recorder = start(stream)
    stream.fail_with(StreamError("gone"))
    done = recorder.submit([interaction(1)])
    until(lambda: recorder.failing)
    threading.Timer(0.1, stream.heal).start()
    assert recorder.close(5) == 0
    assert done.result(0)
    assert names(records(stream)) == ["1"]
