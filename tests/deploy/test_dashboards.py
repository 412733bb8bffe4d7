"""The dashboards: every series and label in them is told by a process, and a person can read each panel."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

FOLDER = Path(__file__).resolve().parents[2] / "helm" / "perdure"
DASHBOARDS = sorted((FOLDER / "dashboards").glob("*.json"))
RULES = FOLDER / "rules" / "perdure.yaml"

SCRAPED = {"job", "instance", "namespace", "process", "le"}
"""Labels that a scrape, several processes, or a histogram add."""

LEARNING = re.compile(r"perdure_(turn|ingest|trainer|memory|drift|stream_lag)")
"""What trainer and ingester tell begins so."""

SERIES = re.compile(r"\b(?:perdure|process|python)_[a-z0-9_]+")
LABELS = re.compile(r"\b(?:by|on) \(([^)]*)\)|[{,]\s*([a-z_]+)\s*(?:=~|!~|!=|=)")

Known = Mapping[str, tuple[str, set[str]]]


@pytest.fixture(scope="module")
def known(root: Path) -> Known:
    """Every series that is told, its type, and its own labels."""
    page = (root / "docs" / "metrics.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| ([\w, ]*) \|", page, re.M)
    found = {name: (kind, set(filter(None, by.split(", ")))) for name, kind, by in rows}
    assert len(found) > 30
    # Two families that several processes add stand in the page's text.
    for name, kind in (("perdure_process_up", "gauge"), ("perdure_process_restarts_total", "counter")):
        assert f"`{name}`" in page
        found[name] = (kind, {"process"})
    return found


def panels(dashboard: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for panel in dashboard["panels"]:
        yield panel
        yield from panel.get("panels", ())


def expressions(dashboard: dict[str, Any]) -> Iterator[str]:
    """As Prometheus gets them: Grafana puts values in the place of its variables."""
    asked = [target["expr"] for panel in panels(dashboard) for target in panel.get("targets", ())]
    asked += [one["expr"] for one in dashboard["annotations"]["list"]]
    for expr in asked:
        put = expr.replace("$__rate_interval", "5m").replace("$job", ".*")
        assert "$" not in put, f"a variable that nobody knows: {expr}"
        yield put


def read(file: Path) -> dict[str, Any]:
    tree: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return tree


def check_series(expr: str, known: Known) -> set[str]:
    """Fails where nobody tells what `expr` asks for; its series."""
    used: set[str] = set()
    for word in SERIES.findall(expr):
        name = next((name for end in ("_bucket", "_sum", "_count") if (name := word.removesuffix(end)) in known), word)
        if re.search(rf"by \([^)]*\b{word}\b", expr):
            continue
        assert name in known, f"nobody tells {word}: {expr}"
        kind = known[name][0]
        assert (kind == "histogram") == (name != word), f"{name} is a {kind}: {expr}"
        # What only grows is looked at by its growth, and what does not is not.
        grown = re.search(rf"\b(?:rate|increase)\({word}\b", expr) is not None
        assert grown == (kind in ("counter", "histogram")), f"{name} is a {kind}: {expr}"
        used.add(name)
    assert used, f"it asks for no series: {expr}"
    labels = {label.strip() for group in LABELS.findall(expr) for part in group if part for label in part.split(",")}
    own: set[str] = set().union(*(known[name][1] for name in used))
    assert labels <= own | SCRAPED, f"no series has {labels - own - SCRAPED}: {expr}"
    return used


def test_there_is_one_of_each_side() -> None:
    assert [file.stem for file in DASHBOARDS] == ["perdure-learning", "perdure-serving"]
    assert len({read(file)["uid"] for file in DASHBOARDS}) == len(DASHBOARDS)
    assert len({read(file)["title"] for file in DASHBOARDS}) == len(DASHBOARDS)


@pytest.mark.parametrize("file", DASHBOARDS, ids=lambda file: file.stem)
def test_every_panel_can_be_read(file: Path) -> None:
    dashboard = read(file)
    assert dashboard["uid"] == file.stem
    assert dashboard["tags"] == ["perdure"]
    assert "id" not in dashboard, "Grafana gives it"
    ids = [panel["id"] for panel in panels(dashboard)]
    assert len(ids) == len(set(ids))
    source, job = dashboard["templating"]["list"]
    assert (source["name"], source["type"], source["query"]) == ("datasource", "datasource", "prometheus")
    assert (job["name"], job["allValue"], job["includeAll"]) == ("job", ".*", True)
    for panel in panels(dashboard):
        assert panel["title"]
        if panel["type"] == "row":
            continue
        assert panel["description"].endswith("."), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["targets"], panel["title"]
        references = [target["refId"] for target in panel["targets"]]
        assert len(references) == len(set(references))
        for asked in (panel, *panel["targets"]):
            assert asked["datasource"] == {"type": "prometheus", "uid": "${datasource}"}, panel["title"]


@pytest.mark.parametrize("file", DASHBOARDS, ids=lambda file: file.stem)
def test_panels_lie_beside_each_other(file: Path) -> None:
    taken: dict[tuple[int, int], str] = {}
    for panel in panels(read(file)):
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24, panel["title"]
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert (x, y) not in taken, f"{panel['title']} lies on {taken[x, y]}"
                taken[x, y] = panel["title"]


@pytest.mark.parametrize("file", DASHBOARDS, ids=lambda file: file.stem)
def test_a_process_tells_every_series_of_a_dashboard(file: Path, known: Known) -> None:
    used = set().union(*(check_series(expr, known) for expr in expressions(read(file))))
    wanted = {name for name in known if name.startswith("perdure_")}
    learning = {name for name in wanted if LEARNING.match(name)}
    assert len(learning) >= 15
    if file.stem == "perdure-serving":
        wanted -= learning
        # Shown elsewhere, or of no use over time.
        wanted -= {"perdure_build_info", "perdure_process_up", "perdure_process_restarts_total"}
        wanted -= {"perdure_keys", "perdure_keys_file_failing", "perdure_spool_damaged_segments"}
        wanted -= {"perdure_grpc_requests_in_flight"}
        assert wanted <= used, sorted(wanted - used)
    else:
        assert learning <= used, sorted(learning - used)


def test_a_process_tells_every_series_of_an_alert(known: Known) -> None:
    for group in yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]:
        for rule in group["rules"]:
            check_series(" ".join(rule["expr"].split()), known)


def test_prometheus_can_compute_every_expression(promtool: Path, tmp_path: Path) -> None:
    asked = sorted({expr for file in DASHBOARDS for expr in expressions(read(file))})
    rules = [{"record": f"asked:{number}", "expr": expr} for number, expr in enumerate(asked)]
    file = tmp_path / "expressions.json"
    file.write_text(json.dumps({"groups": [{"name": "asked", "rules": rules}]}), encoding="utf-8")
    done = subprocess.run([promtool, "check", "rules", file], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(asked)} rules found" in done.stdout


def test_grafana_finds_them_and_prometheus(root: Path) -> None:
    provisioning = root / "deploy" / "grafana" / "provisioning"
    [source] = yaml.safe_load((provisioning / "datasources" / "prometheus.yaml").read_text("utf-8"))["datasources"]
    assert source["type"] == "prometheus"
    assert source["isDefault"] is True
    [provider] = yaml.safe_load((provisioning / "dashboards" / "perdure.yaml").read_text("utf-8"))["providers"]
    services = yaml.safe_load((root / "deploy" / "compose.yaml").read_text("utf-8"))["services"]
    mounted = {mount.split(":")[1]: mount.split(":")[0] for mount in services["grafana"]["volumes"]}
    assert (root / "deploy" / mounted[provider["options"]["path"]]).resolve() == FOLDER / "dashboards"
    assert (root / "deploy" / mounted["/etc/grafana/provisioning"]).resolve() == provisioning
    home = services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert Path(home).parent == Path(provider["options"]["path"])
    assert (FOLDER / "dashboards" / Path(home).name).is_file()
    host, port = source["url"].removeprefix("http://").split(":")
    assert host in services
    assert services[host]["ports"] == [f"127.0.0.1:{port}:{port}"]
