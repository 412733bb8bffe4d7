"""Both Helms take the chart and make the same of it, in every situation of `ci/`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

CHART = Path(__file__).parents[2] / "helm" / "perdure"
FILES = sorted((CHART / "ci").glob("*-values.yaml"))
HELMS = ("3", "4")


def test_every_situation_passes_lint(helm: Callable[..., str]) -> None:
    assert len(FILES) >= 12
    wanted = [(version, file) for file in FILES for version in HELMS]
    with ThreadPoolExecutor(2) as pool:
        said = list(pool.map(lambda each: helm(each[0], "lint", "--strict", str(CHART), "-f", str(each[1])), wanted))
    assert all("0 chart(s) failed" in each for each in said)


def test_both_helms_make_the_same(cases: dict[tuple[str, str], Any]) -> None:
    names = {name for name, _ in cases}
    assert len(names) == len(FILES) + 1
    for name in names:
        three, four = (sorted(cases[name, version].all, key=_key) for version in HELMS)
        assert three == four, name


def test_no_two_objects_have_one_name(cases: dict[tuple[str, str], Any]) -> None:
    for (name, _), found in cases.items():
        counted = Counter(map(_key, found.all))
        assert max(counted.values()) == 1, (name, counted.most_common(1))
        assert all(len(each["metadata"]["name"]) <= 63 for each in found.all)


def test_selectors_find_the_pods_of_their_component_only(cases: dict[tuple[str, str], Any]) -> None:
    for (name, _), found in cases.items():
        pods = {component: pod["metadata"]["labels"] for component, pod in found.pods().items()}
        for each in found.all:
            selector = each.get("spec", {}).get("selector")
            labels = each["metadata"]["labels"]
            if each["kind"] == "Service":
                wanted = selector
            elif each["kind"] in ("Deployment", "StatefulSet", "PodDisruptionBudget"):
                wanted = selector["matchLabels"]
            else:
                continue
            hit = [component for component, has in pods.items() if wanted.items() <= has.items()]
            assert len(hit) == 1, (name, each["kind"], hit)
            assert labels.get("app.kubernetes.io/component", hit[0]) == hit[0]
            # They may not change, and versions do.
            assert not {"app.kubernetes.io/version", "helm.sh/chart"} & wanted.keys()


def test_objects_that_are_named_are_made_or_given(cases: dict[tuple[str, str], Any]) -> None:
    """ConfigMaps, claims, Services and ServiceAccounts; Secrets are always given."""
    given = {"classifier-memory", "models", "models-reader", "models-writer"}
    for (name, _), found in cases.items():
        made = {(each["kind"], each["metadata"]["name"]) for each in found.all}
        for pod in found.pods().values():
            spec = pod["spec"]
            named = {("ServiceAccount", spec["serviceAccountName"])}
            for volume in spec["volumes"]:
                if "configMap" in volume:
                    named.add(("ConfigMap", volume["configMap"]["name"]))
                if "persistentVolumeClaim" in volume:
                    named.add(("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]))
            assert {each for each in named if each[1] not in given} <= made, name
        for each in found.of("StatefulSet"):
            assert ("Service", each["spec"]["serviceName"]) in made


def test_every_mount_has_its_volume(cases: dict[tuple[str, str], Any]) -> None:
    for found in cases.values():
        claims = {
            each["metadata"]["labels"]["app.kubernetes.io/component"]: {
                claim["metadata"]["name"] for claim in each["spec"]["volumeClaimTemplates"]
            }
            for each in found.of("StatefulSet")
        }
        for component, pod in found.pods().items():
            volumes = {volume["name"] for volume in pod["spec"]["volumes"]} | claims.get(component, set())
            assert {mount["name"] for mount in found.container(component)["volumeMounts"]} == volumes


def test_every_probe_and_service_names_a_port(cases: dict[tuple[str, str], Any]) -> None:
    for found in cases.values():
        for component in found.pods():
            container = found.container(component)
            ports = {port["name"] for port in container.get("ports", [])}
            for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                if probe in container:
                    assert container[probe]["httpGet"]["port"] in ports
        for service in found.of("Service"):
            component = service["metadata"]["name"].removesuffix("-pods").rpartition("-")[2]
            ports = {port["name"] for port in found.container(component)["ports"]}
            assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports


def test_every_pod_is_confined(cases: dict[tuple[str, str], Any]) -> None:
    for found in cases.values():
        specs = [pod["spec"] for pod in found.pods().values()] + [pod["spec"] for pod in found.of("Pod")]
        assert len(specs) >= 3
        for spec in specs:
            security = spec["securityContext"]
            assert security["runAsNonRoot"] is True
            assert (security["runAsUser"], security["runAsGroup"], security["fsGroup"]) == (10001, 10001, 10001)
            assert security["seccompProfile"] == {"type": "RuntimeDefault"}
            assert spec["automountServiceAccountToken"] is False
            for container in spec["containers"]:
                held = container["securityContext"]
                assert held["readOnlyRootFilesystem"] is True
                assert held["allowPrivilegeEscalation"] is False
                assert held["capabilities"] == {"drop": ["ALL"]}
                assert container["resources"]["requests"]
                assert container["resources"]["limits"]["memory"]


def test_no_right_is_asked_for(cases: dict[tuple[str, str], Any]) -> None:
    for found in cases.values():
        assert not [each for each in found.all if "rbac" in each["apiVersion"]]
        assert not found.of("Secret"), "secrets are made by others"
        assert all(each["automountServiceAccountToken"] is False for each in found.of("ServiceAccount"))


def test_notes_say_how_version_one_is_made(helm: Callable[..., str]) -> None:
    # Only Helm 4 shows them without a cluster.
    def notes(file: str) -> str:
        words = ["install", "live", str(CHART), "--dry-run=client", "-n", "ml", "-f", str(CHART / "ci" / file)]
        return helm("4", *words).partition("NOTES:")[2]

    said = notes("strimzi-keda-values.yaml")
    assert "exec -i deploy/live-perdure-trainer -- sh -c" in said
    assert "perdure fit --data /tmp/rows.jsonl --config /etc/perdure/perdure.yaml" in said
    assert "the Secret perdure-keys" in said
    assert "leaves the claims of memory, spools behind" in said
    assert "leaves the Kafka cluster behind too" in said
    said = notes("cronjob-gpu-values.yaml")
    assert "exec deployment/live-perdure-serving -- perdure versions" in said
    assert "takes them with it" in said
    assert "deploy/live-perdure-trainer" not in said
    assert "Nobody is asked for a key" in notes("sqlite-one-node-values.yaml")


def _key(manifest: dict[str, Any]) -> tuple[str, str]:
    return manifest["kind"], manifest["metadata"]["name"]
