"""Install, upgrade, rollback and uninstall by somebody who may write nothing but their namespace, with Helm 3 and 4."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from .namespace import CHART, VALUES, Helm, Namespace, documents, pod_template, said_name

pytestmark = pytest.mark.cluster

CHANGES = {
    "image": {"tag": "9.9.9"},
    "commonLabels": {"team": "search"},
    "config": {"serving": {"max_texts": 7}},
    "serving": {"podAnnotations": {"changed": "yes"}, "resources": {"limits": {"memory": "3Gi"}}},
    "trainer": {"graceSeconds": 77},
}


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
    here.helm(helm, "uninstall", "shop")
    here.server.until(lambda: only_claims(here.names() - empty), "uninstall leaves nothing but claims")
    left = {one["metadata"]["name"] for one in here.get("persistentvolumeclaims")}
    kept = {
        name.split("/")[1]
        for name, one in first.items()
        if one["metadata"]["annotations"].get("helm.sh/resource-policy")
    }
    assert left >= kept
    # What stays is said to whoever installs, and how it is deleted.
    assert all(name in notes for name in kept)
    assert not left or re.search(r"kubectl .*delete pvc", notes), notes

    # Whoever installs again finds what stayed.
    here.install(helm, "shop", values)
    assert here.live(manifest) == first


def test_any_release_becomes_any_other(helm: Helm, namespaces: Callable[[], Namespace]) -> None:
    """A change of mind: another kind of workload, stream or registry under the same name."""
    here = namespaces()
    here.install(helm, "shop", VALUES[0])
    for values in [*VALUES[1:], VALUES[0]]:
        here.helm(helm, "upgrade", "shop", str(CHART), "--reset-values", f"--values={values}")
        manifest = here.helm(helm, "get", "manifest", "shop")
        named = set(here.live(manifest))
        here.server.until(lambda named=named: here.made("shop") <= named, f"only what {values.name} names is left")


def only_claims(names: frozenset[str]) -> bool:
    """Whether all of `kind/name` are claims."""
    return all(name.startswith("persistentvolumeclaim/") for name in names)
