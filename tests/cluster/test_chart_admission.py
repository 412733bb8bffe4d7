"""What a production cluster's API server checks: the schema, to the letter, and who may run in a namespace."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from .namespace import CHART, VALUES, Helm, Namespace, Object, documents, pod_template, said_name

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def api(server: Any) -> Any:
    """The API server over HTTP, and where each kind of object has its address."""
    said = json.loads(server.kubectl("get", "--raw", "/apis"))
    groups = ["/api/v1", *(f"/apis/{one['groupVersion']}" for group in said["groups"] for one in group["versions"])]
    places = {}
    for path in groups:
        for one in json.loads(server.kubectl("get", "--raw", path))["resources"]:
            if "/" not in one["name"]:
                places[path.split("/", 2)[2], one["kind"]] = f"{path}/namespaces/{{}}/{one['name']}/"
    with httpx.Client(base_url=server.url, verify=server.trust(), timeout=30) as client:
        yield client, places


def strictly(api: Any, namespace: str, document: str) -> list[str]:
    """What the API server has against a document as it is written: unknown and doubled fields are errors here.

    The text goes over as it is: a client that parses it first would lose a field that stands there twice.
    """
    client, places = api
    one = yaml.safe_load(document)
    place = places[one["apiVersion"], one["kind"]].format(namespace) + one["metadata"]["name"]
    answer = client.patch(
        place,
        params={"fieldManager": "strict", "fieldValidation": "Strict", "dryRun": "All", "force": "true"},
        headers={"Content-Type": "application/apply-patch+yaml"},
        content=document.encode(),
    )
    return (
        []
        if answer.is_success and "warning" not in answer.headers
        else [answer.text, *answer.headers.get_list("warning")]
    )


CONFIG = """
apiVersion: v1
kind: ConfigMap
metadata: {name: probe}
data: {a: b}
"""


@pytest.mark.parametrize(
    ("added", "said"), [("dada: {}", "field not declared in schema"), ("data: {a: c}", "already set in map")]
)
def test_the_check_itself_refuses(api: Any, namespaces: Any, added: str, said: str) -> None:
    here = namespaces()
    assert strictly(api, here.name, CONFIG) == []
    (refusal, *_) = strictly(api, here.name, CONFIG + added)
    assert said in refusal


@pytest.mark.parametrize("values", VALUES, ids=said_name)
def test_every_document_is_valid_to_the_letter(api: Any, helm: Helm, namespaces: Any, values: Path) -> None:
    here = namespaces()
    rendered = here.helm(helm, "template", "shop", str(CHART), f"--values={values}")
    refused = {}
    texts = [text for text in f"\n{rendered}".split("\n---") if yaml.safe_load(text)]
    for text in texts:
        if said := strictly(api, here.name, text):
            refused[text.split("\n", 2)[1]] = said
    assert len(texts) > 5
    assert not refused


def test_pods_are_made_of_every_workload(installed: tuple[Namespace, str]) -> None:
    """By the controllers, under the quota and the profile `restricted`: what is refused there never starts."""
    here, manifest = installed
    expected: dict[str, int] = {}
    for one in documents(manifest):
        if pod_template(one) is None or one["apiVersion"] not in {"apps/v1", "batch/v1"}:
            continue
        name, replicas = one["metadata"]["name"], one["spec"].get("replicas", 1)
        component = one["metadata"]["labels"]["app.kubernetes.io/component"]
        if one["kind"] == "CronJob":
            here.kubectl("create", "job", f"{name}-now", f"--from=cronjob/{name}")
        elif one["kind"] == "StatefulSet" and one["spec"].get("podManagementPolicy") != "Parallel":
            replicas = min(replicas, 1)  # the next one waits until this one is ready
        expected[component] = replicas

    def made() -> dict[str, int]:
        counted = dict.fromkeys(expected, 0)
        for pod in here.get("pods", "--selector=app.kubernetes.io/instance=shop"):
            counted[pod["metadata"]["labels"]["app.kubernetes.io/component"]] += 1
        return counted

    def ended() -> bool:
        return made() == expected or bool(refusals(here))

    here.server.until(ended, "the controllers have made all pods")
    assert refusals(here) == []
    assert made() == expected


def test_pods_hold_no_token_and_run_as_accounts_of_their_own(installed: tuple[Namespace, str]) -> None:
    here, manifest = installed
    made = admitted(here, manifest)
    assert made
    for pod in made:
        name, spec = pod["metadata"]["generateName"], pod["spec"]
        assert spec["serviceAccountName"] != "default", name
        assert spec["automountServiceAccountToken"] is False, name
        assert not [volume for volume in spec["volumes"] if token_in(volume)], name


def test_helm_s_test_pods_are_admitted(installed: tuple[Namespace, str], helms: dict[int, Helm]) -> None:
    here, _ = installed
    hooks = documents(here.helm(helms[4], "get", "hooks", "shop"))
    assert "Pod" in {one["kind"] for one in hooks}
    for one in hooks:
        said = yaml.safe_dump(one)
        answer = json.loads(here.kubectl("create", "--filename=-", "--dry-run=server", "--output=json", said=said))
        if one["kind"] == "Pod":
            assert answer["spec"]["automountServiceAccountToken"] is False


def test_the_namespace_itself_refuses(namespaces: Any) -> None:
    """Pods that ask for too much, or do not say what they need, and so a release without what admits it."""
    here = namespaces()
    needs = {"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"memory": "1Gi"}}

    careful = {
        "allowPrivilegeEscalation": False,
        "runAsNonRoot": True,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }

    def asked(**container: Any) -> str:
        spec = {"containers": [{"name": "one", "image": "one", **container}]}
        return yaml.safe_dump({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "one"}, "spec": spec})

    with pytest.raises(RuntimeError, match='violates PodSecurity "restricted:latest"'):
        here.kubectl("create", "--filename=-", "--dry-run=server", said=asked(resources=needs))
    with pytest.raises(RuntimeError, match=r"failed quota.*must specify"):
        here.kubectl("create", "--filename=-", "--dry-run=server", said=asked(securityContext=careful))
    here.kubectl("create", "--filename=-", "--dry-run=server", said=asked(securityContext=careful, resources=needs))


def admitted(here: Namespace, manifest: str) -> list[Object]:
    """A pod of every workload's template, as the API server would admit it."""
    pods = []
    for one in documents(manifest):
        if (template := pod_template(one)) is None:
            continue
        metadata = {**template["metadata"], "generateName": f"{one['metadata']['name']}-"}
        # Of a StatefulSet the controller adds the claims that belong to the pod.
        claims = [claim["metadata"]["name"] for claim in one["spec"].get("volumeClaimTemplates", [])]
        volumes = [{"name": name, "persistentVolumeClaim": {"claimName": f"{name}-0"}} for name in claims]
        spec = {"restartPolicy": "Always", **template["spec"]}
        spec["volumes"] = [*spec.get("volumes", []), *volumes]
        said = yaml.safe_dump({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
        answer = here.kubectl("create", "--filename=-", "--dry-run=server", "--output=json", said=said)
        pods.append(json.loads(answer))
    return pods


def token_in(volume: Object) -> bool:
    """Whether a volume brings a token of the API server."""
    return any("serviceAccountToken" in source for source in volume.get("projected", {}).get("sources", []))


def refusals(here: Namespace) -> list[str]:
    """What controllers were refused when they made pods and claims."""
    events = here.get("events")
    return [one["message"] for one in events if one["reason"] in {"FailedCreate", "FailedToCreate"}]
