"""Every manifest is what the API server of three Kubernetes releases, and each operator, takes."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from typing import Any

import jsonschema
import pytest
import yaml
from referencing import Registry, Resource

RELEASES = ("1.30.0", "1.34.0", "1.37.0")
"""The oldest that Chart.yaml names, one between, and the newest."""


@pytest.mark.parametrize("release", RELEASES)
def test_kubernetes_takes_every_manifest(cases: dict[tuple[str, str], Any], release: str) -> None:
    checked = 0
    for name, manifest in distinct(cases):
        validator = of_kubernetes(release, manifest["apiVersion"], manifest["kind"])
        if validator is not None:
            check(validator, manifest, name)
            checked += 1
    assert checked > 100


def test_operators_take_what_is_theirs(
    cases: dict[tuple[str, str], Any], definitions: dict[tuple[str, str], Any]
) -> None:
    kinds = set()
    for name, manifest in distinct(cases):
        if of_kubernetes(RELEASES[-1], manifest["apiVersion"], manifest["kind"]) is None:
            kind = manifest["apiVersion"], manifest["kind"]
            assert kind in definitions, f"{name}: nobody says what {kind} is"
            check(definitions[kind], manifest, name)
            kinds.add(manifest["kind"])
    strimzi = {"Kafka", "KafkaNodePool", "KafkaTopic", "KafkaUser"}
    monitoring = {"ServiceMonitor", "PodMonitor", "PrometheusRule"}
    assert kinds == strimzi | monitoring | {"ScaledObject", "TriggerAuthentication", "HTTPRoute"}


def test_a_wrong_name_or_type_is_noticed(
    cases: dict[tuple[str, str], Any], definitions: dict[tuple[str, str], Any]
) -> None:
    """Both checks are strict: what is misspelt is not let through as unknown."""
    found = cases["strimzi-keda", "4"]
    wrong = copy.deepcopy(found.one("StatefulSet", "-serving"))
    wrong["spec"]["template"]["spec"]["terminationGracePeriodsSeconds"] = 3
    validator = of_kubernetes("1.34.0", "apps/v1", "StatefulSet")
    assert validator is not None
    assert not validator.is_valid(wrong)
    for kind, path, value in (
        ("KafkaTopic", ("spec", "partition"), 3),
        ("ScaledObject", ("spec", "maxReplicaCount"), "12"),
        ("ServiceMonitor", ("spec", "endpoint"), []),
    ):
        wrong = copy.deepcopy(next(each for each in found.all if each["kind"] == kind))
        wrong[path[0]][path[1]] = value
        assert not definitions[wrong["apiVersion"], kind].is_valid(wrong), kind


@pytest.fixture(scope="module")
def definitions(programs: Any) -> dict[tuple[str, str], Any]:
    """What checks an object, by apiVersion and kind, as the custom resource definitions say."""
    found = {}
    for file in programs.definitions:
        for definition in yaml.load_all(file.read_text(encoding="utf-8"), yaml.CSafeLoader):
            if not definition or definition["kind"] != "CustomResourceDefinition":
                continue
            spec = definition["spec"]
            for version in spec["versions"]:
                kind = f"{spec['group']}/{version['name']}", spec["names"]["kind"]
                schema = closed(version["schema"]["openAPIV3Schema"])
                # What every object has is not described there.
                schema["properties"] |= {"apiVersion": {"const": kind[0]}, "kind": {"const": kind[1]}}
                schema["properties"]["metadata"] = {"type": "object"}
                found[kind] = jsonschema.Draft7Validator(schema)
    return found


def closed(schema: Any) -> Any:
    """A structural schema that refuses unknown fields, as the API server does with strict field validation."""
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    made = {
        key: {name: closed(each) for name, each in value.items()} if key == "properties" else closed(value)
        for key, value in schema.items()
    }
    if "properties" in made and "additionalProperties" not in made:
        made["additionalProperties"] = bool(made.get("x-kubernetes-preserve-unknown-fields"))
    if made.get("x-kubernetes-int-or-string"):
        made["type"] = ["integer", "string"]
    # Names for tools only.
    made.pop("format", None) if isinstance(made.get("format"), str) else None
    return made


@cache
def of_kubernetes(release: str, version: str, kind: str) -> Any:
    """What checks an object of Kubernetes' own; None where it is not one."""
    group, _, name = version.rpartition("/")
    folder = files("kubernetes_validate") / "kubernetes-json-schema" / f"v{release}-local-strict"
    prefix = f"{group.partition('.')[0]}-" if group else ""
    file = folder / f"{kind.lower()}-{prefix}{name}.json"
    if not file.is_file():
        return None
    return jsonschema.Draft202012Validator(json.loads(file.read_text(encoding="utf-8")), registry=of_release(release))


@cache
def of_release(release: str) -> Any:
    folder = files("kubernetes_validate") / "kubernetes-json-schema" / f"v{release}-local-strict"
    shared = Resource.from_contents(json.loads((folder / "_definitions.json").read_text(encoding="utf-8")))
    return shared @ Registry()


def distinct(cases: dict[tuple[str, str], Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each manifest once, with a situation that has it."""
    seen = set()
    for (name, _), found in cases.items():
        for manifest in found.all:
            text = json.dumps(manifest, sort_keys=True)
            if text not in seen:
                seen.add(text)
                yield name, manifest


def check(validator: Any, manifest: dict[str, Any], name: str) -> None:
    error = jsonschema.exceptions.best_match(validator.iter_errors(manifest))
    where = f"{name}: {manifest['kind']} {manifest['metadata']['name']}"
    assert error is None, f"{where}: {'.'.join(map(str, error.absolute_path))}: {error.message}"
