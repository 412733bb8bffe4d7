"""The chart as both Helms render it."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
CHART = ROOT / "helm" / "perdure"
CASES = {file.name.removesuffix("-values.yaml"): file for file in sorted((CHART / "ci").glob("*-values.yaml"))}
HELMS = ("3", "4")
AT_ONCE = 2

LEAST = {
    "serving": {"keys": {"existingSecret": "perdure-keys"}},
    "stream": {"kafka": {"bootstrapServers": "kafka:9092"}},
    "registry": {"url": "s3://models/perdure"},
}
"""Without these values nothing is rendered."""


class Refused(AssertionError):
    """Helm would not render; what it said."""


class Loader(yaml.CSafeLoader):
    """YAML in which a key that stands twice is an error, as it is to the API server."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        assert len(keys) == len(set(keys)), f"a key stands twice: {node.start_mark}"
        return super().construct_mapping(node, deep)


@dataclass(frozen=True)
class Manifests:
    """What a chart is rendered to."""

    all: tuple[dict[str, Any], ...]

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [each for each in self.all if each["kind"] == kind]

    def one(self, kind: str, name: str = "") -> dict[str, Any]:
        """The one object of a kind, with `name` at the end of its name."""
        found = [each for each in self.of(kind) if each["metadata"]["name"].endswith(name)]
        assert len(found) == 1, f"{len(found)} objects {kind} {name}"
        return found[0]

    def pods(self) -> dict[str, dict[str, Any]]:
        """Pod templates by component."""
        found = {}
        for each in self.all:
            spec = each.get("spec", {})
            if each["kind"] == "CronJob":
                spec = spec["jobTemplate"]["spec"]
            if each["kind"] in ("Deployment", "StatefulSet", "CronJob"):
                found[each["metadata"]["labels"]["app.kubernetes.io/component"]] = spec["template"]
        return found

    def container(self, component: str) -> dict[str, Any]:
        [container] = self.pods()[component]["spec"]["containers"]
        found: dict[str, Any] = container
        return found

    def environment(self, component: str) -> dict[str, str]:
        """Environment variables with plain values."""
        return {each["name"]: each["value"] for each in self.container(component)["env"] if "value" in each}

    def settings(self) -> str:
        """The text of perdure.yaml."""
        text: str = self.one("ConfigMap", "-config")["data"]["perdure.yaml"]
        return text


@cache
def _module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"perdure_chart_{name}", ROOT / "helm" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def documents() -> ModuleType:
    """`helm/documents.py`, which no package holds."""
    return _module("documents")


@pytest.fixture(scope="session")
def programs_module() -> ModuleType:
    """`helm/programs.py`, which no package holds."""
    return _module("programs")


@pytest.fixture(scope="session")
def programs() -> Any:
    """Helm and what goes with it. Where they cannot be brought a test is skipped, but in CI it fails."""
    try:
        return _module("programs").fetch()
    except _module("programs").FetchError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def helm(programs: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Runs a Helm of a version, away from any cluster; its output."""
    home = tmp_path_factory.mktemp("helm")
    environment = {"HOME": str(home), "PATH": "/nowhere", "KUBECONFIG": str(home / "none")}

    def run(version: str, *words: str) -> str:
        done = subprocess.run(
            [str(programs.helm[version]), *words], env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise Refused(done.stdout + done.stderr)
        return done.stdout

    return run


@pytest.fixture(scope="session")
def render(helm: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Manifests]:
    """Renders values over the least that the chart asks for; raises `Refused`."""
    folder = tmp_path_factory.mktemp("values")
    rendered: dict[str, Manifests] = {}

    def run(values: Mapping[str, Any] | None = None, *, least: bool = True, version: str = "4") -> Manifests:
        text = json.dumps([values, least, version], sort_keys=True)
        if text not in rendered:
            # YAML's readers take JSON.
            file = folder / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.yaml"
            file.write_text(json.dumps(merged(LEAST if least else {}, values or {})), encoding="utf-8")
            rendered[text] = manifests(helm(version, "template", "live", str(CHART), "-n", "ml", "-f", str(file)))
        return rendered[text]

    return run


@pytest.fixture(scope="session")
def cases(helm: Callable[..., str]) -> dict[tuple[str, str], Manifests]:
    """What each value file in `ci/`, and the one for small clusters, is rendered to, by name and Helm version."""
    files: dict[str, tuple[str, ...]] = {name: ("-f", str(file)) for name, file in CASES.items()}
    anonymous = "serving.allowAnonymous=anyone who reaches this address may do everything"
    files["small"] = ("-f", str(CHART / "values-small.yaml"), "--set", anonymous)
    wanted = [(name, version) for name in files for version in HELMS]

    def one(case: tuple[str, str]) -> Manifests:
        return manifests(helm(case[1], "template", "live", str(CHART), "-n", "ml", *files[case[0]]))

    with ThreadPoolExecutor(AT_ONCE) as pool:
        return dict(zip(wanted, pool.map(one, wanted), strict=True))


def manifests(text: str) -> Manifests:
    return Manifests(tuple(document for document in yaml.load_all(text, Loader) if document))


def merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` wins, level by level."""
    result = dict(under)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = merged(result[key], value) if both else value
    return result


@pytest.fixture(scope="session")
def refused(render: Callable[..., Manifests]) -> Callable[..., str]:
    """What Helm says to values that it refuses."""

    def run(values: Mapping[str, Any], **named: Any) -> str:
        with pytest.raises(Refused) as caught:
            render(values, **named)
        return " ".join(str(caught.value).split())

    return run


@pytest.fixture(scope="session")
def refused_all(refused: Callable[..., str]) -> Callable[[Mapping[str, Mapping[str, Any]]], dict[str, str]]:
    """The same of many, by name, two at a time; of values that are not refused an empty text."""

    def one(values: Mapping[str, Any]) -> str:
        try:
            return refused(values)
        except pytest.fail.Exception:
            return ""

    def run(many: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            return dict(zip(many, pool.map(one, many.values()), strict=True))

    return run
