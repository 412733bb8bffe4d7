"""One server, started, asked in every way, and stopped."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from contestants.child import run_child
from servers.base import Place, Server
from servers.entrants import APPS, perdure_surroundings
from servers.environment import environment
from servers.figures import LoadFigures
from servers.load import Load
from servers.models import Models
from servers.plan import P99_MS, Plan
from servers.process import Running, free_port, running
from servers.search import highest_rate
from servers.sentences import Sentences

LONGEST_OPEN = 4.0
"""A low rate is asked for at most so many times longer than others."""
MAX_CONNECTIONS = 256
WARM_UP_CONNECTIONS = 16
START_SHARE = 0.8
"""The search begins at this share of what the closed loops reached."""
SUMMED = ("broken", "unanswered", "checked", "right", "requests")


@dataclass(frozen=True, slots=True)
class Ring:
    """Where contestants are measured, and with what."""

    folder: Path
    """For all that is written on the way."""
    environments: Path
    models: Models
    short: Sentences
    long: Sentences
    """Texts of mixed length."""
    threads: int
    plan: Plan
    arrivals: str = "even"

    @contextmanager
    def started(self, server: Server) -> Iterator[Running]:
        """The server, once it answers.

        Raises:
            Unavailable: it cannot be installed or started; with the reason.
        """
        python = Path(sys.executable)
        if server.requirements:
            python = environment(server.requirements, self.environments, seeing_ours=server.sees_ours)
        folder = self.folder / server.name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        port = free_port()
        models = self.models
        place = Place(
            folder, python, port, self.threads, models.transformer, models.export, models.registry, models.two_spaces
        )
        with running(
            server.launch(place),
            port=port,
            folder=folder,
            threads=self.threads,
            path=server.path,
            body=server.body(self.short.texts[0]),
        ) as one:
            yield one

    def load(self, server: Server, port: int, sentences: Sentences, **how: Any) -> Load:
        """What the load generator is told."""
        return Load(
            port=port,
            path=server.path,
            bodies=[server.body(text) for text in sentences.texts],
            marks=[server.mark(label) for label in sentences.labels[server.answers]],
            **{"warm_up": self.plan.warm_up_seconds, **how},
        )

    def ask(self, load: Load) -> LoadFigures:
        """Runs `load` in a process of its own.

        Raises:
            Unavailable: it fails, as when nobody listens any more.
        """
        task, outcome = self.folder / "load.json", self.folder / "figures.json"
        task.write_text(json.dumps(asdict(load)), encoding="utf-8")
        run_child(
            [sys.executable, "-m", "servers.load", str(task), str(outcome)],
            {"PYTHONPATH": str(Path(__file__).parents[1].resolve())},
        )
        return LoadFigures(**json.loads(outcome.read_text(encoding="utf-8")))

    # ── one contestant ──
    def measured(self, server: Server) -> dict[str, Any]:
        """All figures of one server.

        Raises:
            Unavailable: it cannot be measured; with the reason.
        """
        with self.started(server) as one:
            before = one.memory_bytes()
            self.ask(
                self.load(
                    server, one.port, self.short, seconds=2 * self.plan.warm_up_seconds, connections=WARM_UP_CONNECTIONS
                )
            )
            closed = self._closed(server, one.port, self.short, self.plan.closed)
            rate, steps = self._search(server, one.port, self.short, closed)
            mixed: dict[str, Any] = {"closed": self._closed(server, one.port, self.long, self.plan.mixed_closed)}
            if self.plan.mixed_search:
                mixed["rps_at_p99_50ms"], mixed["open"] = self._search(server, one.port, self.long, mixed["closed"])
            return {
                "rps_at_p99_50ms": rate,
                "closed": closed,
                "open": steps,
                "mixed_lengths": mixed,
                "start_seconds": round(one.start_seconds, 1),
                "memory_bytes": before,
                "memory_bytes_after": one.memory_bytes(),
            }

    def _closed(
        self, server: Server, port: int, sentences: Sentences, connections: Sequence[int]
    ) -> dict[str, dict[str, Any]]:
        return {
            str(count): asdict(
                self.ask(
                    self.load(server, port, sentences, seconds=self.plan.closed_seconds, connections=count, seed=count)
                )
            )
            for count in connections
        }

    def _search(
        self, server: Server, port: int, sentences: Sentences, closed: dict[str, dict[str, Any]]
    ) -> tuple[float, list[dict[str, Any]]]:
        """The highest rate whose 99th percentile is low enough, and all rates that were tried."""
        peak = max((found["rps"] for found in closed.values()), default=0.0)
        if peak <= 0:
            return 0.0, []
        steps: list[dict[str, Any]] = []
        load = self.load(server, port, sentences, seconds=1.0, connections=MAX_CONNECTIONS, arrivals=self.arrivals)

        def bears(rate: float) -> bool:
            longest = self.plan.open_seconds * LONGEST_OPEN
            seconds = min(max(self.plan.open_seconds, self.plan.least_requests / rate), longest)
            found = self.ask(replace(load, rate=rate, seconds=seconds, seed=len(steps)))
            kept_up = found.within(P99_MS)
            steps.append({"rate": round(rate, 2), "kept_up": kept_up, **asdict(found)})
            return kept_up

        rate = highest_rate(bears, START_SHARE * peak, step=self.plan.step, confirmed=self.plan.confirmed)
        return round(rate, 2), sorted(steps, key=lambda step: float(step["rate"]))

    # ── the floor ──
    def bare_loop(self) -> dict[str, Any]:
        """Figures of the exported model with no server around it.

        Raises:
            Unavailable: it cannot be run; with the reason.
        """
        task, outcome = self.folder / "bare_loop.json", self.folder / "bare_loop-figures.json"
        found = {}
        for name, sentences in (("short", self.short), ("mixed", self.long)):
            given = {
                "model": str(self.models.export),
                "texts": sentences.texts,
                "seconds": self.plan.bare_seconds,
                "cores": self.threads,
            }
            task.write_text(json.dumps(given), encoding="utf-8")
            run_child([sys.executable, str(APPS / "bare_loop.py"), str(task), str(outcome)], perdure_surroundings())
            found[name] = json.loads(outcome.read_text(encoding="utf-8"))
        return {
            "rps_at_p99_50ms": fastest(found["short"]),
            "p50_1_connection_ms": quickest(found["short"]),
            **found["short"],
            "mixed_lengths": {"sentences_per_second": fastest(found["mixed"]), **found["mixed"]},
        }


def fastest(found: dict[str, Any]) -> float:
    """Most sentences a second, whatever the batch and the threads."""
    return max(float(rate) for ways in found["batched"].values() for rate in ways.values())


def quickest(found: dict[str, Any]) -> float:
    """Least median milliseconds of a call with one text, whatever the threads."""
    return min(float(way["p50_ms"]) for way in found["single"].values())


def merged(rounds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One set of figures from those of several rounds: medians; counts of failures and of checked answers summed.

    Lists, such as the rates that were tried, are put one after another.
    """
    return {key: _merged(key, [one[key] for one in rounds if key in one]) for key in rounds[0]}


def _merged(key: str, values: Sequence[Any]) -> Any:
    first = values[0]
    if isinstance(first, dict):
        if key == "statuses":
            return {name: sum(one.get(name, 0) for one in values) for name in {name for one in values for name in one}}
        return merged(values)
    if isinstance(first, list):
        return [item for one in values for item in one]
    if isinstance(first, bool):
        return any(values)
    if isinstance(first, int | float):
        return sum(values) if key in SUMMED else round(median(values), 3)
    return first
