"""The alerts: what makes each of them fire, and what does not, by Prometheus' own evaluation."""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

RULES = Path("helm/perdure/rules/perdure.yaml")
SECTIONS = {
    *("Install", "Upgrade", "Back up and restore", "Rotate keys", "Forget a person", "Drift alarm", "Stuck turn"),
    *("Bad promotion", "Disk full", "Records not acknowledged", "Serving not ready", "Consumer lag"),
}
AT = {"serving": 'job="serving",instance="a"', "trainer": 'job="trainer",instance="t"', "in": 'job="in",instance="i"'}

HEALTHY = {
    'perdure_champion_info{job="serving",instance="a",version="v1",promotion="1"}': "1x1500",
    f"perdure_http_requests_in_flight{{{AT['serving']}}}": "0x1500",
}


@dataclass(frozen=True)
class Case:
    """What Prometheus has scraped each minute, and what fires then."""

    name: str
    series: dict[str, str]
    """Beside, or in place of, those of a healthy server; an empty value takes one of them away."""
    minute: int
    fires: tuple[str, ...] = ()
    every: int = 1
    """Minutes between two evaluations: a day of each minute takes its time."""


def serving(name: str, labels: str = "") -> str:
    return f"{name}{{{AT['serving']}{',' if labels else ''}{labels}}}"


def trainer(name: str, labels: str = "") -> str:
    return f"{name}{{{AT['trainer']}{',' if labels else ''}{labels}}}"


def ingester(name: str, labels: str = "") -> str:
    return f"{name}{{{AT['in']}{',' if labels else ''}{labels}}}"


def answered(status: int) -> str:
    return serving("perdure_http_requests_total", f'method="POST",route="/v1/predict",status="{status}"')


def within(seconds: str) -> str:
    return serving("perdure_http_request_duration_seconds_bucket", f'method="POST",route="/v1/predict",le="{seconds}"')


def turns(outcome: str) -> str:
    return trainer("perdure_turns_total", f'outcome="{outcome}"')


CHAMPION = next(iter(HEALTHY))
SECOND = 'perdure_champion_info{job="serving",instance="b",version="v2",promotion="2"}'

CASES = (
    Case("all is well", {}, 60),
    Case("no series at all", dict.fromkeys(HEALTHY, ""), 4),
    Case("no series at all, for long", dict.fromkeys(HEALTHY, ""), 6, ("PerdureNothingServed",)),
    Case("the only server has no version", {CHAMPION: ""}, 20, ("PerdureNothingServed", "PerdureServerWithoutVersion")),
    Case(
        "one of two has no version",
        {'perdure_http_requests_in_flight{job="serving",instance="b"}': "0x60"},
        20,
        ("PerdureServerWithoutVersion",),
    ),
    Case("a server starts", {'perdure_http_requests_in_flight{job="serving",instance="b"}': "0x60"}, 10),
    Case("3 % fail", {answered(200): "0+970x60", answered(503): "0+30x60"}, 20, ("PerdureServingErrors",)),
    Case("1 % fails", {answered(200): "0+990x60", answered(503): "0+10x60"}, 60),
    Case("clients ask wrongly", {answered(200): "0+900x60", answered(422): "0+100x60"}, 60),
    Case("3 % fail for a moment", {answered(200): "0+970x60", answered(503): "0+30x3 90x57"}, 20),
    Case(
        "2 of 100 take longer than a second",
        {within("1.0"): "0+98x60", within("2.5"): "0+100x60", within("+Inf"): "0+100x60"},
        30,
        ("PerdureServingSlow",),
    ),
    Case(
        "1 of 200 takes longer than a second",
        {within("1.0"): "0+995x60", within("2.5"): "0+1000x60", within("+Inf"): "0+1000x60"},
        60,
    ),
    Case(
        "a tenth is refused",
        {answered(200): "0+900x60", answered(429): "0+100x60", serving("perdure_requests_shed_total"): "0+100x60"},
        30,
        ("PerdureRequestsShed",),
    ),
    Case(
        "few are refused",
        {answered(200): "0+990x60", answered(429): "0+10x60", serving("perdure_requests_shed_total"): "0+10x60"},
        60,
    ),
    Case("servers swap", {SECOND: "1x5"}, 12),
    Case("servers do not agree", {SECOND: "1x60"}, 20, ("PerdureVersionsDiffer",)),
    Case(
        "a version cannot be loaded",
        {serving("perdure_load_failures_total"): "0+1x60"},
        30,
        ("PerdureVersionNotLoaded",),
    ),
    Case("a version was loaded at the second try", {serving("perdure_load_failures_total"): "0 1x60"}, 30),
    Case(
        "the registry is away",
        {serving("perdure_registry_failures_total"): "0+60x120"},
        40,
        ("PerdureRegistryUnreachable",),
    ),
    Case("the registry was away", {serving("perdure_registry_failures_total"): "0+60x10 600x120"}, 60),
    Case(
        "a process dies again and again",
        {serving("perdure_process_restarts_total"): "0+1x60"},
        40,
        ("PerdureProcessRestarts",),
    ),
    Case("a process died twice", {serving("perdure_process_restarts_total"): "0 1 2x60"}, 40),
    Case("the file of keys is broken", {serving("perdure_keys_file_failing"): "1x60"}, 15, ("PerdureKeysFileFailing",)),
    Case("the file of keys is being written", {serving("perdure_keys_file_failing"): "1x4 0x60"}, 15),
    Case(
        "files run out",
        {
            serving("process_open_fds"): "900x60",
            serving("process_max_fds"): "1000x60",
            serving("perdure_build_info", 'version="1",python="3"'): "1x60",
        },
        20,
        ("PerdureFilesRunOut",),
    ),
    Case(
        "files of something else run out",
        {'process_open_fds{job="x",instance="x"}': "900x60", 'process_max_fds{job="x",instance="x"}': "1000x60"},
        60,
    ),
    Case(
        "records are dropped",
        {serving("perdure_records_total", 'outcome="dropped"'): "0+5x60"},
        10,
        ("PerdureRecordsDropped",),
    ),
    Case("records are recorded", {serving("perdure_records_total", 'outcome="recorded"'): "0+5x60"}, 30),
    Case("the disk is full", {serving("perdure_records_unsent_seconds"): "0+60x60"}, 10, ("PerdureRecordsNotDurable",)),
    Case("a record waits for a moment", {serving("perdure_records_unsent_seconds"): "2x60"}, 30),
    Case(
        "the broker is away",
        {serving("perdure_spool_oldest_seconds"): "0+60x1500"},
        30,
        ("PerdureRecordsNotAcknowledged",),
    ),
    Case(
        "the broker is away for hours",
        {serving("perdure_spool_oldest_seconds"): "0+60x1500"},
        260,
        ("PerdureRecordsLongNotAcknowledged", "PerdureRecordsNotAcknowledged"),
        every=10,
    ),
    Case("the broker is started again", {serving("perdure_spool_oldest_seconds"): "0+60x8 0x60"}, 30),
    Case("the spool is damaged", {serving("perdure_spool_damaged_segments"): "0 1x60"}, 10, ("PerdureSpoolDamaged",)),
    Case("drift", {trainer("perdure_drift_alarm"): "1x60"}, 40, ("PerdureDriftAlarm",)),
    Case("drift in one turn", {trainer("perdure_drift_alarm"): "1x10 0x60"}, 40),
    Case(
        "a turn does not end",
        {
            trainer("perdure_turn_running"): "1x120",
            trainer("perdure_turn_started_timestamp_seconds"): "60x120",
            trainer("perdure_turn_limit_seconds"): "3600x120",
        },
        80,
        ("PerdureTurnStuck",),
    ),
    Case(
        "a turn takes its time",
        {
            trainer("perdure_turn_running"): "1x120",
            trainer("perdure_turn_started_timestamp_seconds"): "60x120",
            trainer("perdure_turn_limit_seconds"): "3600x120",
        },
        58,
    ),
    Case(
        "no turn runs any more",
        {
            trainer("perdure_turn_running"): "0x300",
            trainer("perdure_turn_started_timestamp_seconds"): "60x300",
            trainer("perdure_turn_limit_seconds"): "3600x300",
        },
        200,
        every=10,
    ),
    Case("every turn fails", {turns("failed"): "0+0.1x120"}, 90, ("PerdureTurnsFail",)),
    Case("one turn in two fails", {turns("failed"): "0+0.1x120", turns("kept"): "0+0.1x120"}, 90),
    Case(
        "no turn for a day",
        {
            trainer("perdure_turn_ended_timestamp_seconds"): "60x1600",
            trainer("perdure_stream_lag_records"): "5x1600",
            CHAMPION: "1x1600",
        },
        1510,
        ("PerdureNoTurn",),
        every=10,
    ),
    Case(
        "no turn for a day, and nothing to read",
        {
            trainer("perdure_turn_ended_timestamp_seconds"): "60x1600",
            trainer("perdure_stream_lag_records"): "0x1600",
            CHAMPION: "1x1600",
        },
        1510,
        every=10,
    ),
    Case("nobody has the lease", {trainer("perdure_trainer_leader"): "0x60"}, 20, ("PerdureNoTrainerLeads",)),
    Case(
        "one has the lease, one waits",
        {trainer("perdure_trainer_leader"): "1x60", 'perdure_trainer_leader{job="trainer",instance="u"}': "0x60"},
        60,
    ),
    Case(
        "two have the lease",
        {trainer("perdure_trainer_leader"): "1x60", 'perdure_trainer_leader{job="trainer",instance="u"}': "1x60"},
        10,
        ("PerdureTwoTrainersLead",),
    ),
    Case(
        "the trainer is far behind, and works",
        {trainer("perdure_stream_lag_records"): "200000x10 _x40 200000x40"},
        70,
        ("PerdureStreamNotRead",),
    ),
    Case("the trainer has fallen behind", {trainer("perdure_stream_lag_records"): "0x20 200000x90"}, 60),
    Case("the trainer catches up", {trainer("perdure_stream_lag_records"): "200000x20 0x90"}, 90),
    Case(
        "ingesters fall behind",
        {ingester("perdure_ingest_lag_records", f'partition="{n}"'): "60000+100x90" for n in range(2)},
        60,
        ("PerdureIngestersBehind",),
    ),
    Case(
        "ingesters catch up",
        {ingester("perdure_ingest_lag_records", f'partition="{n}"'): "90000-100x90" for n in range(2)},
        60,
    ),
    Case(
        "no snapshot is written",
        {
            ingester("perdure_ingest_snapshot_timestamp_seconds"): "60x120",
            ingester("perdure_ingest_partitions"): "2x120",
        },
        60,
        ("PerdureSnapshotsOld",),
    ),
    Case(
        "an ingester without a partition writes none",
        {
            ingester("perdure_ingest_snapshot_timestamp_seconds"): "60x120",
            ingester("perdure_ingest_partitions"): "0x120",
        },
        60,
    ),
    Case(
        "much is in quarantine",
        {trainer("perdure_memory_quarantined"): "200x120", trainer("perdure_memory_samples"): "1000x120"},
        70,
        ("PerdureMuchInQuarantine",),
    ),
    Case(
        "little is in quarantine",
        {trainer("perdure_memory_quarantined"): "200x120", trainer("perdure_memory_samples"): "9000x120"},
        90,
    ),
)


@pytest.fixture(scope="module")
def rules(root: Path) -> list[dict[str, Any]]:
    tree = yaml.safe_load((root / RULES).read_text(encoding="utf-8"))
    assert list(tree) == ["groups"]
    return [rule for group in tree["groups"] for rule in group["rules"]]


def promql_test(case: Case) -> dict[str, Any]:
    scraped = {**HEALTHY, **case.series}
    return {
        "name": case.name,
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in scraped.items() if values],
        "promql_expr_test": [
            {
                "expr": 'count by (alertname) (ALERTS{alertstate="firing"}) * 0',
                "eval_time": f"{case.minute}m",
                "exp_samples": [{"labels": f'{{alertname="{name}"}}', "value": 0} for name in sorted(case.fires)],
            }
        ],
    }


@pytest.mark.parametrize("every", sorted({case.every for case in CASES}))
def test_they_fire_when_they_should_and_not_otherwise(promtool: Path, root: Path, tmp_path: Path, every: int) -> None:
    file = tmp_path / "alerts.json"  # which is YAML too
    tests = [promql_test(case) for case in CASES if case.every == every]
    file.write_text(json.dumps({"rule_files": [str(root / RULES)], "evaluation_interval": f"{every}m", "tests": tests}))
    done = subprocess.run([promtool, "test", "rules", file], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_is_seen_to_fire_and_to_be_quiet(rules: list[dict[str, Any]]) -> None:
    names = [rule["alert"] for rule in rules]
    assert len(names) == len(set(names))
    assert {name for case in CASES for name in case.fires} == set(names)
    assert sum(not case.fires for case in CASES) >= len(names) - 4


def test_each_says_what_happened_and_where_the_remedy_stands(rules: list[dict[str, Any]], root: Path) -> None:
    runbook = root / "deploy" / "RUNBOOK.md"
    headings = (
        set(re.findall(r"^#+ (.+)$", runbook.read_text(encoding="utf-8"), re.M)) if runbook.exists() else SECTIONS
    )
    for rule in rules:
        assert set(rule) == {"alert", "expr", "for", "labels", "annotations"}, rule
        assert rule["alert"].startswith("Perdure")
        assert set(rule["labels"]) == {"severity"}
        assert rule["labels"]["severity"] in ("page", "ticket")
        told = rule["annotations"]
        assert set(told) == {"summary", "description", "runbook"}
        assert not told["summary"].endswith("."), "a title"
        assert told["description"].endswith("."), "sentences"
        place, _, section = told["runbook"].partition(": ")
        assert place == "deploy/RUNBOOK.md"
        assert section in SECTIONS & headings, section


def test_nobody_is_woken_by_a_moment(rules: list[dict[str, Any]]) -> None:
    for rule in rules:
        minutes = (
            int(rule["for"].removesuffix("m")) if rule["for"].endswith("m") else 60 * int(rule["for"].removesuffix("h"))
        )
        assert minutes >= 5, rule["alert"]
    pages = {rule["alert"] for rule in rules if rule["labels"]["severity"] == "page"}
    # What cannot wait: nobody is answered, records are being lost, or nothing will end it.
    assert pages == {
        *("PerdureNothingServed", "PerdureServingErrors", "PerdureRecordsDropped", "PerdureRecordsNotDurable"),
        *("PerdureRecordsLongNotAcknowledged", "PerdureTurnStuck"),
    }


@pytest.mark.parametrize("file", ["helm/perdure/rules/perdure.yaml"])
def test_prometheus_reads_the_rules(promtool: Path, root: Path, file: str) -> None:
    done = subprocess.run(
        [promtool, "check", "rules", root / file], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_reads_its_settings(promtool: Path, root: Path, rules: list[dict[str, Any]], tmp_path: Path) -> None:
    """As compose mounts them."""
    written = (root / "deploy" / "prometheus" / "prometheus.yml").read_text(encoding="utf-8")
    assert "/etc/prometheus/rules/" in written
    file = tmp_path / "prometheus.yml"
    file.write_text(written.replace("/etc/prometheus/rules/", f"{root / RULES.parent}/"), encoding="utf-8")
    done = subprocess.run([promtool, "check", "config", file], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(rules)} rules found" in done.stdout + done.stderr, "it has not found the rules"
