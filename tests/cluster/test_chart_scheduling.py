"""Where the pods of a release go, by a real scheduler over nodes that are only written down."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from .namespace import CHART, VALUES, Helm, Namespace, Object, namespace_maker, said_name
from .programs import server_in

pytestmark = pytest.mark.cluster

ZONES = ("a", "b", "c")
GPU = "gpu"
COMPONENT = ",app.kubernetes.io/component="


@pytest.fixture(scope="module")
def place(files: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Namespace]]:
    """Makes namespaces in a cluster of two nodes in each of three zones, and one more with GPUs, which is tainted.

    A server of its own: a pod that has a node goes only when the node says so, and would stay in the way of others.
    """
    with server_in(tmp_path_factory.mktemp("nodes"), files, scheduler=True) as server:
        for zone in ZONES:
            for number in (1, 2):
                add_node(server, f"{zone}{number}", zone)
        add_node(server, GPU, ZONES[0], gpus=8)
        yield namespace_maker(server)


def add_node(server: Any, name: str, zone: str, *, gpus: int = 0) -> None:
    """Writes down a node that is well; one with GPUs takes only pods that tolerate it."""
    labels = {"kubernetes.io/hostname": name, "topology.kubernetes.io/zone": zone, "kubernetes.io/os": "linux"}
    taints = [{"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}] if gpus else []
    node = {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": labels | ({"accelerator": "nvidia"} if gpus else {})},
        "spec": {"taints": taints},
    }
    server.kubectl("create", "--filename=-", said=yaml.safe_dump(node))
    has = {"cpu": "16", "memory": "64Gi", "pods": "50", "ephemeral-storage": "200Gi", "nvidia.com/gpu": str(gpus)}
    ready = {"type": "Ready", "status": "True", "reason": "Written", "lastHeartbeatTime": "2035-01-01T00:00:00Z"}
    status = json.dumps({"status": {"capacity": has, "allocatable": has, "conditions": [ready]}})
    server.kubectl("patch", "node", name, "--subresource=status", "--type=merge", f"--patch={status}")
    server.until(lambda: is_open(server, name), f"node {name} takes pods")


def is_open(server: Any, name: str) -> bool:
    """Whether a node has no taint but its own."""
    taints = json.loads(server.kubectl("get", "node", name, "--output=json"))["spec"].get("taints", [])
    return {taint["key"] for taint in taints} <= {"nvidia.com/gpu"}


def provide(here: Namespace) -> None:
    """Gives every claim a volume, as a provisioner would."""
    for claim in here.get("persistentvolumeclaims"):
        if claim["status"]["phase"] != "Pending" or "volumeName" in claim["spec"]:
            continue
        spec, metadata = claim["spec"], claim["metadata"]
        name = f"{here.name}-{metadata['name']}"
        volume = {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": name},
            "spec": {
                "capacity": spec["resources"]["requests"],
                "accessModes": spec["accessModes"],
                "storageClassName": spec.get("storageClassName", ""),
                "claimRef": {"namespace": here.name, "name": metadata["name"]},
                "nfs": {"server": "volumes.test", "path": f"/{name}"},
            },
        }
        if here.server.kubectl("get", "persistentvolume", name, "--ignore-not-found", "--output=name"):
            continue
        here.server.kubectl("create", "--filename=-", said=yaml.safe_dump(volume))


def placed(here: Namespace, component: str = "") -> list[str]:
    """The nodes of the release's pods, once all have one."""
    found: list[Object] = []

    def all_placed() -> bool:
        provide(here)
        found[:] = here.get("pods", f"--selector=app.kubernetes.io/instance=shop{component and COMPONENT + component}")
        return bool(found) and all(pod["spec"].get("nodeName") for pod in found)

    try:
        here.server.until(all_placed, "all pods have a node", 180)
    except RuntimeError as error:
        said = [one["message"] for one in here.get("events") if one["reason"] == "FailedScheduling"]
        raise AssertionError(f"{error}: {said}") from error
    return [pod["spec"]["nodeName"] for pod in found]


def started(here: Namespace, helm: Helm, values: Path, **others: str) -> None:
    """Installs a release; where its trainer runs by the clock, it runs now too."""
    sets = [f"--set={name.replace('__', '.')}={value}" for name, value in others.items()]
    here.prepare(helm, values)
    here.helm(helm, "install", "shop", str(CHART), f"--values={values}", *sets)
    for job in here.get("cronjobs"):
        name = job["metadata"]["name"]
        here.kubectl("create", "job", f"{name}-now", f"--from=cronjob/{name}")


def file_of(tmp_path: Path, values: Object) -> Path:
    file = tmp_path / "values.yaml"
    file.write_text(yaml.safe_dump(values), encoding="utf-8")
    return file


@pytest.mark.parametrize("values", VALUES, ids=said_name)
def test_every_release_finds_nodes(place: Callable[[], Namespace], helms: dict[int, Helm], values: Path) -> None:
    """On an ordinary cluster: nothing that a file asks for contradicts itself."""
    here = place()
    started(here, helms[4], values)
    assert placed(here)


def test_serving_is_spread_over_zones_and_nodes(
    place: Callable[[], Namespace], helms: dict[int, Helm], tmp_path: Path
) -> None:
    here = place()
    values = {
        "serving": {"replicas": 6, "keys": {"existingSecret": "keys"}},
        "stream": {"kafka": {"bootstrapServers": "kafka:9092"}},
        "registry": {"url": "s3://models/perdure"},
    }
    started(here, helms[4], file_of(tmp_path, values))
    nodes = placed(here, "serving")
    assert len(nodes) == 6
    assert Counter(node[0] for node in nodes) == dict.fromkeys(ZONES, 2)
    assert max(Counter(nodes).values()) == 1


def test_the_trainer_alone_goes_to_the_gpu(
    place: Callable[[], Namespace], helms: dict[int, Helm], tmp_path: Path
) -> None:
    here = place()
    values = {
        "serving": {"keys": {"existingSecret": "keys"}},
        "trainer": {
            "gpu": {"enabled": True},
            "nodeSelector": {"accelerator": "nvidia"},
            "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
        },
        "stream": {"kafka": {"bootstrapServers": "kafka:9092"}},
        "registry": {"url": "s3://models/perdure"},
    }
    started(here, helms[4], file_of(tmp_path, values))
    assert placed(here, "trainer") == [GPU]
    assert GPU not in placed(here, "serving")


def test_who_shares_a_file_shares_a_node(
    place: Callable[[], Namespace], helms: dict[int, Helm], tmp_path: Path
) -> None:
    """SQLite's file is safe on one node only, and not every driver keeps a claim on one."""
    here = place()
    anonymous = "anyone who reaches this address may do everything"
    values = {
        "serving": {"replicas": 1, "allowAnonymous": anonymous},
        "stream": {"kind": "sqlite"},
        "registry": {"kind": "volume", "volume": {"accessModes": ["ReadWriteOnce"]}},
    }
    started(here, helms[4], file_of(tmp_path, values))
    nodes = placed(here)
    assert len(nodes) == 2
    assert len(set(nodes)) == 1


def test_a_drain_takes_one_pod_of_serving_at_a_time(
    place: Callable[[], Namespace], helms: dict[int, Helm], tmp_path: Path
) -> None:
    here = place()
    values = {
        "serving": {"replicas": 3, "keys": {"existingSecret": "keys"}},
        "stream": {"kafka": {"bootstrapServers": "kafka:9092"}},
        "registry": {"url": "s3://models/perdure"},
    }
    started(here, helms[4], file_of(tmp_path, values))
    placed(here)
    pods = here.get("pods", f"--selector=app.kubernetes.io/instance=shop{COMPONENT}serving")
    names = [pod["metadata"]["name"] for pod in pods]
    status = json.dumps({"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}})
    for name in names:
        here.kubectl("patch", "pod", name, "--subresource=status", "--type=merge", f"--patch={status}")

    def counted() -> bool:
        (now,) = here.get("poddisruptionbudgets")
        return bool(now["status"].get("currentHealthy") == 3 and now["status"]["disruptionsAllowed"] == 1)

    here.server.until(counted, "the budget has counted its pods")
    evict(here, names[0])
    with pytest.raises(RuntimeError, match="violate the pod's disruption budget"):
        evict(here, names[1])


def evict(here: Namespace, pod: str) -> None:
    """Asks that a pod goes, as the drain of a node does."""
    asked = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": here.name}}
    place = f"/api/v1/namespaces/{here.name}/pods/{pod}/eviction"
    here.kubectl("create", "--raw", place, "--filename=-", said=json.dumps(asked))
