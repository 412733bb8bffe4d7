"""CLINC150 as ten sessions of fifteen new intents, ten samples a class: the figures in the README.

    python benchmarks/backtest_clinc.py [--data ../shared/data/clinc150] [--seed 0] [--out var/bench]

Runs `perdure backtest` on the test rows and writes benchmarks/results/backtest_clinc.json; `parts` in it says what the
head alone, each session's LoRA candidate, and the first version left as it was would have reached. A run that was
interrupted goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULT = Path(__file__).parent / "results" / "backtest_clinc.json"
MEMORY_PER_CLASS = 10

VECTORS = ("avx512_vnni", "avx512f", "avx_vnni", "avx2")
"""Instructions of a processor, as Linux calls them, the most capable first."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, default=Path(os.environ.get("PERDURE_DATA", "../shared/data")) / "clinc150"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("var/bench"))
    parser.add_argument("--eval", default="test.jsonl", help="tune on val.jsonl, report test.jsonl")
    options = parser.parse_args()
    if not (options.data / options.eval).is_file():
        parser.error(
            f"no {options.eval} in {options.data}: give --data, or set PERDURE_DATA to the folder above clinc150"
        )
    metrics = run(options)
    result = {"setup": setup(options), "metrics": metrics}
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"acc {metrics['acc']:.4f}  aaa {metrics['aaa']:.4f}  forgetting {metrics['forgetting']:.4f}")
    print(f"written to {RESULT}")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """The backtest; its metrics, without what is long and says nothing here."""
    out = options.out / f"perdure-{Path(options.eval).stem}-{options.seed}"
    command = [sys.executable, "-c", "from perdure.cli import main; main()", "backtest"]
    command += ["--stream", str(options.data / "stream_10x15.jsonl"), "--eval", str(options.data / options.eval)]
    command += ["--out", str(out), "--memory-per-class", str(MEMORY_PER_CLASS), "--seed", str(options.seed)]
    ended = subprocess.run(command, check=False)
    if ended.returncode:
        # It has said why.
        sys.exit(ended.returncode)
    metrics: dict[str, Any] = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    metrics["candidates"] = [
        {key: fate[key] for key in ("version", "kind", "outcome", "sentence", "seconds", "cpu_seconds")}
        for session in metrics["sessions"]
        for fate in session["turn"]["candidates"]
    ]
    for session in metrics["sessions"]:
        del session["turn"]
    return metrics


def setup(options: argparse.Namespace) -> dict[str, Any]:
    """What the figures were taken with."""
    return {
        "command": "python benchmarks/backtest_clinc.py" + (f" --seed {options.seed}" if options.seed else ""),
        "evaluation": options.eval,
        "cores": os.cpu_count(),
        "processor": processor(),
        "python": platform.python_version(),
        "commit": commit(),
        **{name: version(name) for name in ("perdure", "torch", "transformers", "peft", "faiss-cpu", "numpy")},
    }


def processor() -> str:
    """The processor's name and its most capable instructions: some of one name differ by half in speed."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    name, flags = facts.get("model name", platform.machine()), facts.get("flags", "").split()
    best = next((flag for flag in VECTORS if flag in flags), None)
    return name if best is None else f"{name}, {best.upper()}"


def commit() -> str | None:
    """The commit that the working tree stands on, with `-dirty` where it was changed since; None without git."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


if __name__ == "__main__":
    main()
