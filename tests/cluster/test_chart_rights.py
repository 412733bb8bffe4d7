"""Who may do what: Perdure asks the Kubernetes API for nothing, and whoever installs it needs one namespace."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from .namespace import Namespace, accounts, documents

pytestmark = pytest.mark.cluster

FORBIDDEN = [
    ("get", "", "secrets"),
    ("list", "", "secrets"),
    ("get", "", "configmaps"),
    ("list", "", "pods"),
    ("create", "", "pods"),
    ("create", "", "pods/exec"),
    ("create", "", "serviceaccounts/token"),
    ("impersonate", "", "serviceaccounts"),
    ("update", "apps", "deployments/scale"),
    ("patch", "apps", "statefulsets"),
    ("create", "batch", "jobs"),
    ("update", "coordination.k8s.io", "leases"),
    ("create", "rbac.authorization.k8s.io", "rolebindings"),
    ("escalate", "rbac.authorization.k8s.io", "roles"),
    ("patch", "kafka.strimzi.io", "kafkatopics"),
]


def rights(here: Namespace, kubeconfig: Path) -> list[Any]:
    """All that the user of `kubeconfig` may do in a namespace, as the API server says it."""
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectRulesReview",
        "spec": {"namespace": here.name},
    }
    said = here.kubectl(
        "create", "--filename=-", "--output=json", "--validate=ignore", said=json.dumps(review), kubeconfig=kubeconfig
    )
    status = json.loads(said)["status"]
    assert not status["incomplete"]
    rules = [*status["resourceRules"], *status["nonResourceRules"]]
    return sorted(json.dumps(rule, sort_keys=True) for rule in rules)


def allowed(here: Namespace, user: str) -> dict[tuple[str, str, str], bool]:
    """Which of FORBIDDEN `user` may do, as the API server says it."""
    reviews = []
    for verb, group, resource in FORBIDDEN:
        name, _, sub = resource.partition("/")
        asked = {"namespace": here.name, "verb": verb, "group": group, "resource": name, "subresource": sub}
        spec = {"resourceAttributes": asked, "user": user, "groups": groups(user)}
        metadata = {"apiVersion": "authorization.k8s.io/v1", "kind": "LocalSubjectAccessReview"}
        reviews.append({**metadata, "metadata": {"namespace": here.name}, "spec": spec})
    said = here.kubectl("create", "--filename=-", "--output=json", said=yaml.safe_dump_all(reviews))
    found = said_objects(said)
    assert len(found) == len(FORBIDDEN)
    return dict(zip(FORBIDDEN, (one["status"]["allowed"] for one in found), strict=True))


def groups(user: str) -> list[str]:
    """The groups of an account, or of a user."""
    if not user.startswith("system:serviceaccount:"):
        return ["system:authenticated"]
    namespace = user.split(":")[2]
    return ["system:authenticated", "system:serviceaccounts", f"system:serviceaccounts:{namespace}"]


def said_objects(said: str) -> list[Any]:
    """Several objects of JSON, one after the other."""
    found, decoder, at = [], json.JSONDecoder(), 0
    while at < len(said.rstrip()):
        one, at = decoder.raw_decode(said, at)
        found.append(one)
        at += len(said[at:]) - len(said[at:].lstrip())
    return found


def test_accounts_can_do_what_everybody_can_and_no_more(
    server: Any, installed: tuple[Namespace, str], namespaces: Callable[[], Namespace]
) -> None:
    here, manifest = installed
    names = accounts(documents(manifest))
    here.kubectl("create", "serviceaccount", "nobody")
    everybody = rights(here, server.account(here.name, "nobody"))
    assert everybody
    assert names
    for name in names:
        # By a token of its own, and not by somebody else's word: what the account really is.
        assert rights(here, server.account(here.name, name)) == everybody
        answers = allowed(here, f"system:serviceaccount:{here.name}:{name}")
        assert not [asked for asked, may in answers.items() if may]


def test_the_question_itself_can_be_answered_with_yes(namespaces: Callable[[], Namespace]) -> None:
    here = namespaces()
    user = f"system:serviceaccount:{here.name}:default"
    assert not any(allowed(here, user).values())
    here.kubectl("create", "role", "reader", "--verb=get", "--resource=secrets")
    here.kubectl("create", "rolebinding", "reader", "--role=reader", f"--serviceaccount={here.name}:default")
    here.server.until(lambda: allowed(here, user)["get", "", "secrets"], "a role that is bound counts")


def test_the_release_grants_nothing(installed: tuple[Namespace, str]) -> None:
    """No roles in it at all, and so nothing outside its namespace."""
    _, manifest = installed
    kinds = {one["kind"] for one in documents(manifest)}
    assert not kinds & {"Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding", "Namespace", "PriorityClass"}


def test_whoever_installs_may_do_nothing_outside_their_namespace(
    installed: tuple[Namespace, str], namespaces: Callable[[], Namespace]
) -> None:
    """Every release of these tests is installed by them, and so by somebody without rights in the cluster."""
    here, _ = installed
    elsewhere = here.server.kubectl
    for question in (
        ["get", "secrets", "--namespace=kube-system"],
        ["list", "nodes"],
        ["create", "customresourcedefinitions"],
        ["create", "clusterroles"],
        ["create", "namespaces"],
        ["get", "pods", "--all-namespaces"],
    ):
        with pytest.raises(RuntimeError, match=r"(?s)ended with 1: .*no$"):
            elsewhere("auth", "can-i", *question, kubeconfig=here.installer)


def test_an_installer_of_another_namespace_is_refused(
    server: Any, helms: Any, namespaces: Callable[[], Namespace]
) -> None:
    here = namespaces()
    stranger = server.user("stranger")
    with pytest.raises(RuntimeError, match="forbidden"):
        helms[4]("list", kubeconfig=stranger, namespace=here.name)
