"""Memory and registry destroyed and put back, while the topic kept what came since."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from perdure.backup import back_up, restore
from perdure.errors import StreamError
from perdure.memory import ingest
from perdure.records import Erasure, Feedback, Interaction

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(120)]


@pytest.fixture
def kafka_desk(desk_at: Callable[..., Any], settings_of: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """Desks with folders of their own on the test's topic."""
    stream = settings_of()

    def make(name: str) -> Any:
        given = {"stream__url": stream.url, "stream__topic": stream.topic, "stream__partitions": 3}
        return desk_at(tmp_path / name, **given, lora__enabled=False, memory__per_class=30)

    return make


def said(first: int, count: int) -> list[Interaction | Feedback]:
    """Predictions with their labels, some of a person who will ask to be forgotten."""
    found: list[Interaction | Feedback] = []
    for number in range(first, first + count):
        label = ("refund", "parcel", "login")[number % 3]
        subject = "ann" if number % 10 == 0 else None
        text = f"{label} my order {number} please"
        found.append(Interaction(id=f"i{number}", text=text, time=float(number), subject=subject))
        found.append(Feedback(interaction=f"i{number}", label=label, time=number + 0.5))
    return found


def held(desk: Any) -> tuple[Any, ...]:
    with desk.memory() as memory:
        counts = memory.counts()
        return memory.digest(), dict(memory.offset()), counts.joinable, memory.erasures()


def test_no_record_is_lost_or_counted_twice(kafka_desk: Callable[..., Any], tmp_path: Path) -> None:
    desk, spared = kafka_desk("desk"), kafka_desk("spared")
    desk.record(said(0, 60))
    assert desk.turn().promoted
    champion = desk.registry().champion()
    # Copies are made while records arrive and memory takes them.
    writing = threading.Thread(target=lambda: [desk.record(said(first, 10)) for first in range(60, 160, 10)])
    writing.start()
    with desk.memory(read_only=False) as memory, desk.stream() as stream:
        made = []
        while writing.is_alive() or not made:
            ingest(stream, memory)
            made.append(back_up(desk.settings, tmp_path / f"backup{len(made)}"))
    writing.join()
    assert all(manifest.parts == ("memory", "registry") for manifest in made)
    # Much comes after the last copy, an erasure too; then all is lost but the topic.
    desk.record([*said(160, 40), Erasure(subject="ann", time=150.0)])
    shutil.rmtree(desk.folder)
    for number, manifest in {0: made[0], len(made) - 1: made[-1]}.items():
        again = kafka_desk(f"again{number}")
        done = restore(again.settings, tmp_path / f"backup{number}")
        assert done.offset == manifest.offset
        assert again.registry().champion() == champion
        with again.memory() as memory:
            assert memory.digest() == manifest.digest
        again.turn()
        if number == 0:
            with spared.memory(read_only=False) as memory, spared.stream() as stream:
                ingest(stream, memory)
        assert held(again) == held(spared)
        with again.memory() as memory:
            totals = memory.counts().totals
            # Of each once; what came after its own erasure is refused, and counted so.
            assert (totals.interactions + totals.repeated, totals.feedback) == (200, 200)
            assert memory.alias("ann") in again.registry().erasures()


def test_a_memory_put_back_beside_another_topic_is_refused(
    kafka_desk: Callable[..., Any], desk_at: Callable[..., Any], settings_of: Callable[..., Any], tmp_path: Path
) -> None:
    desk = kafka_desk("desk")
    desk.record(said(0, 30))
    desk.turn()
    back_up(desk.settings, tmp_path / "backup")
    other = settings_of(topic=f"{settings_of().topic}-anew")
    elsewhere = desk_at(tmp_path / "else", stream__url=other.url, stream__topic=other.topic, stream__partitions=3)
    restore(elsewhere.settings, tmp_path / "backup")
    with pytest.raises(StreamError, match="it was made anew, or is another one"):
        elsewhere.turn()
