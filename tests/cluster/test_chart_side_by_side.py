"""Several releases in a cluster: none touches another's objects, and nothing of one selects another's pods."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .namespace import VALUES, Helm, Namespace, Object, documents, said_name

pytestmark = pytest.mark.cluster


def selectors(one: Object) -> Iterator[Object]:
    """The label selectors with which an object finds pods."""
    spec = one.get("spec", {})
    match one["kind"]:
        case "Service":
            yield {"matchLabels": spec["selector"]}
        case "NetworkPolicy":
            yield spec["podSelector"]
        case "Deployment" | "StatefulSet" | "PodDisruptionBudget" | "PodMonitor":
            yield spec["selector"]


def chosen(selector: Object) -> str:
    """A selector as kubectl takes it."""
    terms = [f"{label}={value}" for label, value in selector.get("matchLabels", {}).items()]
    for one in selector.get("matchExpressions", []):
        operator = {"In": "in", "NotIn": "notin"}[one["operator"]]
        terms.append(f"{one['key']} {operator} ({','.join(one['values'])})")
    return ",".join(terms)


# A name that the values give to all objects belongs to one release.
SHARED = [file for file in VALUES if "fullnameOverride" not in file.read_text(encoding="utf-8")]


@pytest.mark.parametrize("values", SHARED, ids=said_name)
def test_two_releases_share_a_namespace(
    helms: dict[int, Helm], namespaces: Callable[[], Namespace], values: Path
) -> None:
    here, helm = namespaces(), helms[4]
    before = here.names()
    here.install(helm, "first", values)
    manifest = here.helm(helm, "get", "manifest", "first")
    alone = here.live(manifest)
    here.install(helm, "second", values)
    assert here.live(manifest) == alone

    def both() -> bool:
        found = here.get("pods")
        return {pod["metadata"]["labels"]["app.kubernetes.io/instance"] for pod in found} == {"first", "second"}

    here.server.until(both, "both releases have pods")
    for one in documents(manifest):
        for selector in selectors(one):
            found = here.get("pods", f"--selector={chosen(selector)}")
            owners = {pod["metadata"]["labels"]["app.kubernetes.io/instance"] for pod in found}
            assert owners <= {"first"}, (one["kind"], one["metadata"]["name"])
            assert chosen(selector)

    here.helm(helm, "uninstall", "second")
    here.server.until(lambda: not here.made("second"), "the second release is gone")
    assert here.live(manifest) == alone
    assert here.names() > before


def test_one_name_in_two_namespaces(helms: dict[int, Helm], namespaces: Callable[[], Namespace]) -> None:
    helm, here, there = helms[4], namespaces(), namespaces()
    for values in VALUES[:2]:
        here.install(helm, "shop", values)
        manifest = here.helm(helm, "get", "manifest", "shop")
        alone = here.live(manifest)
        there.install(helm, "shop", values)
        there.helm(helm, "uninstall", "shop")
        assert here.live(manifest) == alone
        here.helm(helm, "uninstall", "shop")
