from __future__ import annotations

import threading

import pytest

import perdure.memory
from perdure.errors import StoreBusy, StreamError
from perdure.memory import open_memory
from perdure.records import Erasure, Feedback, Interaction
from perdure.stream import SqliteStream, open_stream
from perdure_services.trainer import inbox as inbox_module
from perdure_services.trainer.inbox import Inbox


@pytest.fixture
def stop():
    return threading.Event()


@pytest.fixture
def inbox_of(stop):
    made = []

    def make(settings):
        made.append(Inbox(settings, stop))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_it_counts_the_labelled_rows_that_wait(settings_in, arrive, inbox_of, monkeypatch):
    monkeypatch.setattr(perdure.memory, "PAGE", 2)
    settings = settings_in()
    inbox = inbox_of(settings)
    assert not inbox.read().anything
    arrive(settings, "a", "b", "c")
    arrive(settings, "d", label=None)
    assert inbox.read().labels == 3
    arrive(settings, "e")
    assert inbox.read().labels == 4
    with open_memory(settings, read_only=True) as memory, open_stream(settings.stream) as stream:
        assert dict(memory.offset()) == dict(stream.end())


def test_memory_is_left_alone_while_nothing_is_new(settings_in, arrive, inbox_of):
    settings = settings_in()
    inbox = inbox_of(settings)
    arrive(settings, "a")
    assert inbox.read().labels == 1
    with open_memory(settings):
        assert inbox.read().labels == 1
        arrive(settings, "b")
        with pytest.raises(StoreBusy):
            inbox.read()
    assert inbox.read().labels == 2


def test_what_a_turn_has_had_waits_no_longer(settings_in, arrive, inbox_of, absorb):
    settings = settings_in()
    inbox = inbox_of(settings)
    arrive(settings, "a", "b")
    assert inbox.read().labels == 2
    with open_memory(settings) as memory:
        memory.freeze(champion=None, promotion=1)
        absorb(memory)
    inbox.changed()
    waiting = inbox.read()
    assert waiting.interrupted
    assert waiting.labels == 0
    assert waiting.anything
    with open_memory(settings) as memory:
        memory.finish("{}")
    inbox.changed()
    assert not inbox.read().anything


def test_a_correction_waits_too(settings_in, arrive, inbox_of, absorb):
    settings = settings_in()
    inbox = inbox_of(settings)
    arrive(settings, "a", "b", at=1000.0)
    inbox.read()
    with open_memory(settings) as memory:
        memory.freeze(champion=None, promotion=1)
        absorb(memory)
        memory.finish("{}")
    arrive(settings, "a", label="refund", at=2000.0)
    assert inbox.read().labels > 0


def test_what_the_head_has_yet_to_forget_waits_too(settings_in, inbox_of, absorb):
    settings = settings_in()
    inbox = inbox_of(settings)
    with open_stream(settings.stream) as stream:
        stream.append([Interaction(time=1000.0, id="a", text="a text", subject="anna")])
        stream.append([Feedback(time=1000.0, interaction="a", label="order")])
    inbox.read()
    with open_memory(settings) as memory:
        memory.freeze(champion=None, promotion=1)
        absorb(memory)
        memory.finish("{}")
    with open_stream(settings.stream) as stream:
        stream.append([Erasure(time=2000.0, subject="anna")])
    assert inbox.read().labels == 1


def test_no_page_is_begun_once_it_stops(settings_in, arrive, inbox_of, stop):
    settings = settings_in()
    arrive(settings, "a")
    stop.set()
    assert inbox_of(settings).read().labels == 0
    with open_memory(settings, read_only=True) as memory:
        assert not memory.offset()


def test_a_stream_that_failed_is_opened_anew(settings_in, arrive, inbox_of, monkeypatch):
    settings = settings_in()
    inbox = inbox_of(settings)
    inbox.read()
    arrive(settings, "a")

    def fail(*_):
        raise StreamError("gone")

    with monkeypatch.context() as patch:
        patch.setattr(SqliteStream, "_read", fail)
        with pytest.raises(StreamError):
            inbox.read()
    opened = []
    real = inbox_module.open_stream
    monkeypatch.setattr(inbox_module, "open_stream", lambda settings: opened.append(1) or real(settings))
    assert inbox.read().labels == 1
    assert opened == [1]
    arrive(settings, "b")
    inbox.read()
    assert opened == [1]
