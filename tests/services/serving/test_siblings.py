"""What the processes of a server ask each other."""

from __future__ import annotations

import asyncio

import pytest
from prometheus_client import Gauge

from perdure.errors import StreamError
from perdure_services.fleet.hello import Hello
from perdure_services.monitor.registry import KnownRegistry
from perdure_services.serving import merged_metrics, subjects
from perdure_services.serving.merged_metrics import exposed_by_all, told_here
from perdure_services.serving.refusal import Refusal
from perdure_services.serving.service import Removed
from perdure_services.serving.siblings import Siblings, Told


def siblings(folder, place, handlers, count=2):
    return Siblings(Hello(place, count, place, str(folder), {}), handlers)


def test_questions_reach_the_others_and_failures_are_told(tmp_path):
    async def double(content):
        return 2 * content

    async def fail(content):
        raise StreamError("the disk is full")

    async def refuse(content):
        raise Refusal(503, "not now", do="later")

    async def sleep(content):
        await asyncio.sleep(5)

    async def ask():
        asked = siblings(tmp_path, 1, {"double": double, "fail": fail, "refuse": refuse, "sleep": sleep}, 3)
        # Left behind by one that was killed.
        (tmp_path / "1.sock").touch()
        await asked.start()
        asking = siblings(tmp_path, 0, {}, 3)
        told = [await asking.ask(1, name, 21, 0.3) for name in ("double", "fail", "refuse", "sleep")]
        everyone = await asking.ask_all("double", "\ud800", 0.3)
        asked.close()
        return told, everyone

    told, everyone = asyncio.run(ask())
    assert told[0] == Told(1, 42)
    assert [one.problem for one in told[1:]] == ["the disk is full", "not now", "no answer within 0.3 seconds"]
    assert everyone[0] == Told(1, "\ud800" * 2)
    assert everyone[1].place == 2
    assert "it is not there" in everyone[1].problem
    assert list(tmp_path.iterdir()) == []


def test_who_ends_before_answering_is_told_of(tmp_path):
    async def end(reader, writer):
        await reader.readline()
        writer.close()

    async def ask():
        server = await asyncio.start_unix_server(end, tmp_path / "1.sock")
        async with server:
            return await siblings(tmp_path, 0, {}).ask(1, "x", None, 1)

    assert "ended before it had answered" in asyncio.run(ask()).problem


def test_a_process_that_does_not_tell_its_series_is_told_as_down(tmp_path, monkeypatch):
    monkeypatch.setattr(merged_metrics, "ANSWER_SECONDS", 0.2)
    registry = KnownRegistry()
    Gauge("queue", "What waits.", ["kind"], registry=registry).labels('a "b"\n').set(float("nan"))

    async def expose(*answering):
        async def metrics(asked):
            return told_here(registry, 4)

        started = [siblings(tmp_path, place, {"metrics": metrics}, 3) for place in answering]
        for one in started:
            await one.start()
        text, kind = await exposed_by_all(registry, siblings(tmp_path, 0, {}, 3), "")
        for one in started:
            one.close()
        return text.decode().splitlines(), kind

    lines, kind = asyncio.run(expose(2))
    assert kind.startswith("text/plain; version=")
    assert [line for line in lines if not line.startswith("#")] == [
        'queue{kind="a \\"b\\"\\n",process="0"} NaN',
        'queue{kind="a \\"b\\"\\n",process="2"} NaN',
        'perdure_process_up{process="0"} 1.0',
        'perdure_process_up{process="1"} 0.0',
        'perdure_process_up{process="2"} 1.0',
        'perdure_process_restarts_total{process="0"} 0.0',
        'perdure_process_restarts_total{process="2"} 4.0',
    ]


def test_what_all_have_removed_is_added_up():
    here = Removed(stream=1, spool=2, until=5.0)
    assert subjects._together(here, [Told(1, [10, 20]), Told(2, [100, 200])]) == Removed(111, 222, 5.0)
    assert subjects._together(Removed(1, None, 5.0), [Told(1, [10, None])]) == Removed(11, None, 5.0)
    with pytest.raises(Refusal, match="503"):
        subjects._together(here, [Told(1, [10, 20]), Told(2, None, "it is not there")])
