"""What the parts share: a broker, a version to serve, and processes that are started and stopped."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "support_desk"
PERDURE = (sys.executable, "-c", "from perdure.cli import main; main()")
STOP_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Place:
    """Where everything of one run lies."""

    folder: Path
    broker: str
    """`host:port`."""
    broker_pid: int | None
    """None where somebody else runs it."""
    features: int
    """`model.features`."""

    @property
    def settings(self) -> dict[str, str]:
        """What all processes are given."""
        return {
            "registry.url": str(self.folder / "registry"),
            "memory.path": str(self.folder / "memory"),
            "stream.url": f"kafka://{self.broker}",
            "model.features": str(self.features),
            "lora.enabled": "false",
            "judge.judge_latency": "false",
        }


@contextmanager
def opened(folder: Path, broker: str | None, features: int) -> Iterator[Place]:
    """A place in `folder` with a broker, its own unless one is given."""
    folder.mkdir(parents=True)
    if broker:
        yield Place(folder, broker, None, features)
        return
    with broker_module().Broker(folder / "broker") as started:
        yield Place(folder, started.address, started.pid, features)


def broker_module() -> Any:
    """`deploy/kafka/broker.py`, which no package holds."""
    file = ROOT / "deploy" / "kafka" / "broker.py"
    spec = importlib.util.spec_from_file_location("perdure_kafka_broker", file)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def assignments(values: Mapping[str, object]) -> list[str]:
    """The settings as words of a command line."""
    return [word for name, value in values.items() for word in ("--set", f"{name}={value}")]


def fit(place: Place) -> None:
    """Makes the version that is served, from the demo's rows."""
    data = place.folder / "rows.jsonl"
    data.write_bytes((EXAMPLE / "stream.jsonl").read_bytes())
    values = {**place.settings, "stream.url": f"sqlite:{place.folder / 'fit.db'}"}
    command = [*PERDURE, "fit", "--data", str(data), *assignments(values)]
    ran = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    if ran.returncode:
        raise SystemExit(f"perdure fit failed: {ran.stderr.strip()}")


def rows() -> list[tuple[str, str]]:
    """Texts to ask, with the label that people gave them."""
    lines = (EXAMPLE / "eval.jsonl").read_text(encoding="utf-8").splitlines()
    return [(row["text"], row["label"]) for row in map(json.loads, lines)]


def environment() -> dict[str, str]:
    """One thread for each process: several on one core would only get in each other's way."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "DO_NOT_TRACK": "1"}


@contextmanager
def started(commands: Sequence[Sequence[str]], folder: Path) -> Iterator[list[subprocess.Popen[str]]]:
    """All of `commands` as processes, ended together; what they say on standard error is in `folder`."""
    processes: list[subprocess.Popen[str]] = []
    try:
        for number, command in enumerate(commands):
            with (folder / f"process-{number}.log").open("w", encoding="utf-8") as log:
                processes.append(
                    subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=log, text=True)
                )
        yield processes
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.stdout is not None:
                process.stdout.close()


def wait_until(done: Callable[[], bool], seconds: float, what: str) -> None:
    """Looks until `done`; SystemExit with `what` when that takes too long."""
    deadline = time.monotonic() + seconds
    while not done():
        if time.monotonic() > deadline:
            raise SystemExit(f"{what} did not happen within {seconds:g} s")
        time.sleep(0.1)
