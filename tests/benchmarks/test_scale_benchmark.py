"""The benchmark of replicas and ingesters: its arithmetic, its document, and how it weighs processes."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import scale
from scaling.capacity import DAY, Assumed, Costs, limits, plan, power_of_two, tables
from scaling.cost import cpu_seconds, memory_bytes
from scaling.plot import draw

COSTS = Costs(
    request_ms=3.0,
    broker_ms=0.1,
    record_ms=0.1,
    per_second=10_000.0,
    label_ms=10.0,
    replica_mb=200.0,
    ingester_mb=600.0,
    statistics_mb=268.0,
    snapshot_mb=32.0,
    turn_cpu_s=100.0,
    record_bytes=2000.0,
)
EVEN = Assumed(utilisation=0.5, feedback=0.1, feedback_bytes=0.0, replication=3, price=0.1)


def result() -> dict[str, Any]:
    serving = {
        "rps": 400.0, "p99_ms": 50.0, "light_rps": 160.0, "light_p50_ms": 5.0, "light_p99_ms": 12.0, "failures": 0,
        "cpu_ms": 2.5, "light_cpu_ms": 3.0, "broker_cpu_ms": 0.1, "load_cpu_ms": 0.1, "memory_mb": 200.0,
    }  # fmt: skip
    ingest = {
        "records": 100, "seconds": 1.0, "per_second": 10_000.0, "cpu_ms": 0.1, "broker_cpu_ms": 0.01,
        "memory_mb": 600.0, "snapshot_mb": 32.0,
    }  # fmt: skip
    return {
        "setup": {"cores": 2},
        "record_bytes": 2000.0,
        "serving": [{"replicas": count, **serving} for count in (1, 2)],
        "ingest": [{"ingesters": count, **ingest} for count in (1, 2)],
        "labels": {"encode_ms": 4.0, "sums_ms": 6.0, "statistics_mb": 268.0, "save_cpu_s": 1.0},
    }


BACKTEST = {"metrics": {"sessions": [{"cpu_seconds": 50.0}, {"cpu_seconds": 150.0}]}}


def test_a_plan_is_the_arithmetic_that_it_shows() -> None:
    found = plan("x", peak=10_000.0, mean=5_000.0, costs=COSTS, assumed=EVEN, snapshot_seconds=100, statistics_mb=268.0)
    assert found.records == pytest.approx(11_000)
    assert found.serving_cores == 60  # 10,000/s × 3 ms ÷ 0.5
    assert found.replicas == 15
    # 11,000 ÷ 5,000 = 2.2, but 1.1 cores of records + 10 of labels, half in use, want 23 ingesters.
    assert (found.ingesters, found.partitions) == (23, 32)
    assert found.label_cores == pytest.approx(10.0)
    assert found.broker_in == pytest.approx(20.0)  # 2,000 bytes × 10,000
    assert found.broker_disk == pytest.approx(60.0)
    assert found.retained == pytest.approx(5_000 * 2_000 * DAY * 7 * 3 / 1e9)
    assert found.polls == 30
    assert found.snapshots == pytest.approx(32 * 300 / 100)
    assert found.assembly == pytest.approx(32 * 0.3)
    cores = 15 * 4 + 23 + 11_000 * 0.1 / 1000 * 3 + 2
    assert found.core_hours == pytest.approx(24 * cores)
    assert found.cost == pytest.approx(2.4 * cores)
    dearer = plan(
        "x", peak=10_000.0, mean=5_000.0, costs=replace(COSTS, request_ms=6.0), assumed=EVEN, snapshot_seconds=100,
        statistics_mb=268.0,
    )  # fmt: skip
    assert dearer.serving_cores == 120


@pytest.mark.parametrize(("least", "power"), [(0.2, 1), (1, 1), (1.01, 2), (8, 8), (9, 16)])
def test_partitions_divide_evenly(least: float, power: int) -> None:
    assert power_of_two(least) == power


def test_units_come_from_the_results() -> None:
    assert Costs.of(result(), BACKTEST) == COSTS
    made = tables(result(), BACKTEST)
    assert "| a request, in serving | 3.00 ms of CPU |" in made
    assert "1,157" not in made
    assert "| requests a second at the peak |  | 34,722 | 100,000 |" in made
    other = result()
    other["serving"][0]["light_cpu_ms"] = 9.0
    assert tables(other, BACKTEST) != made
    assert "PB" in limits(COSTS, EVEN, *(_plan(peak) for peak in (1e4, 1e5)))


def _plan(peak: float) -> Any:
    return plan("x", peak=peak, mean=peak, costs=COSTS, assumed=EVEN, snapshot_seconds=60, statistics_mb=1.0)


def test_the_document_says_what_the_results_say() -> None:
    if not (scale.RESULTS / "scale.json").is_file():
        pytest.skip("benchmarks/results/scale.json is not there: python benchmarks/scale.py makes it")
    text = scale.DOCUMENT.read_text(encoding="utf-8")
    assert scale.documented(text) == text, "run python benchmarks/scale.py --document"


def test_only_the_tables_of_the_document_are_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "scale.json").write_text(json.dumps(result()), encoding="utf-8")
    (tmp_path / "backtest_clinc.json").write_text(json.dumps(BACKTEST), encoding="utf-8")
    monkeypatch.setattr(scale, "RESULTS", tmp_path)
    once = scale.documented(f"before\n{scale.BEGIN}\nold\n{scale.END}\nafter\n")
    assert once.startswith(f"before\n{scale.BEGIN}\n\n## What a unit costs")
    assert once.endswith(f"{scale.END}\nafter\n")
    assert "old" not in once
    assert scale.documented(once) == once
    text = scale.DOCUMENT.read_text(encoding="utf-8")
    assert text.count(scale.BEGIN) == text.count(scale.END) == 1


def test_the_picture_is_the_same_for_the_same_figures(tmp_path: Path) -> None:
    draw(result(), tmp_path / "a.svg")
    draw(result(), tmp_path / "b.svg")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert "requests a second" in (tmp_path / "a.svg").read_text(encoding="utf-8")


def test_a_process_is_charged_for_what_it_and_its_children_use() -> None:
    work = "import time\nend = time.process_time() + 0.3\nwhile time.process_time() < end: pass\n"
    busy = work + "print('used', flush=True)\ninput()"
    nested = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {busy!r}])"
    with subprocess.Popen(
        [sys.executable, "-c", nested], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "used\n"
        assert 0.3 <= cpu_seconds([process.pid]) < 3
        assert memory_bytes([process.pid]) > 5e6
        process.communicate("\n")
    assert cpu_seconds([process.pid]) == 0.0
