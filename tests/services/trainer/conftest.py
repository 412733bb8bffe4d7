from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from perdure.config import Settings
from perdure.memory import Memory
from perdure.records import Feedback, Interaction, Record
from perdure.stream import open_stream


@pytest.fixture
def settings_in(tmp_path: Path) -> Callable[..., Settings]:
    """Settings whose stream, memory and registry lie in `tmp_path`."""

    def make(**values: Any) -> Settings:
        places = {
            "stream.url": f"sqlite:{tmp_path / 'stream.db'}",
            "memory.path": str(tmp_path / "memory"),
            "registry.url": str(tmp_path / "registry"),
        }
        return Settings().with_values({**places, **{name.replace("__", "."): value for name, value in values.items()}})

    return make


@pytest.fixture
def arrive() -> Callable[..., None]:
    """Records labelled requests, as serving would."""

    def record(settings: Settings, *names: str, label: str | None = "order", at: float | None = None) -> None:
        now = at if at is not None else time.time()
        records: list[Record] = [Interaction(time=now, id=name, text=f"text of {name}") for name in names]
        if label is not None:
            records += [Feedback(time=now, interaction=name, label=label) for name in names]
        with open_stream(settings.stream) as stream:
            stream.append(records)

    return record


@pytest.fixture
def absorb() -> Callable[..., None]:
    """Takes the labels that wait into the head's statistics, as the loop does."""

    def take(memory: Memory) -> None:
        if deltas := memory.deltas(1000):
            name = f"head-{deltas[-1].sequence}.safetensors"
            (Path(memory.folder) / name).write_bytes(b"sums")
            memory.set_statistics(name, through=deltas[-1].sequence)

    return take


@pytest.fixture
def until() -> Callable[..., None]:
    """Waits until something is true."""

    def wait(true: Callable[[], Any], seconds: float = 10.0) -> None:
        end = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < end, "it never came true"
            time.sleep(0.01)

    return wait


@pytest.fixture
def gone(until: Callable[..., None]) -> Callable[..., None]:
    """Waits until a process is no more, or is a zombie that nobody has taken away yet."""

    def dead(pid: int) -> bool:
        try:
            return "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return True

    def wait(pid: int, seconds: float = 5.0) -> None:
        assert pid != os.getpid()
        until(lambda: dead(pid), seconds)

    return wait
