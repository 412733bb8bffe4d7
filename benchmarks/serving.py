"""Perdure beside the servers that people try first: requests a second, latency, hot swaps, memory, accuracy.

    python benchmarks/serving.py [--out benchmarks/results/serving.json] [--contestants perdure litserve …]
        [--parts speed swap memory accuracy] [--quick] [--fresh] [--data ../shared/data/clinc150]

Every contestant serves a fine-tuned all-MiniLM-L6-v2 on the same cores, one after the other and in turns, and is asked
the same sentences by a process of its own: in closed loops, and at fixed rates until the highest one is found at which
the 99th percentile of latency stays below 50 ms. Peers run as their documentation advises, each in an environment that
is made here, under --work, from pinned packages; one that cannot be had is listed with the reason. The figures go to
--out, and a picture of them beside it. An hour and a half on two quiet cores; with `--quick` 15 minutes, environments
included. Nothing else should run beside it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.metadata import version as installed
from pathlib import Path
from statistics import median
from typing import Any

import torch

from backtest_clinc import commit, processor
from contestants.contest import Unavailable
from contestants.orders import STREAM
from perdure.dataset import DataRow, read_rows
from servers.accuracy import accuracy
from servers.contest import Ring, merged
from servers.entrants import BARE_LOOP, EXPORT, PERDURE, SERVERS
from servers.environment import environment, requirements
from servers.export import described
from servers.goals import RATE, goals, peers, ratios
from servers.models import Models, made
from servers.plan import FULL, P99_MS, QUICK, Plan
from servers.plot import draw
from servers.sentences import mixed
from servers.swaps import LOAD_SHARE, memory, swaps
from servers.version import settings_served

RESULT = Path(__file__).parent / "results" / "serving.json"
VALIDATION = "val.jsonl"
PARTS = ("speed", "swap", "memory", "accuracy")
CONTESTANTS = (BARE_LOOP, *SERVERS)
LEAST_PEERS = 2
"""LitServe and one more must run."""


def main(arguments: Sequence[str] | None = None) -> None:
    options = parsed(arguments)
    plan: Plan = QUICK if options.quick else FULL
    torch.set_num_threads(options.threads)
    unavailable: dict[str, str] = {}
    install(options, unavailable)
    ring, validation = prepared(options, plan, unavailable)
    rounds: dict[str, list[dict[str, Any]]] = {}
    parts: dict[str, dict[str, Any]] = {"swap": {}, "memory": {}, "accuracy": {}}
    if "speed" in options.parts:
        for number in range(plan.rounds):
            speed(ring, turn(options.contestants, number), number, rounds, unavailable)
            write(options, ring, rounds, parts, unavailable)
    for name, part in parts_of(ring, validation, rounds).items():
        if name in options.parts:
            print(f"{name} …", flush=True)
            try:
                parts[name] = part()
            except Unavailable as reason:
                parts[name] = {"unavailable": str(reason)}
            print(f"{name}: {summary(parts[name])}", flush=True)
    told = write(options, ring, rounds, parts, unavailable)
    show(told)
    print(f"written to {options.out}")
    wanted = [name for name in options.contestants if name in peers(SERVERS)]
    ran = [name for name in peers(told["contestants"]) if RATE in told["contestants"][name]]
    if "speed" in options.parts and "litserve" in wanted and ("litserve" not in ran or len(ran) < LEAST_PEERS):
        sys.exit(f"serving.py: LitServe and one more peer must run, but there is {', '.join(ran) or 'none'}")


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, default=Path(os.environ.get("PERDURE_DATA", "../shared/data")) / "clinc150"
    )
    parser.add_argument("--out", type=Path, help="where the JSON goes, and with .svg the picture")
    parser.add_argument(
        "--contestants", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS), metavar="NAME",
        help=f"only these: {', '.join(CONTESTANTS)}",
    )  # fmt: skip
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="only these")
    parser.add_argument("--quick", action="store_true", help="less of everything; the committed result stays as it is")
    parser.add_argument("--fresh", action="store_true", help="make environments and models again")
    parser.add_argument("--model", default="all-MiniLM-L6-v2")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of every contestant's model")
    parser.add_argument("--arrivals", choices=("even", "poisson"), default="even", help="in open loops")
    parser.add_argument("--work", type=Path, default=Path("var/bench/serving"), help="for all that is made")
    options = parser.parse_args(arguments)
    for name in (STREAM, VALIDATION):
        if not (options.data / name).is_file():
            parser.error(f"no {name} in {options.data}: give --data, or set PERDURE_DATA to the folder above clinc150")
    if options.threads < 1:
        parser.error(f"--threads must be at least 1, got {options.threads}")
    options.work = options.work.resolve()
    if options.out is None:
        whole = not options.quick and set(options.contestants) == set(CONTESTANTS) and set(options.parts) == set(PARTS)
        options.out = RESULT if whole else options.work / RESULT.name
    return options


def install(options: argparse.Namespace, unavailable: dict[str, str]) -> None:
    """Makes the environments before anything is timed."""
    for name in options.contestants:
        server = SERVERS.get(name)
        if server is None or server.requirements is None or "speed" not in options.parts:
            continue
        print(f"environment of {name} …", flush=True)
        try:
            environment(server.requirements, environments(options), fresh=options.fresh, seeing_ours=server.sees_ours)
        except Unavailable as reason:
            unavailable[name] = f"not installed: {reason}"
            print(f"{name}: {unavailable[name]}", flush=True)


def environments(options: argparse.Namespace) -> Path:
    work: Path = options.work
    return work / "envs"


def prepared(options: argparse.Namespace, plan: Plan, unavailable: dict[str, str]) -> tuple[Ring, tuple[DataRow, ...]]:
    """Models, sentences and the answers to them; and the rows of the validation."""
    rows = first_of_each(read_rows(options.data / STREAM), plan.rows_per_label)
    validation = read_rows(options.data / VALIDATION)
    print(f"models from {len(rows):,} rows …", flush=True)
    models = made(options.work, options.model, rows, fresh=options.fresh)
    if models.no_export:
        for name in options.contestants:
            if name == BARE_LOOP or name.endswith(EXPORT):
                unavailable.setdefault(name, f"no export: {models.no_export}")
    texts = tuple(row.text for row in validation)
    short = models.sentences(texts[:: max(1, len(texts) // plan.sentences)][: plan.sentences])
    long = models.sentences(mixed(texts, models.pieces, plan.mixed))
    run = options.work / "run"
    run.mkdir(parents=True, exist_ok=True)
    return Ring(run, environments(options), models, short, long, options.threads, plan, options.arrivals), validation


def first_of_each(rows: Sequence[DataRow], count: int) -> tuple[DataRow, ...]:
    """The first `count` rows of each label."""
    seen: dict[str, int] = {}
    chosen = []
    for row in rows:
        seen[row.label] = seen.get(row.label, 0) + 1
        if seen[row.label] <= count:
            chosen.append(row)
    return tuple(chosen)


def turn(names: Sequence[str], number: int) -> list[str]:
    """The order of one round: each begins with another, so that nobody always has the warm or the cool machine."""
    shift = number * 3 % len(names)
    return [*names[shift:], *names[:shift]]


def speed(
    ring: Ring,
    names: Sequence[str],
    number: int,
    rounds: dict[str, list[dict[str, Any]]],
    unavailable: dict[str, str],
) -> None:
    """Measures each contestant once."""
    for name in names:
        if name in unavailable:
            continue
        print(f"round {number + 1} of {ring.plan.rounds}: {name} …", flush=True)
        try:
            found = ring.bare_loop() if name == BARE_LOOP else ring.measured(SERVERS[name])
        except Unavailable as reason:
            # What it did in earlier rounds would not be comparable with those that did all.
            rounds.pop(name, None)
            unavailable[name] = str(reason)
            print(f"{name}: {reason}", flush=True)
            continue
        rounds.setdefault(name, []).append(found)
        print(f"{name}: {found[RATE]:,.0f} requests/s at p99 <= {P99_MS:g} ms", flush=True)


def parts_of(
    ring: Ring,
    validation: tuple[DataRow, ...],
    rounds: dict[str, list[dict[str, Any]]],
) -> dict[str, Callable[[], dict[str, Any]]]:
    """What is measured of Perdure alone."""
    found = [one[RATE] for one in rounds.get(PERDURE, []) if one[RATE]]
    rate = LOAD_SHARE * median(found) if found else None
    return {
        "swap": lambda: swaps(ring, rate),
        "memory": lambda: memory(ring),
        "accuracy": lambda: accuracy(ring, validation),
    }


def write(
    options: argparse.Namespace,
    ring: Ring,
    rounds: dict[str, list[dict[str, Any]]],
    parts: dict[str, dict[str, Any]],
    unavailable: dict[str, str],
) -> dict[str, Any]:
    """Writes what there is, so that an interruption leaves something; returns it."""
    contestants: dict[str, dict[str, Any]] = {}
    for name in options.contestants:
        if name in rounds:
            contestants[name] = {**headline(rounds[name]), **merged(rounds[name])}
        elif name in unavailable:
            contestants[name] = {"unavailable": unavailable[name]}
        if name in contestants and name in SERVERS:
            contestants[name]["settings"] = dict(SERVERS[name].settings)
    told = {
        "contestants": contestants,
        "ratios": ratios(contestants),
        "goals": [goal.to_json() for goal in goals(contestants, **parts)],
        **{name: part for name, part in parts.items() if part},
        "setup": setup(options, ring.plan, ring.models),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    draw(contestants, options.out.with_suffix(".svg"))
    return told


def headline(rounds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What is looked at first, before all the rest."""
    rates = [one[RATE] for one in rounds]
    found: dict[str, Any] = {RATE: median(rates), "rps_at_p99_50ms_of_rounds": rates}
    if "closed" in rounds[0]:
        found["p50_1_connection_ms"] = median(one["closed"]["1"]["p50_ms"] for one in rounds)
        found["generator_us_per_request"] = median(
            loop["generator_us"] for one in rounds for loop in one["closed"].values()
        )
    return found


def setup(options: argparse.Namespace, plan: Plan, models: Models) -> dict[str, Any]:
    """What the figures were taken with."""
    command = ["python benchmarks/serving.py", *(["--quick"] if options.quick else [])]
    for name, whole in (("contestants", CONTESTANTS), ("parts", PARTS)):
        if list(getattr(options, name)) != list(whole):
            command += [f"--{name}", *getattr(options, name)]
    files = sorted({name for server in SERVERS.values() if (name := server.requirements)})
    return {
        "command": " ".join(command),
        "plan": asdict(plan),
        "threads": options.threads,
        "cores": os.cpu_count(),
        "load_average": [round(value, 2) for value in os.getloadavg()],
        "arrivals": options.arrivals,
        "encoder": options.model,
        "perdure": settings_served(),
        "export": models.no_export or described(models.export),
        "processor": processor(),
        "python": platform.python_version(),
        "commit": commit(),
        "packages": {name: installed(name) for name in ("perdure", "torch", "transformers", "fastapi", "uvicorn")},
        "environments": {name: hashlib.sha256(requirements(name).read_bytes()).hexdigest()[:12] for name in files},
        "notes": [
            "the load comes from one process of its own on the same cores; what it costs them stands beside each "
            "figure as generator_us: microseconds of CPU time for one request",
            "open loops count latency from the moment for which a request was scheduled; a rate is borne where every "
            "request has the status 200 and the 99th percentile is low enough",
            "a share of the answers is looked at: they must name the label that the same model gives in float32",
            "peers serve the encoder as BertForSequenceClassification with a fitted linear map; Perdure serves its own "
            "version, whose head is larger; both read up to 512 tokens",
            "OMP_NUM_THREADS is the number of cores and OMP_WAIT_POLICY is PASSIVE for every contestant: threads that "
            "spin take the cores from the load",
            "each peer has all of its packages in an environment of its own, from a file that pins every one; files "
            "that uv has in its cache are shared on the disk. The peer over our export sees Perdure's packages too",
            "rps_at_p99_50ms of the bare loop are sentences a second in its best batches, tokenising included",
        ],
    }


def summary(part: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in part.items() if not isinstance(value, dict | list))


def show(told: dict[str, Any]) -> None:
    """The table of contestants and the goals."""
    print(f"{'':20}{'requests/s':>12}{'p50 alone':>12}{'p99 at 8':>12}{'p99 at 64':>12}{'MB':>8}")
    for name, found in told["contestants"].items():
        if "unavailable" in found:
            print(f"{name:20}  {found['unavailable'][:100]}")
            continue
        closed = found.get("closed", {})
        tails = [closed.get(count, {}).get("p99_ms", float("nan")) for count in ("8", "64")]
        held = found.get("memory_bytes", 0) / 2**20
        print(
            f"{name:20}{found[RATE]:12,.0f}{found['p50_1_connection_ms']:12.2f}{tails[0]:12.1f}{tails[1]:12.1f}"
            f"{held:8,.0f}"
        )
    for goal in told["goals"]:
        if goal["found"] is not None:
            print(f"{'met' if goal['met'] else 'MISSED':8}{goal['goal']}: {goal['found']:g} (target {goal['target']})")


if __name__ == "__main__":
    # What was started must be stopped, whoever ends this.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    main()
