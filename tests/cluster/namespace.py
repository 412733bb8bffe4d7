"""A namespace of a cluster as production has them, and Helm in the hands of somebody who may write in it alone."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
CHART = ROOT / "helm" / "perdure"
VALUES = sorted((CHART / "ci").glob("*-values.yaml"))

INSTALLER = "installer"
"""Who installs: somebody who may do everything in their namespace, and nothing outside it."""

OPERATORS = ("keda.sh", "kafka.strimzi.io", "monitoring.coreos.com", "gateway.networking.k8s.io")
"""API groups that the role `admin` does not know; whoever brings their operators grants them to those who install."""

QUOTA = {"hard": {"requests.cpu": "1k", "requests.memory": "10Ti", "limits.memory": "10Ti", "requests.storage": "1Pi"}}
"""Under a quota, a container that does not say what it needs is refused."""

LIMITS = {
    "limits": [
        {"type": "Container", "max": {"memory": "1Ti"}},
        {"type": "PersistentVolumeClaim", "max": {"storage": "10Ti"}},
    ]
}

Object = dict[str, Any]


class HelmError(RuntimeError):
    """Helm refused; the message is what it said."""


@dataclass(frozen=True)
class Helm:
    """One release of Helm, in a home of its own."""

    program: str
    home: Path

    def __call__(self, *arguments: str, kubeconfig: Path, namespace: str) -> str:
        """What it answers, as the user of `kubeconfig`.

        Raises:
            HelmError: it ended with another status than 0.
        """
        done = subprocess.run(
            [self.program, *arguments, f"--kubeconfig={kubeconfig}", f"--namespace={namespace}"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "HOME": str(self.home)},
        )
        if done.returncode:
            raise HelmError(done.stderr.strip() or done.stdout.strip())
        return done.stdout


@dataclass(frozen=True)
class Namespace:
    """A namespace where only pods of the profile `restricted` are admitted, and who installs into it."""

    name: str
    server: Any
    installer: Path

    def helm(self, helm: Helm, *arguments: str) -> str:
        """What Helm answers to the installer."""
        return helm(*arguments, kubeconfig=self.installer, namespace=self.name)

    def install(self, helm: Helm, release: str, values: Path) -> None:
        """Installs the chart."""
        self.prepare(helm, values)
        self.helm(helm, "install", release, str(CHART), f"--values={values}")

    def prepare(self, helm: Helm, values: Path) -> None:
        """Makes the accounts that somebody else makes, where a file of values says that the chart need not."""
        rendered = documents(self.helm(helm, "template", "any", str(CHART), f"--values={values}"))
        made = {one["metadata"]["name"] for one in rendered if one["kind"] == "ServiceAccount"}
        there = {one["metadata"]["name"] for one in self.get("serviceaccounts")}
        for name in sorted(accounts(rendered) - made - there):
            self.kubectl("create", "serviceaccount", name)

    def kubectl(self, *arguments: str, said: str | None = None, kubeconfig: Path | None = None) -> str:
        """What kubectl answers here."""
        answer: str = self.server.kubectl(f"--namespace={self.name}", *arguments, said=said, kubeconfig=kubeconfig)
        return answer

    def get(self, kinds: str, *arguments: str) -> list[Object]:
        """What is there of some kinds."""
        said = json.loads(self.kubectl("get", kinds, *arguments, "--output=json"))
        found: list[Object] = said.get("items", [said])
        return found

    def settled(self) -> bool:
        """Whether the controllers have made what every namespace has."""
        (quota,) = self.get("resourcequotas")
        return bool(self.get("serviceaccounts")) and quota.get("status", {}).get("hard") == QUOTA["hard"]

    def names(self) -> frozenset[str]:
        """All that is there, as `kind/name`, but for events."""
        said = self.kubectl("get", ",".join(_listed_kinds(self.server)), "--ignore-not-found", "--output=name")
        return frozenset(said.split())

    def made(self, release: str) -> frozenset[str]:
        """What Helm made for `release` and is still there, as `Kind/name`, but for claims."""
        kinds = ",".join(set(_listed_kinds(self.server)) - {"endpoints", "persistentvolumeclaims"})
        found = self.get(kinds, f"--selector=app.kubernetes.io/instance={release}")
        return frozenset(
            f"{one['kind']}/{one['metadata']['name']}" for one in found if "ownerReferences" not in one["metadata"]
        )

    def live(self, manifest: str) -> dict[str, Object]:
        """What the server holds of the objects in `manifest`, by `kind/name`, without what it counts and dates."""
        found = json.loads(self.kubectl("get", "--filename=-", "--output=json", said=manifest))
        return {f"{one['kind']}/{one['metadata']['name']}": _kept(one) for one in found.get("items", [found])}


def said_name(values: Path) -> str:
    """A file of values as the names of tests say it."""
    return values.name.removesuffix("-values.yaml")


def documents(manifest: str) -> list[Object]:
    """The objects in a manifest."""
    return [one for one in yaml.safe_load_all(manifest) if one]


def accounts(objects: list[Object]) -> set[str]:
    """The names of the accounts that pods of workloads run as."""
    templates = [template for one in objects if (template := pod_template(one)) is not None]
    return {template["spec"]["serviceAccountName"] for template in templates}


def pod_template(workload: Object) -> Object | None:
    """The template from which a workload's pods are made; None where it is no workload."""
    spec = workload.get("spec", {})
    if workload["kind"] == "CronJob":
        spec = spec["jobTemplate"]["spec"]
    elif workload["kind"] not in {"Deployment", "StatefulSet", "DaemonSet", "Job"}:
        return None
    template: Object = spec["template"]
    return template


def namespace_maker(server: Any) -> Callable[[], Namespace]:
    """Makes namespaces on `server`."""
    installer = server.user(INSTALLER)
    numbers = itertools.count(1)

    def make() -> Namespace:
        name = f"test-{next(numbers)}"
        server.kubectl("create", "--filename=-", said=yaml.safe_dump_all(objects_of(name)))
        made = Namespace(name, server, installer)
        server.until(made.settled, f"{name} has an account, and its quota is counted")
        return made

    return make


@cache
def _listed_kinds(server: Any) -> Sequence[str]:
    said = server.kubectl("api-resources", "--namespaced", "--verbs=list", "--output=name")
    return sorted(set(said.split()) - {"events", "events.events.k8s.io"})


def _kept(one: Object) -> Object:
    """An object without its status, and without what the server or the controllers write into it."""
    metadata = {name: one["metadata"].get(name, {}) for name in ("labels", "annotations", "ownerReferences")}
    metadata["annotations"].pop("deployment.kubernetes.io/revision", None)
    kept = {name: value for name, value in one.items() if name not in {"metadata", "status"}}
    if one["kind"] == "Service":
        # One that was deleted and made again has another address.
        kept["spec"] = {name: value for name, value in kept["spec"].items() if name not in {"clusterIP", "clusterIPs"}}
    return {**kept, "metadata": metadata}


def objects_of(name: str) -> list[Object]:
    """A namespace, what bounds it, and what its installer may do."""
    user = {"kind": "User", "name": INSTALLER, "apiGroup": "rbac.authorization.k8s.io"}
    rbac = "rbac.authorization.k8s.io/v1"
    restricted = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn", "audit")}

    def binding(role: str, kind: str) -> Object:
        reference = {"kind": kind, "name": role, "apiGroup": "rbac.authorization.k8s.io"}
        metadata = {"name": role, "namespace": name}
        return {
            "apiVersion": rbac,
            "kind": "RoleBinding",
            "metadata": metadata,
            "roleRef": reference,
            "subjects": [user],
        }

    rule = {"apiGroups": list(OPERATORS), "resources": ["*"], "verbs": ["*"]}
    return [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": restricted}},
        {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "team", "namespace": name}, "spec": QUOTA},
        {"apiVersion": "v1", "kind": "LimitRange", "metadata": {"name": "team", "namespace": name}, "spec": LIMITS},
        {"apiVersion": rbac, "kind": "Role", "metadata": {"name": "operators", "namespace": name}, "rules": [rule]},
        binding("admin", "ClusterRole"),
        binding("operators", "Role"),
    ]
