"""Serving replicas and ingesters, 1 to 4 of each, and what a request and a record cost.

    python benchmarks/scale.py [--quick] [--counts 1,2,3,4] [--broker HOST:PORT]   measures; results/scale.json, .svg
    python benchmarks/scale.py --document                                          the tables of deploy/SCALING.md

serving  `perdure serve` as 1..4 processes that record in Kafka, each asked by a load process of its own in a closed
         loop, and once more at 40 % of what that reached; CPU time of the processes, the broker and the load apart
ingest   `perdure ingest` as 1..4 processes on one topic of four partitions: a backlog of what serving records
labels   what a labelled row costs beyond that: a pass of the encoder, and its place in the head's sums

Replicas, load, ingesters and a broker of one node share this machine's cores. So throughput ends at the cores, not at
the number of processes, and a second replica on two busy cores shows what is shared, not what is gained. What carries
over to other machines is CPU time a unit; that it stays the same from one process to four says that nothing is waited
for in common.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from backtest_clinc import processor
from scaling import ingesters, replicas
from scaling.capacity import tables
from scaling.place import Place, environment, fit, opened
from scaling.plot import draw

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
DOCUMENT = ROOT / "deploy" / "SCALING.md"
BEGIN = "<!-- made by `python benchmarks/scale.py --document` -->"
END = "<!-- made until here -->"
TOPIC = "scale-ingest"
SECONDS, QUICK_SECONDS = 30.0, 3.0
RECORDS, QUICK_RECORDS = 400_000, 20_000
LABELLED, QUICK_LABELLED = 400, 32
QUICK_FEATURES = 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a minute or two, to see that it works; var/bench")
    parser.add_argument("--counts", default="1,2,3,4", help="processes of each kind, such as 1,2")
    parser.add_argument("--part", choices=["serving", "ingest", "labels"], action="append")
    parser.add_argument("--broker", help="HOST:PORT of one that is there already; its CPU time is then not told")
    parser.add_argument("--folder", type=Path, default=Path("var/bench/scale"))
    parser.add_argument("--out", type=Path, help="the result; by default benchmarks/results/scale.json")
    parser.add_argument("--document", action="store_true", help="only write the tables of deploy/SCALING.md anew")
    options = parser.parse_args()
    if options.document:
        document()
        return
    out = options.out or (options.folder / "scale.json" if options.quick else RESULTS / "scale.json")
    shutil.rmtree(options.folder, ignore_errors=True)
    result: dict[str, Any] = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {}
    result |= measured(options)
    result["setup"] = setup(options)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if {"serving", "ingest"} <= result.keys():
        draw(result, out.with_suffix(".svg"))
    print(f"written to {out}")
    if out == RESULTS / "scale.json" and {"serving", "ingest", "labels"} <= result.keys():
        document()


def document() -> None:
    """Writes the tables of deploy/SCALING.md anew."""
    DOCUMENT.write_text(documented(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"written to {DOCUMENT}")


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """The parts that were asked for."""
    from perdure.config import Settings

    parts = options.part or ["serving", "ingest", "labels"]
    counts = [int(count) for count in options.counts.split(",")]
    seconds, records, labelled = (
        (QUICK_SECONDS, QUICK_RECORDS, QUICK_LABELLED) if options.quick else (SECONDS, RECORDS, LABELLED)
    )
    features = QUICK_FEATURES if options.quick else Settings().model.features
    result: dict[str, Any] = {}
    with opened(options.folder.resolve(), options.broker, features) as place:
        if "serving" in parts:
            fit(place)
            result["serving"] = [told("serving", asdict(replicas.measure(place, count, seconds))) for count in counts]
        if "ingest" in parts:
            size = ingesters.fill(place, TOPIC, records)
            result["record_bytes"] = round(size / records, 1)
            result["ingest"] = [
                told("ingest", asdict(ingesters.measure(place, count, TOPIC, records))) for count in counts
            ]
        if "labels" in parts:
            result["labels"] = told("labels", labels(place, labelled))
    return result


def told(part: str, figures: dict[str, Any]) -> dict[str, Any]:
    """The figures, printed."""
    print(part, json.dumps(figures), flush=True)
    return figures


def labels(place: Place, rows: int) -> dict[str, Any]:
    """In a process of its own, with one thread."""
    command = [sys.executable, "-m", "scaling.labels", str(place.features), str(rows)]
    paths = os.pathsep.join(filter(None, [str(ROOT / "benchmarks"), os.environ.get("PYTHONPATH", "")]))
    env = {**environment(), "PYTHONPATH": paths}
    ran = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=env)
    found: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return found


def documented(text: str) -> str:
    """The document `text` with its tables made anew from the committed results."""
    read = {
        name: json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8")) for name in ("scale", "backtest_clinc")
    }
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{tables(read['scale'], read['backtest_clinc'])}\n\n{END}{after}"


def setup(options: argparse.Namespace) -> dict[str, Any]:
    """What the figures were taken with."""
    return {
        "command": f"python benchmarks/scale.py{' --quick' if options.quick else ''} --counts {options.counts}",
        "cores": os.cpu_count(),
        "processor": processor(),
        "python": platform.python_version(),
        "broker": options.broker or "one node of deploy/kafka on the same cores",
        "connections": replicas.CONNECTIONS,
        "partitions": ingesters.PARTITIONS,
        **{name: version(name) for name in ("perdure", "kafka-python", "onnxruntime", "torch")},
    }


if __name__ == "__main__":
    main()
