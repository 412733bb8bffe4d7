"""Continual learning: what keeps what it learned, on the same encoder, the same data and the same budget.

    python benchmarks/continual.py [--data ../shared/data/clinc150] [--orders 10x15 10x15s 15x10s] [--seeds 0 1 2]
        [--contestants er perdure …] [--memory 10] [--eval test|val] [--quick] [--out var/bench/continual]

Runs each contestant on each order and seed, and writes benchmarks/results/continual.json and continual.svg. Each run is
a file under --out, written when it is done: what was interrupted goes on there. A run that the result already has, with
the same data, recipe and code, is not run again, and the others that it has stay in it; so it can be made in parts.
--again NAME … runs those contestants anew; --table runs nothing, and writes what there is once more. `--quick` takes
one order and seed, the frozen contestants on all rows and three LoRA ones on few; it writes to --out, and ends in 10
minutes on two cores.

Seconds compare on one processor alone, and only where it computes in bfloat16 itself: the LoRA contestants train in it,
and one that can only imitate it (with AVX2, say) takes them longer, where Perdure then takes float32.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields, replace
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

import contestants
import perdure
import perdure_replay
from backtest_clinc import commit, processor
from contestants.backbone import Backbone
from contestants.base import Context, Order
from contestants.child import Task
from contestants.committed import Committed, note, noted
from contestants.contest import Given, Outcome, Run, Unavailable, contend, finished, read_run, whole, write_run
from contestants.entrants import ENTRANTS, Entrant
from contestants.features import FrozenFeatures
from contestants.figures import SessionFigures
from contestants.orders import ORDERS, STREAM, load_order, reduced
from contestants.plot import draw
from contestants.recipe import Recipe
from contestants.results import curves, lines, results, table
from perdure.dataset import file_digest
from perdure.errors import UsageError

RESULTS = Path(__file__).parent / "results"
RESULT = "continual.json"
HEADLINE_MEMORY = 10
QUICK = ("ncm", "slda", "knn", "ridge", "naive_lora", "er", "er_ewc")
PRESENTATION = frozenset({"committed.py", "comparison.py", "plot.py", "results.py"})
"""Modules of `contestants` that show figures, and do not make them."""
QUICK_STREAM, QUICK_EVALUATION = 20, 10
"""Rows of a class for what trains the encoder, where it is to be quick."""


def main(arguments: Sequence[str] | None = None) -> None:
    options = parsed(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(options.threads)
    committed = Committed(options.results / RESULT)
    try:
        runs = contest(options, committed)
    except UsageError as error:
        sys.exit(f"continual.py: {error}")
    file = write(runs, committed, options)
    print("\n".join(lines(table(runs))))
    print(f"written to {file}")


def write(runs: Sequence[Run], committed: Committed, options: argparse.Namespace) -> Path:
    """Writes the result and its picture; the result's place."""
    about = setup(options)
    now = taken(options)
    # A part that is run with another memory does not become the headline.
    kept = {run.given.memory for run in runs}
    memory = HEADLINE_MEMORY if HEADLINE_MEMORY in kept else options.memory[0]
    found = results(
        runs,
        setup=about,
        about={run.given.contestant: ENTRANTS[run.given.contestant].about for run in runs},
        memory=memory,
        ceilings=[name for name, entrant in ENTRANTS.items() if entrant.keeps_all],
        taken=lambda run: committed.taken(run) or noted(run, options.out) or now,
    )
    options.results.mkdir(parents=True, exist_ok=True)
    file: Path = options.results / RESULT
    file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    orders = dict.fromkeys(run.given.order for run in runs)
    panels = {order: curves(runs, order, memory) for order in orders}
    draw(panels, file.with_suffix(".svg"), title=f"{options.eval} rows, at most {memory} samples kept of a class")
    return file


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, default=Path(os.environ.get("PERDURE_DATA", "../shared/data")) / "clinc150"
    )
    parser.add_argument("--orders", nargs="+", choices=list(ORDERS), default=list(ORDERS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--contestants", nargs="+", choices=list(ENTRANTS), default=list(ENTRANTS))
    parser.add_argument("--memory", nargs="+", type=int, default=[HEADLINE_MEMORY], help="samples kept of a class")
    parser.add_argument("--eval", choices=["val", "test"], default="test", help="tune on val, report test")
    parser.add_argument("--again", nargs="+", choices=list(ENTRANTS), default=[], help="run these anew")
    parser.add_argument("--table", action="store_true", help="run nothing; write what is finished anew")
    parser.add_argument("--joint", choices=["every", "last"], default="every", help="when the ceilings are trained")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--model", default="all-MiniLM-L6-v2")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--recipe", action="append", default=[], metavar="NAME=VALUE", help="for tuning on val")
    parser.add_argument("--out", type=Path, default=Path("var/bench/continual"))
    parser.add_argument("--results", type=Path, help="where the JSON and the plot go")
    options = parser.parse_args(arguments)
    for name in (STREAM, f"{options.eval}.jsonl"):
        if not (options.data / name).is_file():
            parser.error(f"no {name} in {options.data}: give --data, or set PERDURE_DATA to the folder above clinc150")
    if min(options.memory) < 1:
        parser.error(f"--memory must be at least 1 sample of a class, got {min(options.memory)}")
    try:
        options.recipe = recipe(options.recipe)
    except UsageError as error:
        parser.error(str(error))
    if options.quick:
        options.orders, options.seeds = options.orders[:1], options.seeds[:1]
        options.contestants = [name for name in options.contestants if name in QUICK]
        options.out = options.out / "quick"
        if not options.contestants:
            parser.error(f"--quick has only {', '.join(QUICK)}: leave --contestants out, or name one of them")
    # Only the figures in full, on the rows to report, belong beside the README.
    reportable = not options.quick and options.eval == "test"
    options.results = options.results or (RESULTS if reportable else options.out)
    return options


def recipe(changes: Sequence[str]) -> Recipe:
    """The recipe with `NAME=VALUE` changes.

    Raises:
        UsageError: there is no such part, or the value is no number.
    """
    kinds = {one.name: type(getattr(Recipe(), one.name)) for one in fields(Recipe)}
    changed = {}
    for change in changes:
        name, _, value = change.partition("=")
        if name not in kinds:
            raise UsageError(f"--recipe has no {name!r}: choose among {', '.join(kinds)}")
        try:
            changed[name] = kinds[name](value)
        except ValueError as error:
            raise UsageError(f"--recipe {name} needs a number ({kinds[name].__name__}), got {value!r}") from error
    return replace(Recipe(), **changed)


def contest(options: argparse.Namespace, committed: Committed) -> list[Run]:
    """All runs asked for, read where they are done, and the others that the result has and that still hold.

    Perdure's hold whatever became of its code since: each says of which commit it is, and `--again` runs them anew.
    """
    backbone = Backbone(options.model)
    frozen = {
        all_layers: FrozenFeatures(backbone, options.out / "features", all_layers=all_layers)
        for all_layers in (False, True)
    }
    data = {name: file_digest(options.data / name) for name in (STREAM, f"{options.eval}.jsonl")}
    runs: dict[str, Run] = {}
    for run in committed.runs:
        if still_holds(run, options, data):
            runs[run.given.name] = run
    for memory in [] if options.table else options.memory:
        for order_name in options.orders:
            for seed in options.seeds:
                order = load_order(order_name, seed, options.data, options.eval)
                for name in options.contestants:
                    given = Given(name, order_name, seed, memory, options.eval, settings(name, options, data))
                    if given.name in runs and name not in options.again:
                        continue
                    done = None if name in options.again else read_run(given, options.out)
                    if done is None:
                        # Before it runs: whoever commits meanwhile does not change what it is a run of.
                        now = taken(options)
                        features = frozen[ENTRANTS[name].all_layers]
                        done = take(given, shaped(order, name, options), backbone, features, options)
                        note(done, options.out, now)
                        write_run(done, options.out)
                    runs[given.name] = done
    return list(runs.values())


def still_holds(run: Run, options: argparse.Namespace, data: dict[str, str]) -> bool:
    """Whether a committed run is what would be run now; Perdure's code, and when ceilings are trained, may differ."""
    given = run.given
    if given.contestant not in ENTRANTS or given.evaluation != options.eval:
        return False
    now = json.loads(json.dumps(settings(given.contestant, options, data)))
    loose = {"joint"} | ({"code"} if given.contestant == "perdure" else set())
    return all(given.settings.get(part) == now.get(part) for part in (now.keys() | given.settings.keys()) - loose)


def settings(name: str, options: argparse.Namespace, data: dict[str, str]) -> dict[str, Any]:
    """What the figures of a contestant depend on beside its name, order, seed, memory and evaluation rows."""
    entrant = ENTRANTS[name]
    parts = {part: getattr(options.recipe, part) for part in entrant.uses}
    found: dict[str, Any] = {"recipe": parts, "data": data, "model": options.model}
    if options.quick and entrant.trains:
        found["reduced"] = {"rows_per_class": QUICK_STREAM, "evaluation_rows_per_class": QUICK_EVALUATION}
    if entrant.keeps_all:
        found["joint"] = options.joint
    found["code"] = code_digest(perdure, perdure_replay) if name == "perdure" else code_digest(contestants)
    return found


def shaped(order: Order, name: str, options: argparse.Namespace) -> Order:
    """The order as this contestant gets it."""
    entrant = ENTRANTS[name]
    if options.quick and entrant.trains:
        return reduced(order, stream=QUICK_STREAM, evaluation=QUICK_EVALUATION)
    return whole(order) if entrant.keeps_all and options.joint == "last" else order


def take(given: Given, order: Order, backbone: Backbone, features: FrozenFeatures, options: argparse.Namespace) -> Run:
    """One run, from its beginning."""

    def told(one: SessionFigures) -> None:
        print(f"{given.name}  session {one.session}: {one.acc_seen:.4f}, {one.cpu_seconds:.1f} CPU-s", flush=True)

    entrant = ENTRANTS[given.contestant]
    try:
        if entrant.start is not None:
            outcome = entrant.start(task(given, order, options))
        else:
            outcome = within(entrant, given, order, backbone, features, options, told)
    except Unavailable as error:
        print(f"{given.name}  not to be had: {error}", flush=True)
        return Run(given, None, missing=str(error))
    run = finished(given, outcome)
    print(f"{given.name}  acc {outcome.figures().acc:.4f}", flush=True)
    return run


def within(
    entrant: Entrant,
    given: Given,
    order: Order,
    backbone: Backbone,
    features: FrozenFeatures,
    options: argparse.Namespace,
    told: Callable[[SessionFigures], None],
) -> Outcome:
    """A contestant that runs in this process."""
    assert entrant.make is not None
    if not entrant.trains:
        features.prepare(text for session in order.sessions for text in session.rows.texts)
        features.prepare(text for rows in order.evaluation for text in rows.texts)
    contestant = entrant.make(Context(backbone, features, given.memory, given.seed, options.recipe))
    return contend(contestant, order, features, memory=None if entrant.keeps_all else given.memory, told=told)


def task(given: Given, order: Order, options: argparse.Namespace) -> Task:
    digest = hashlib.blake2b(json.dumps(asdict(given)).encode(), digest_size=4).hexdigest()
    return Task(
        order=order,
        memory=given.memory,
        seed=given.seed,
        model=options.model,
        threads=options.threads,
        recipe=options.recipe,
        folder=options.out / "work" / f"{given.name}-{digest}",
        environments=options.out.parent,
    )


def code_digest(*packages: ModuleType) -> str:
    """Hash of what makes figures in the packages: figures of another state of it are not its figures."""
    digest = hashlib.blake2b(digest_size=8)
    for package in packages:
        for path in sorted(Path(str(package.__file__)).parent.rglob("*.py")):
            if package is not contestants or path.name not in PRESENTATION:
                digest.update(path.read_bytes())
    return digest.hexdigest()


def command(options: argparse.Namespace) -> str:
    """What makes these figures again, but for places."""
    if options.quick:
        return "python benchmarks/continual.py --quick"
    given = {
        "orders": options.orders,
        "seeds": options.seeds,
        "contestants": options.contestants,
        "memory": options.memory,
        "eval": [options.eval],
        "joint": [options.joint],
        "threads": [options.threads],
    }
    said = (f"--{name} {' '.join(map(str, values))}" for name, values in given.items())
    return " ".join(["python benchmarks/continual.py", *said])


def taken(options: argparse.Namespace) -> dict[str, Any]:
    """What a run of now is taken with."""
    return {
        "commit": commit(),
        "threads": options.threads,
        "processor": processor(),
        "command": command(options),
    }


def setup(options: argparse.Namespace) -> dict[str, Any]:
    """What the figures were taken with."""
    return {
        "command": command(options),
        "quick": options.quick,
        "evaluation": f"{options.eval}.jsonl",
        "model": options.model,
        "threads": options.threads,
        "cores": os.cpu_count(),
        "processor": processor(),
        "python": platform.python_version(),
        "commit": commit(),
        "recipe": asdict(options.recipe),
        **{name: version(name) for name in ("perdure", "torch", "transformers", "peft", "numpy", "scipy")},
    }


if __name__ == "__main__":
    main()
