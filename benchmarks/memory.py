"""The replay memory beside bare FAISS and the buffers of Avalanche and Renate: a million samples, a tenth of them kept.

    python benchmarks/memory.py [--quick] [--only fill|answer] [--memories perdure "faiss flat" …]
                                [--out var/bench/memory]

Fills each memory in a process of its own, then opens it again in fresh ones, in turns, and asks for neighbours; writes
benchmarks/results/memory.json. Half an hour on two busy cores; with `--quick` (50,000 samples) less than two minutes on
free ones, once Avalanche and Renate have their environments, which `uv` makes. A run that was interrupted goes on where
it was.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sqlite3
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

import perdure
from backtest_clinc import processor
from contestants.child import run_child
from contestants.contest import Unavailable
from memories.abilities import ABILITIES
from memories.child import PLACES, Task
from memories.environment import python_of
from memories.workload import DIMENSIONS, LABELS, Size, Workload

RESULT = Path(__file__).parent / "results" / "memory.json"
FULL = Size(offered=1_000_000, per_label=667, queries=501)
QUICK = Size(offered=50_000, per_label=33, queries=101)
ROUNDS = 5
QUICK_ROUNDS = 2
LEFT_OUT_OF_QUICK = ("avalanche balanced", "renate balanced")
"""Most of a quick run would be their libraries' imports."""
LIMIT = 240.0
"""Seconds that a peer may take what is offered; Perdure takes all of it."""
CHOSEN = "perdure"
"""Whose choice bare FAISS is given."""
SECTIONS = ("offers", "answers")

SHOWN = (
    "offers_per_second",
    "disk_bytes_per_sample",
    "process_bytes_per_sample",
    "resume_seconds",
    "query_milliseconds_p99",
    "recall_at_10",
)
LOWER_IS_BETTER = {
    "save_seconds",
    "slowest_page_seconds",
    "process_bytes_per_sample_while_filling",
    "query_milliseconds_median_again",
    "query_milliseconds_p99_again",
    "disk_bytes_per_sample",
    "process_bytes_per_sample",
    "resume_seconds",
    "query_milliseconds_median",
    "query_milliseconds_p99",
}


def main() -> None:
    options = parsed()
    size = QUICK if options.quick else FULL
    out: Path = options.out / ("quick" if options.quick else "full")
    print(f"{size.offered:,} samples of {DIMENSIONS} dimensions, {LABELS} labels, at most {size.kept:,} kept")
    Workload(out / "workload", size)
    failed: dict[str, str] = {}
    if options.only != "answer":
        fill(options.memories, size, out, failed)
    if options.only != "fill":
        answer([name for name in options.memories if finished(out, name, "fill")], size, out, options.rounds)
        result = {"setup": setup(options, size), **results(options.memories, size, out, failed)}
        written = RESULT if not options.quick else out / RESULT.name
        written.parent.mkdir(exist_ok=True)
        written.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        show(result["memories"])
        print(f"written to {written}")


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer samples; the committed result stays as it is")
    parser.add_argument("--only", choices=("fill", "answer"), help="filling bears company, the timing of answers none")
    parser.add_argument("--memories", nargs="+", choices=list(PLACES))
    parser.add_argument("--out", type=Path, default=Path("var/bench/memory"))
    options = parser.parse_args()
    options.rounds = QUICK_ROUNDS if options.quick else ROUNDS
    if options.memories is None:
        options.memories = [name for name in PLACES if not options.quick or name not in LEFT_OUT_OF_QUICK]
    if CHOSEN not in options.memories:
        options.memories.insert(0, CHOSEN)
    options.memories.sort(key=list(PLACES).index)
    return options


def fill(names: list[str], size: Size, out: Path, failed: dict[str, str]) -> None:
    """Fills those that are not filled yet."""
    for name in names:
        if finished(out, name, "fill"):
            continue
        try:
            filled = run("fill", name, size, out)
            if name == CHOSEN:
                run("settle", name, size, out)
        except Unavailable as reason:
            failed[name] = str(reason)
            print(f"{name}: {reason}")
            continue
        (out / f"{slug(name)}-fill.json").write_text(json.dumps(filled), encoding="utf-8")
        print(f"{name}: {filled['offered'] / filled['seconds']:,.0f} offers/s, {filled['kept']:,} kept")


def answer(names: list[str], size: Size, out: Path, rounds: int) -> None:
    """Opens and asks each in turn, several times over; once what finds no neighbours."""
    for number in range(rounds):
        for name in names:
            due = number == 0 or name == CHOSEN or name.startswith("faiss")
            if due and not finished(out, name, f"answer-{number}"):
                answered = run("answer", name, size, out)
                (out / f"{slug(name)}-answer-{number}.json").write_text(json.dumps(answered), encoding="utf-8")


def run(part: str, name: str, size: Size, out: Path) -> dict[str, Any]:
    """One part in a process of its own.

    Raises:
        Unavailable: it cannot be run; with the reason.
    """
    python = python_of(name, out.parent.parent)
    folder = out / slug(name)
    if part == "fill":
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    source = str(out / slug(CHOSEN)) if name.startswith("faiss") and part == "fill" else None
    limit = float("inf") if name.startswith("perdure") else LIMIT
    task = Task(str(out / "workload"), str(folder), size, limit, source)
    said, written = out / "task.json", out / "outcome.json"
    said.write_text(json.dumps(asdict(task)), encoding="utf-8")
    code = Path(perdure.__file__).parents[2]
    places = [Path(__file__).parent, *(code / part for part in ("src", "replay", "services"))]
    run_child(
        [str(python), "-W", "ignore", "-m", "memories.child", part, name, str(said), str(written)],
        {"PYTHONPATH": os.pathsep.join(str(place.resolve()) for place in places), "OMP_NUM_THREADS": "1"},
    )
    found: dict[str, Any] = json.loads(written.read_text(encoding="utf-8")) if part != "settle" else {}
    return found


def slug(name: str) -> str:
    return name.replace(" ", "-")


def finished(out: Path, name: str, part: str) -> bool:
    return (out / f"{slug(name)}-{part}.json").is_file()


def results(names: list[str], size: Size, out: Path, failed: Mapping[str, str]) -> dict[str, Any]:
    """Figures of each, ours over theirs, and what we lose."""
    memories = {name: figures(name, size, out) for name in names if finished(out, name, "fill")}
    ours = memories[CHOSEN]
    ratios = {
        name: {
            key: round(ours[section][key] / value, 4)
            for section in SECTIONS
            for key, value in theirs.get(section, {}).items()
            if isinstance(value, int | float) and value and ours[section].get(key) and key not in ("offered", "kept")
        }
        for name, theirs in memories.items()
        if not name.startswith(CHOSEN)
    }
    worse = [
        f"{key}: {ratio:g} times that of {name}"
        for name, found in ratios.items()
        for key, ratio in found.items()
        if (ratio > 1) == (key in LOWER_IS_BETTER) and ratio != 1
    ]
    return {
        "memories": memories,
        "perdure_over_others": ratios,
        "where_perdure_is_worse": worse,
        "abilities": ABILITIES,
        "unavailable": dict(failed),
    }


def figures(name: str, size: Size, out: Path) -> dict[str, Any]:
    """Medians over the rounds."""
    filled = json.loads((out / f"{slug(name)}-fill.json").read_text(encoding="utf-8"))
    rounds = [
        json.loads((out / f"{slug(name)}-answer-{number}.json").read_text(encoding="utf-8"))
        for number in range(ROUNDS)
        if finished(out, name, f"answer-{number}")
    ]
    kept = filled["kept"]
    held = [one["process_bytes"] for one in rounds]
    answers: dict[str, Any] = {
        "resume_seconds": round(median(one["resume_seconds"] for one in rounds), 3),
        "resume_seconds_of_rounds": [round(one["resume_seconds"], 3) for one in rounds],
        "process_bytes_per_sample": round(median(held) / kept),
    }
    if rounds[0]["milliseconds"]:
        for key, times, share in (
            ("median", "milliseconds", 50),
            ("p99", "milliseconds", 99),
            ("median_again", "milliseconds_again", 50),
            ("p99_again", "milliseconds_again", 99),
        ):
            found = [float(np.percentile(one[times], share)) for one in rounds]
            answers[f"query_milliseconds_{key}"] = round(median(found), 2)
            answers[f"query_milliseconds_{key}_of_rounds"] = [round(one, 2) for one in found]
        answers["recall_at_10"] = round(rounds[0]["recall"], 4)
    return {
        "offers": {
            "offered": filled["offered"],
            "kept": kept,
            "offers_per_second": round(filled["offered"] / filled["seconds"]),
            "offers_per_cpu_second": round(filled["offered"] / filled["cpu_seconds"]),
            "slowest_page_seconds": round(filled["slowest_page_seconds"], 3),
            "rest_seconds": filled["rest_seconds"],
            "save_seconds": round(filled["save_seconds"], 2),
            "process_bytes_per_sample_while_filling": round(filled["process_bytes"] / kept),
            "disk_bytes_per_sample": round(filled["disk_bytes"] / kept),
            **filled["details"],
            "same_rows_twice": filled["twice"],
        },
        "answers": answers,
    }


def setup(options: argparse.Namespace, size: Size) -> dict[str, Any]:
    """What the figures were taken with."""
    return {
        "command": "python benchmarks/memory.py" + (" --quick" if options.quick else ""),
        "size": asdict(size),
        "rounds": options.rounds,
        "threads": 1,
        "seconds_limit_of_peers": LIMIT,
        "cores": os.cpu_count(),
        "processor": processor(),
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        **{name: version(name) for name in ("perdure", "faiss-cpu", "numpy", "torch")},
        "avalanche-lib": "0.6.0",
        "renate": "0.5.2",
        "notes": [
            "perdure takes offers as records, two for each sample, in durable transactions of 1,000; it alone parses, "
            "joins and keeps texts; `perdure reservoir` is its reservoir without records and joining",
            "bare FAISS is given the very vectors that Perdure kept: its offers are additions, it chooses nothing",
            "Avalanche and Renate get vectors and classes as tensors, 10,000 at once, which suits them",
            "resume is from opening to the first neighbours, imports excepted; for Avalanche and Renate to the first "
            "sample, from a pickle of ours, and from Renate's own files",
            "files are in the system's cache when they are opened",
            "queries come one at a time, after the one that ends resuming; `again` asks the same ones once more: the "
            "first time Perdure groups the near-duplicates of each label that it finds, once until memory changes",
            "filling may share its core with other work: offers_per_cpu_second compares better than offers_per_second",
            "process bytes are the process's own; files that it maps do not count",
        ],
    }


def show(memories: Mapping[str, Any]) -> None:
    print(f"{'':20}" + "".join(f"{name.replace('_per_', '/')[:22]:>24}" for name in SHOWN))
    for name, found in memories.items():
        merged = {**found["offers"], **found["answers"]}
        print(f"{name:20}" + "".join(f"{merged.get(column, '-')!s:>24}" for column in SHOWN))


if __name__ == "__main__":
    main()
