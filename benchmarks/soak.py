"""Half an hour of `perdure serve` at 80 % of what it can do, with swaps all the while: latency, failures, memory.

    python benchmarks/soak.py [--minutes 30] [--quick]     a soak; writes benchmarks/results/soak.json
    python benchmarks/soak.py --swaps 100 [--quick]        swaps, one behind the other; writes .../soak_swaps.json

A real `perdure serve` (all-MiniLM-L6-v2, a version fitted on examples/support_desk and copies of it under other names,
each loaded anew when it is promoted), recording in SQLite. First its capacity: requests answered a second over 32
connections that ask again as soon as they are answered. Then single texts at a fixed share of that, whether earlier
ones are answered or not, each timed from the moment at which it was due, with feedback for every fifth, and another
version promoted every few seconds. The client runs beside, on the same cores, at capacity as in the soak.

Memory is the resident set of the process, read every second. What it was before WARM_UP is left out; the rest is
averaged in BLOCKS, so that neighbours tell little of each other, and a line is fitted. It is "flat" when the whole 95 %
interval of the slope lies below LIMIT of the memory an hour (with --swaps, in 100 swaps), "grows" when it lies above,
and "undecided" when the run was too short to tell.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy import stats

from backtest_clinc import processor
from perdure.client import AsyncClient
from perdure.errors import PerdureError
from perdure.registry import Registry
from perdure.stream import SqliteStream

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
EXAMPLE = ROOT / "examples" / "support_desk"
PERDURE = str(Path(sys.executable).with_name("perdure"))

SHARE = 0.8
"""The rate, as a share of what the API can do."""
CONNECTIONS = 32
CAPACITY_SECONDS = 20.0
SWAP_SECONDS = 5.0
FEEDBACK_EVERY = 5
COPIES = 3
"""Versions that take turns."""
LIGHT_SHARE = 0.1
"""The same beside the swaps of --swaps."""
MINUTE = 60.0
SETTLE_SECONDS = 0.5
ENDLESS = 1e6
"""Seconds."""

WARM_UP = 0.2
"""Share of the run that is left out of the line through memory."""
BLOCKS = 20
CONFIDENCE = 0.95
LIMIT = 0.05

Verdict = Literal["flat", "grows", "undecided"]


@dataclass(frozen=True)
class Line:
    """The line through memory, after warm-up."""

    level_mb: float
    """Mean."""
    growth: float
    """Slope, as a share of the mean in a unit (an hour, or 100 swaps)."""
    low: float
    high: float
    """Ends of the interval of `growth`."""

    @property
    def verdict(self) -> Verdict:
        if self.high < LIMIT:
            return "flat"
        return "grows" if self.low > LIMIT else "undecided"


@dataclass
class Minute:
    """What was asked in one minute."""

    seconds: list[float] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)
    swaps: int = 0

    def figures(self) -> dict[str, Any]:
        times = np.array(self.seconds) * 1000
        shares = {"p50_ms": 50, "p99_ms": 99, "most_ms": 100}
        found = {name: round(float(np.percentile(times, share)), 2) for name, share in shares.items() if len(times)}
        return {"answered": len(times), "failures": dict(self.failures), "swaps": self.swaps, **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0, help="length of the soak (default: %(default)s)")
    parser.add_argument("--swaps", type=int, default=0, help="this many swaps instead, one behind the other")
    parser.add_argument("--share", type=float, default=SHARE, help="of the capacity (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="a minute and a half, or a tenth of the swaps")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of fit and serve")
    parser.add_argument("--out", type=Path, help="where to write to")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        given = [part for one in options.set for part in ("--set", one)]
        names = make_versions(folder, given)
        # Fitting has recorded its rows.
        before = recorded(folder)
        with served(folder, given) as (url, pid):
            run = swapping(options, url, pid, names) if options.swaps else soak(options, url, pid, names)
            result = asyncio.run(run)
        arrived = recorded(folder) - before
    result["records"] |= {"in_the_stream": arrived, "missing": max(result["records"]["recorded"] - arrived, 0)}
    result = {"setup": setup(options), **result}
    out = options.out or RESULTS / ("soak_swaps.json" if options.swaps else "soak.json")
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({name: result[name] for name in ("failures", "records", "memory") if name in result}, indent=1))
    print(f"written to {out}")


def make_versions(folder: Path, given: Sequence[str]) -> tuple[str, ...]:
    """A registry in `folder` with a fitted version, and copies of it; their names."""
    command = [
        PERDURE,
        "fit",
        "--data",
        str(EXAMPLE / "stream.jsonl"),
        "--labels",
        str(EXAMPLE / "labels.json"),
        *given,
    ]
    subprocess.run(command, check=True, cwd=folder, env=environ(folder), stdout=subprocess.DEVNULL)
    registry = Registry(str(folder / "registry"))
    champion = registry.champion()
    assert champion is not None
    card = registry.card(champion.version)
    files = {name: registry.read(card.name, name) for name in card.files}
    copies = tuple(f"{card.name}-{number}" for number in range(1, COPIES))
    for name in copies:
        registry.write(card.model_copy(update={"name": name, "parent": card.name}), files)
    return card.name, *copies


def recorded(folder: Path) -> int:
    """Entries of the stream."""
    with SqliteStream(folder / "stream.db") as stream:
        return sum(stream.end().values())


@contextmanager
def served(folder: Path, given: Sequence[str]) -> Iterator[tuple[str, int]]:
    """URL and process of a `perdure serve` in `folder`."""
    with (folder / "serve.log").open("wb") as log:
        process = subprocess.Popen(
            [PERDURE, "serve", "--port", "0", *given],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            cwd=folder,
            env=environ(folder),
        )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        if " serves version " not in line:
            raise RuntimeError(f"perdure serve said {line!r}: {(folder / 'serve.log').read_text(encoding='utf-8')}")
        yield line.split()[5], process.pid
        if process.poll() is not None:
            raise RuntimeError(f"perdure serve has ended: {(folder / 'serve.log').read_text(encoding='utf-8')}")
    finally:
        process.terminate()
        process.wait(30)
        process.stdout.close()


class Load:
    """Requests, and what came of them."""

    def __init__(self, api: AsyncClient) -> None:
        self._api = api
        lines = (EXAMPLE / "eval.jsonl").read_text(encoding="utf-8").splitlines()
        self._rows = itertools.cycle([(row["text"], row["label"]) for row in map(json.loads, lines)])
        self._asked = 0
        self.minutes: list[Minute] = [Minute()]
        self.recorded = 0
        self.over = False

    @property
    def now(self) -> Minute:
        """The minute that runs."""
        return self.minutes[-1]

    async def ask(self, due: float, minute: Minute) -> None:
        """One prediction, and feedback for some; timed from when it was `due`, in seconds of the loop."""
        text, label = next(self._rows)
        self._asked += 1
        number = self._asked
        try:
            answer = await self._api.predict(text)
        except PerdureError as error:
            minute.failures[type(error).__name__] += 1
            return
        minute.seconds.append(asyncio.get_running_loop().time() - due)
        self.recorded += answer.recorded
        if number % FEEDBACK_EVERY == 0:
            try:
                said = await self._api.feedback(answer.id, label)
            except PerdureError as error:
                minute.failures[f"feedback: {type(error).__name__}"] += 1
            else:
                self.recorded += said.recorded

    async def capacity(self, seconds: float) -> float:
        """Requests answered a second when each connection asks again at once."""
        clock = asyncio.get_running_loop().time
        minute = Minute()
        end = clock() + seconds

        async def work() -> None:
            while clock() < end:
                await self.ask(clock(), minute)

        await asyncio.gather(*(work() for _ in range(CONNECTIONS)))
        return len(minute.seconds) / seconds

    async def at_rate(self, rate: float, seconds: float) -> None:
        """Requests `rate` a second, each when it is due."""
        clock = asyncio.get_running_loop().time
        begin = clock()
        async with asyncio.TaskGroup() as under_way:
            for number in range(int(rate * seconds)):
                if self.over:
                    return
                due = begin + number / rate
                await asyncio.sleep(max(due - clock(), 0.0))
                while (due - begin) // MINUTE >= len(self.minutes):
                    print(json.dumps(self.now.figures()), flush=True)
                    self.minutes.append(Minute())
                under_way.create_task(self.ask(due, self.now))

    async def swap(self, name: str) -> None:
        """Promotes `name`, and waits until it answers."""
        await self._api.promote(name, reason="a soak")
        served = None
        while served != name:
            await asyncio.sleep(0.02)
            try:
                answer = await self._api.predict("where is my order")
            except PerdureError as error:
                self.now.failures[type(error).__name__] += 1
            else:
                self.recorded += answer.recorded
                served = answer.version
        self.now.swaps += 1

    async def keep_swapping(self, names: Sequence[str]) -> None:
        """Promotes the next version every few seconds, as soon as the one before serves."""
        for name in itertools.islice(itertools.cycle(names), 1, None):
            await asyncio.sleep(SWAP_SECONDS)
            if self.over:
                return
            await self.swap(name)

    async def watch(self, pid: int, samples: list[tuple[float, float]]) -> None:
        """Adds (seconds since the start, MB of the process) every second."""
        begin = time.monotonic()
        while not self.over:
            samples.append((time.monotonic() - begin, resident_mb(pid)))
            await asyncio.sleep(1.0)

    def result(self) -> dict[str, Any]:
        failures = sum((minute.failures for minute in self.minutes), Counter[str]())
        return {
            "minutes": [minute.figures() for minute in self.minutes],
            "swaps": sum(minute.swaps for minute in self.minutes),
            "failures": dict(failures),
            "records": {"recorded": self.recorded},
        }


async def soak(options: argparse.Namespace, url: str, pid: int, names: Sequence[str]) -> dict[str, Any]:
    """The soak's figures."""
    seconds = 90.0 if options.quick else options.minutes * MINUTE
    async with AsyncClient(url, tries=1, connections=CONNECTIONS, timeout=30) as api:
        load = Load(api)
        await load.capacity(CAPACITY_SECONDS / 4)
        capacity = await load.capacity(CAPACITY_SECONDS / (4 if options.quick else 1))
        rate = options.share * capacity
        print(f"{capacity:.0f} requests a second at most; the soak has {rate:.0f}", flush=True)
        samples: list[tuple[float, float]] = []
        async with asyncio.TaskGroup() as group:
            group.create_task(load.watch(pid, samples))
            group.create_task(load.keep_swapping(names))
            await load.at_rate(rate, seconds)
            load.over = True
    times, memory = zip(*samples, strict=True)
    line = fit_line(times, memory, per=3600.0)
    return {
        "capacity_per_second": round(capacity, 1),
        "rate_per_second": round(rate, 1),
        **load.result(),
        "memory": {"unit": "an hour", **described(line), "mb_every_10_s": [round(one, 1) for one in memory[::10]]},
    }


async def swapping(options: argparse.Namespace, url: str, pid: int, names: Sequence[str]) -> dict[str, Any]:
    """Memory behind each of the swaps."""
    count = max(options.swaps // 10, 5) if options.quick else options.swaps
    memory = []
    async with AsyncClient(url, tries=1, connections=CONNECTIONS, timeout=30) as api:
        load = Load(api)
        rate = LIGHT_SHARE * await load.capacity(CAPACITY_SECONDS / 4)
        before = resident_mb(pid)
        async with asyncio.TaskGroup() as group:
            group.create_task(load.at_rate(rate, ENDLESS))
            for number in range(count):
                await load.swap(names[(number + 1) % len(names)])
                # The version before is not gone at once.
                await asyncio.sleep(SETTLE_SECONDS)
                memory.append(resident_mb(pid))
            load.over = True
    line = fit_line(range(count), memory, per=100.0)
    return {
        "rate_per_second": round(rate, 1),
        **load.result(),
        "memory": {"unit": "100 swaps", "before_mb": round(before, 1), **described(line), "mb": [*map(round, memory)]},
    }


def resident_mb(pid: int) -> float:
    """The resident set of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGESIZE") / 1e6


def fit_line(places: Sequence[float], memory: Sequence[float], *, per: float) -> Line:
    """The line through memory behind the warm-up, by least squares over means of blocks.

    Args:
        places: where memory was read: seconds, or numbers of swaps.
        memory: MB.
        per: unit of the growth, in those of `places`.
    """
    kept = np.array(places) >= WARM_UP * places[-1]
    blocks = min(BLOCKS, int(kept.sum()))
    x, y = (
        np.array([part.mean() for part in np.array_split(np.array(values, dtype=float)[kept], blocks)])
        for values in (places, memory)
    )
    found = stats.linregress(x, y)
    margin = stats.t.ppf((1 + CONFIDENCE) / 2, blocks - 2) * found.stderr
    level = float(y.mean())
    growth, low, high = (
        float(slope) * per / level for slope in (found.slope, found.slope - margin, found.slope + margin)
    )
    return Line(level, growth, low, high)


def described(line: Line) -> dict[str, Any]:
    return {"limit": LIMIT, "verdict": line.verdict, **{name: round(one, 5) for name, one in asdict(line).items()}}


def environ(folder: Path) -> dict[str, str]:
    """The environment of the processes: settings of this run, and of nobody else."""
    kept = {name: one for name, one in os.environ.items() if not name.startswith("PERDURE_")}
    places = {
        "PERDURE_STREAM__URL": f"sqlite:{folder / 'stream.db'}",
        "PERDURE_REGISTRY__URL": str(folder / "registry"),
        "PERDURE_MEMORY__PATH": str(folder / "memory"),
        "PERDURE_MODEL__THREADS": "1",
        "PERDURE_SERVING__REFRESH_SECONDS": "0.2",
    }
    return {**kept, **places, "HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "PASSIVE"}


def setup(options: argparse.Namespace) -> dict[str, Any]:
    return {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "processor": processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("perdure", "torch", "fastapi", "uvicorn")},
        "minutes": options.minutes,
        "quick": options.quick,
        "share": options.share,
        "connections": CONNECTIONS,
        "seconds_between_swaps": SWAP_SECONDS,
        "settings": options.set,
        "load_average_at_the_end": os.getloadavg(),
        "rule": f"flat: after {WARM_UP:.0%} of the run the {CONFIDENCE:.0%} interval of growth is below {LIMIT:.0%}",
    }


if __name__ == "__main__":
    main()
