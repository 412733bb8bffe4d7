"""Install, upgrade, rollback and uninstall by somebody who may write nothing but their namespace, with Helm 3 and 4."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from .namespace import CHART, VALUES, Helm, Namespace, Object, documents, pod_template, said_name

pytestmark = pytest.mark.cluster

CHANGES = {
    "image": {"tag": "9.9.9"},
    "commonLabels": {"team": "search"},
    "config": {"serving": {"max_texts": 7}},
    "serving": {"podAnnotations": {"changed": "yes"}, "resources": {"limits": {"memory": "3Gi"}}},
    "trainer": {"graceSeconds": 77},
}


NOUNS = ("memory", "registry", "stream", "spool")
"""What claims are named for."""


@pytest.fixture(scope="session")
def next_chart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The chart as its next release: nothing that cannot change may carry a version."""
    chart = tmp_path_factory.mktemp("next") / "perdure"
    shutil.copytree(CHART, chart)
    file = chart / "Chart.yaml"
    description = yaml.safe_load(file.read_text(encoding="utf-8"))
    file.write_text(yaml.safe_dump(description | {"version": "99.1.0", "appVersion": "99.2.0"}), encoding="utf-8")
    return chart


@pytest.fixture(scope="session")
def changes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of values over those that a release was installed with."""
    file = tmp_path_factory.mktemp("changes") / "values.yaml"
    file.write_text(yaml.safe_dump(CHANGES), encoding="utf-8")
    return file


@pytest.mark.parametrize("values", VALUES, ids=said_name)
def test_a_release_from_install_to_uninstall(
    helm: Helm, values: Path, namespaces: Callable[[], Namespace], next_chart: Path, changes: Path
) -> None:
    here = namespaces()
    empty = here.names()

    here.helm(helm, "install", "shop", str(CHART), f"--values={values}", "--dry-run=server")
    assert here.names() == empty

    here.install(helm, "shop", values)
    manifest = here.helm(helm, "get", "manifest", "shop")
    first = here.live(manifest)
    assert set(first) == {f"{one['kind']}/{one['metadata']['name']}" for one in documents(manifest)}

    here.helm(helm, "upgrade", "shop", str(next_chart), f"--values={values}", f"--values={changes}")
    upgraded = here.helm(helm, "get", "manifest", "shop")
    second = here.live(upgraded)
    assert set(second) == set(first)
    for name, one in second.items():
        assert one["metadata"]["labels"]["team"] == "search", name
        if (template := pod_template(one)) is not None and one["apiVersion"] in {"apps/v1", "batch/v1"}:
            assert {container["image"].rsplit(":")[-1] for container in template["spec"]["containers"]} == {"9.9.9"}

    here.helm(helm, "rollback", "shop", "1")
    assert here.live(manifest) == first

    here.helm(helm, "upgrade", "shop", str(next_chart), f"--values={values}", f"--values={changes}")
    assert here.live(upgraded) == second

    notes = here.helm(helm, "get", "notes", "shop")
    staying = kept(first)
    here.helm(helm, "uninstall", "shop")
    here.server.until(lambda: here.made("shop") <= staying, "uninstall leaves what it was told to, and claims")
    here.server.until(lambda: not here.get("pods,replicasets.apps"), "no pod is left")
    claims = {one["metadata"]["name"] for one in here.get("persistentvolumeclaims")}
    assert {f"PersistentVolumeClaim/{name}" for name in claims} >= {name for name in staying if "VolumeClaim" in name}
    # Whoever uninstalls knew beforehand what stays, and of nothing else that it does.
    said = " ".join(re.findall(r"`helm uninstall`[^;]*", notes))
    assert {noun for noun in NOUNS if noun in said} == {noun for noun in NOUNS if any(noun in name for name in claims)}

    # Whoever installs again finds what stayed; Helm 3 leaves later labels on it.
    here.install(helm, "shop", values)
    again = here.live(manifest)
    assert {name: one.get("spec") for name, one in again.items()} == {
        name: one.get("spec") for name, one in first.items()
    }


def test_any_release_becomes_any_other(helm: Helm, namespaces: Callable[[], Namespace]) -> None:
    """A change of mind: another kind of workload, stream or registry under the same name.

    But for the one on one node: its registry's claim is for one, and Kubernetes changes no claim into one for several.
    """
    here = namespaces()
    order = [file for file in VALUES if "sqlite" not in file.name]
    here.install(helm, "shop", order[0])
    left: set[str] = set()
    for values in [*order[1:], order[0]]:
        left |= kept(here.live(here.helm(helm, "get", "manifest", "shop")))
        here.helm(helm, "upgrade", "shop", str(CHART), "--reset-values", f"--values={values}")
        expected = left | set(here.live(here.helm(helm, "get", "manifest", "shop")))
        here.server.until(lambda all_=expected: here.made("shop") <= all_, f"only what {values.name} names is left")


def kept(objects: dict[str, Object]) -> set[str]:
    """Those that Helm leaves alone when it deletes the others, as `Kind/name`."""
    return {name for name, one in objects.items() if "helm.sh/resource-policy" in one["metadata"]["annotations"]}
