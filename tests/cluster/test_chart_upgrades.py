"""Upgrades that people do, and what must not happen in them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from .namespace import CHART, Helm, HelmError, Namespace, Object

pytestmark = pytest.mark.cluster

VALUES: Object = {
    "serving": {"keys": {"existingSecret": "keys"}},
    "stream": {"partitions": 8, "kafka": {"bootstrapServers": "kafka:9092"}},
    "registry": {"url": "s3://models/perdure"},
}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A file of values for a release with brokers and an object store."""
    file = tmp_path / "values.yaml"
    file.write_text(yaml.safe_dump(VALUES), encoding="utf-8")
    return file


def upgrade(here: Namespace, helm: Helm, base: Path, *changes: str) -> None:
    """Upgrades the release `shop` with the values of `base` and `changes`, as `name=value`."""
    here.helm(helm, "upgrade", "shop", str(CHART), f"--values={base}", *(f"--set={one}" for one in changes))


def replicas(here: Namespace, workload: str) -> int:
    (one,) = here.get(workload)
    found: int = one["spec"]["replicas"]
    return found


def test_an_upgrade_leaves_the_autoscaler_s_number(helm: Helm, namespaces: Callable[[], Namespace], base: Path) -> None:
    """A release whose pods were scaled to nine does not fall back to what the values say, in the midst of the load."""
    here = namespaces()
    scaled = ["serving.autoscaling.enabled=true", "ingester.enabled=true", "ingester.keda.enabled=true"]
    here.helm(helm, "install", "shop", str(CHART), f"--values={base}", *(f"--set={one}" for one in scaled))
    here.kubectl("scale", "deployment/shop-perdure-serving", "--replicas=9")
    here.kubectl("scale", "statefulset/shop-perdure-ingester", "--replicas=3")
    for round_ in ("one", "two"):
        upgrade(here, helm, base, *scaled, f"serving.podAnnotations.round={round_}")
        assert replicas(here, "deployments/shop-perdure-serving") == 9
        assert replicas(here, "statefulsets/shop-perdure-ingester") == 3
    here.helm(helm, "rollback", "shop", "1")
    assert replicas(here, "deployments/shop-perdure-serving") == 9


def test_new_settings_mean_new_pods_and_old_ones_do_not(
    helm: Helm, namespaces: Callable[[], Namespace], base: Path
) -> None:
    """A setting reaches the processes when they start; an upgrade that changes nothing restarts nobody."""
    here = namespaces()
    here.install(helm, "shop", base)

    def generations() -> dict[str, int]:
        found = here.get("deployments,statefulsets")
        return {one["metadata"]["name"]: one["metadata"]["generation"] for one in found}

    first = generations()
    assert first
    upgrade(here, helm, base)
    assert generations() == first
    upgrade(here, helm, base, "config.serving.max_texts=9")
    assert all(generation > first[name] for name, generation in generations().items())


def test_a_claim_that_grows_in_a_workload_is_refused_and_nothing_is_lost(
    helm: Helm, namespaces: Callable[[], Namespace], base: Path
) -> None:
    """Kubernetes lets nobody change the claims of a StatefulSet; the release is as it was, and goes on."""
    here = namespaces()
    stateful = "serving.workload=StatefulSet"
    here.helm(helm, "install", "shop", str(CHART), f"--values={base}", f"--set={stateful}")
    manifest = here.helm(helm, "get", "manifest", "shop")
    with pytest.raises(HelmError, match=r"spec\.volumeClaimTemplates: Invalid value|updates to statefulset spec"):
        upgrade(here, helm, base, stateful, "serving.spool.size=9Gi")
    here.helm(helm, "rollback", "shop", "1")
    assert {one["spec"]["resources"]["requests"]["storage"] for one in here.get("persistentvolumeclaims")} >= {"2Gi"}
    assert here.helm(helm, "get", "manifest", "shop") == manifest
    upgrade(here, helm, base, stateful, "serving.podAnnotations.round=two")


def test_the_claim_of_a_shared_volume_grows(helm: Helm, namespaces: Callable[[], Namespace], base: Path) -> None:
    """Where the storage class allows it; the claims of the chart's own are changed in place, and never made anew."""
    here = namespaces()
    storage = {"kind": "StorageClass", "apiVersion": "storage.k8s.io/v1", "metadata": {"name": here.name}}
    growing = storage | {"provisioner": "volumes.test", "allowVolumeExpansion": True}
    here.server.kubectl("create", "--filename=-", said=yaml.safe_dump(growing))
    chosen = f"trainer.memory.storageClass={here.name}"
    here.helm(helm, "install", "shop", str(CHART), f"--values={base}", f"--set={chosen}")
    bind(here)
    (before,) = here.get("persistentvolumeclaims")
    upgrade(here, helm, base, chosen, "trainer.memory.size=20Gi")
    (after,) = here.get("persistentvolumeclaims")
    assert after["spec"]["resources"]["requests"]["storage"] == "20Gi"
    assert after["metadata"]["uid"] == before["metadata"]["uid"]


def bind(here: Namespace) -> None:
    """Gives the only claim a volume, as a provisioner would; only a claim that has one can grow."""
    (claim,) = here.get("persistentvolumeclaims")
    volume = {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": here.name},
        "spec": {
            "capacity": claim["spec"]["resources"]["requests"],
            "accessModes": claim["spec"]["accessModes"],
            "storageClassName": claim["spec"]["storageClassName"],
            "claimRef": {"namespace": here.name, "name": claim["metadata"]["name"]},
            "nfs": {"server": "volumes.test", "path": "/"},
        },
    }
    here.server.kubectl("create", "--filename=-", said=yaml.safe_dump(volume))
    here.server.until(lambda: here.get("persistentvolumeclaims")[0]["status"]["phase"] == "Bound", "the claim is bound")


def test_what_was_learned_outlives_the_release(helm: Helm, namespaces: Callable[[], Namespace], base: Path) -> None:
    """The claim with the memory stays unless somebody has said that it need not."""
    here = namespaces()
    here.install(helm, "shop", base)
    (claim,) = here.get("persistentvolumeclaims")
    here.helm(helm, "uninstall", "shop")
    here.server.until(lambda: not here.made("shop"), "the release is gone")
    (left,) = here.get("persistentvolumeclaims")
    assert left["metadata"]["uid"] == claim["metadata"]["uid"]
    assert "deletionTimestamp" not in left["metadata"]

    here.install(helm, "shop", base)
    upgrade(here, helm, base, "trainer.memory.keep=false")
    here.helm(helm, "uninstall", "shop")
    here.server.until(lambda: not here.get("persistentvolumeclaims"), "the claim is gone")
