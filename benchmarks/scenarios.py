"""What a stream may do to Perdure: other orders, wrong labels, late labels, a long history; and what each part adds.

    python benchmarks/scenarios.py [--data ../shared/data/clinc150] [--only noise_20 ablation …] [--eval test|val]
        [--memory-per-class 10] [--seed 0] [--set section.name=value …] [--quick] [--out var/bench/scenarios]

Each scenario is a `perdure backtest` of a stream derived from CLINC150's; beside them, joint LoRA from scratch says
what retraining would cost (from benchmarks/results/continual.json where that has it, else trained here once). Figures,
goals, the ablation and what is missing go into benchmarks/results/scenarios.json where all that is there is of one
state of the code, and else into --out. What is finished is not run again without --fresh; what was interrupted goes on.
`--quick` takes few rows and labels, one repeat and cheaper settings; it ends in 10 minutes on two cores.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import perdure
import perdure_replay
from backtest_clinc import commit, processor
from contestants.base import Order
from contestants.orders import STREAM, load_order
from continual import code_digest
from perdure.dataset import file_digest
from perdure.errors import PerdureError
from scenario.goals import ablation, failing, goals, history_costs
from scenario.plan import (
    ABLATIONS,
    BASE,
    DELAYED,
    FULL,
    NOISY,
    QUICK,
    SHUFFLED,
    SHUFFLED_15,
    TIMES,
    Scenario,
    Size,
    scenarios,
)
from scenario.run import ScenarioFailed, ScenarioRun, kept_run, run
from scenario.scratch import ScratchCost, measured_scratch, read_scratch, scratch_from_file, write_scratch
from scenario.table import lines

RESULTS = Path(__file__).parent / "results"
FROM_SCRATCH = "from_scratch"
GROUPS: Mapping[str, Callable[[str], bool]] = {
    "ablation": lambda name: name in (BASE, *ABLATIONS),
    f"history_x{TIMES}": lambda name: name.startswith("history_"),
    FROM_SCRATCH: lambda name: name == BASE,
}
"""Names for several scenarios at once."""
SINGLE = (BASE, SHUFFLED, SHUFFLED_15, NOISY, DELAYED, *ABLATIONS)


@dataclass(slots=True)
class Found:
    """What is finished, and what is not."""

    runs: dict[str, ScenarioRun] = field(default_factory=dict)
    scratch: ScratchCost | None = None
    missing: dict[str, str] = field(default_factory=dict)
    """Names with the reason."""


def main(arguments: Sequence[str] | None = None) -> None:
    options = parsed(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(options.threads)
    size = QUICK if options.quick else FULL
    try:
        found = taken(options, size)
    except PerdureError as error:
        sys.exit(f"scenarios.py: {error}")
    told = results(found, size, options)
    # Only figures of one code on all rows, with the defaults, on the rows to report, belong beside the README.
    one_code = BASE in found.runs and len({str(run.given["code"]) for run in found.runs.values()}) == 1
    reportable = options.eval == "test" and one_code and not (options.quick or options.set)
    folder = options.results or (RESULTS if reportable else options.folder)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "scenarios.json"
    file.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    verdicts = goals(found.runs, told["history"], found.scratch)
    print("\n".join(lines(found.runs, verdicts, told["ablation"])))
    for name, reason in found.missing.items():
        print(f"missing: {name} ({reason})")
    if options.quick:
        print("quick: few rows and labels, and cheaper settings; the goals are for the whole")
    if failing(verdicts):
        print(f"goals missed: {', '.join(failing(verdicts))}")
    print(f"written to {file}")


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, default=Path(os.environ.get("PERDURE_DATA", "../shared/data")) / "clinc150"
    )
    names = [*SINGLE, *GROUPS]
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", help=f"run these alone: {', '.join(names)}")
    parser.add_argument("--eval", choices=["val", "test"], default="test", help="tune on val, report test")
    parser.add_argument("--memory-per-class", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="of perdure, for all scenarios"
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--fresh", action="store_true", help="run again what is finished")
    parser.add_argument("--model", default="all-MiniLM-L6-v2")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument(
        "--continual", type=Path, default=RESULTS / "continual.json", help="a result of continual.py, for joint LoRA"
    )
    parser.add_argument("--out", type=Path, default=Path("var/bench/scenarios"))
    parser.add_argument("--results", type=Path, help="where the JSON goes")
    parser.add_argument("--note", default="", help="what a reader must know of how it was taken; stands in the setup")
    options = parser.parse_args(arguments)
    for name in (STREAM, f"{options.eval}.jsonl"):
        if not (options.data / name).is_file():
            parser.error(f"no {name} in {options.data}: give --data, or set PERDURE_DATA to the folder above clinc150")
    if options.memory_per_class < 2:
        parser.error(f"--memory-per-class must be at least 2, got {options.memory_per_class}")
    options.folder = options.out / folder_name(options)
    return options


def folder_name(options: argparse.Namespace) -> str:
    """One for each set of data and options: what was found with others is not touched."""
    given = {
        "data": [file_digest(options.data / name) for name in (STREAM, f"{options.eval}.jsonl")],
        "set": options.set,
        "model": options.model,
        "threads": options.threads,
    }
    digest = hashlib.blake2b(json.dumps(given).encode(), digest_size=4).hexdigest()
    quick = "-quick" if options.quick else ""
    return f"{options.eval}-m{options.memory_per_class}-s{options.seed}{quick}-{digest}"


def taken(options: argparse.Namespace, size: Size) -> Found:
    """All scenarios asked for, run where they are not finished, and the others as far as they are."""

    @cache
    def order_of(name: str) -> Order:
        return load_order(name, options.seed, options.data, options.eval)

    found = Found()
    for one in scenarios(order_of, size, options.seed):
        kept = (
            take(one, size, options, found) if wanted(one.name, options.only) else kept_run(options.folder / one.name)
        )
        if kept is not None:
            found.runs[one.name] = kept
        else:
            found.missing.setdefault(one.name, "not run yet")
    found.scratch = scratch(size.of(order_of("10x15")), options)
    if found.scratch is None:
        found.missing[FROM_SCRATCH] = "not run yet"
    return found


def wanted(name: str, only: Sequence[str] | None) -> bool:
    """Whether the scenario is to be run."""
    return only is None or name in only or any(GROUPS[group](name) for group in only if group in GROUPS)


def take(one: Scenario, size: Size, options: argparse.Namespace, found: Found) -> ScenarioRun | None:
    """The scenario's figures; None, and the reason in `found`, where it fails."""
    print(f"{one.name}: {one.about}", flush=True)
    settings = [f"model.name={options.model}", f"model.threads={options.threads}"]
    settings += [*size.settings, *options.set, *one.settings]
    try:
        return run(
            one.make(),
            options.folder / one.name,
            settings,
            memory=options.memory_per_class,
            seed=options.seed,
            code=code_digest(perdure, perdure_replay),
            fresh=options.fresh,
        )
    except ScenarioFailed as error:
        print(f"{one.name}: {error}", flush=True)
        found.missing[one.name] = str(error)
        return None


def scratch(order: Order, options: argparse.Namespace) -> ScratchCost | None:
    """What retraining costs: from continual.py's result, from before, or from one training here if it is asked for."""
    path = options.folder / FROM_SCRATCH / "result.json"
    if not options.quick and (found := scratch_from_file(options.continual, order)):
        return found
    asked = options.only is None or FROM_SCRATCH in options.only
    if not options.fresh or not asked:
        kept = read_scratch(path)
        if kept is not None or not asked:
            return kept
    print(f"{FROM_SCRATCH}: joint LoRA on {sum(len(one.rows) for one in order.sessions)} rows", flush=True)
    cost = measured_scratch(
        order,
        options.model,
        memory=options.memory_per_class,
        seed=options.seed,
        features=options.folder / FROM_SCRATCH / "features",
        setup=setup(options),
    )
    write_scratch(cost, path)
    return cost


def results(found: Found, size: Size, options: argparse.Namespace) -> dict[str, Any]:
    """What the JSON holds. Accuracies are fractions; seconds are seconds; goals have their units beside them."""
    history = history_costs(found.runs, size.repeats)
    return {
        "setup": setup(options),
        "codes": sorted({str(run.given["code"]) for run in found.runs.values()}),
        "goals": [asdict(one) for one in goals(found.runs, history, found.scratch)],
        "missing": found.missing,
        "ablation": ablation(found.runs),
        "history": history,
        FROM_SCRATCH: None if found.scratch is None else asdict(found.scratch),
        "scenarios": {name: _told(run) for name, run in found.runs.items()},
    }


def _told(run: ScenarioRun) -> Mapping[str, Any]:
    given = {name: run.given[name] for name in ("settings", "code")}
    return {**given, "figures": run.figures, "sessions": run.sessions}


def setup(options: argparse.Namespace) -> dict[str, Any]:
    """What the figures were taken with."""
    return {
        "command": "python benchmarks/scenarios.py",
        "note": options.note,
        "quick": options.quick,
        "evaluation": f"{options.eval}.jsonl",
        "memory_per_class": options.memory_per_class,
        "seed": options.seed,
        "set": options.set,
        "model": options.model,
        "threads": options.threads,
        "cores": os.cpu_count(),
        "processor": processor(),
        "python": platform.python_version(),
        "written_at": commit(),
        **{name: version(name) for name in ("perdure", "torch", "transformers", "peft", "faiss-cpu", "numpy")},
    }


if __name__ == "__main__":
    main()
