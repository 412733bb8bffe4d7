"""What the chart tells Perdure is what Perdure understands, and what follows from the code is current."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from perdure import cli
from perdure.config import ALLOW_ANONYMOUS, ENV_PREFIX, Settings, load_settings, setting_names
from perdure_services.serving.exposure import check_exposure


def understood(found: Any, component: str, folder: Path) -> Settings:
    """The settings of a container, as Perdure's own loader reads them."""
    file = folder / "perdure.yaml"
    file.write_text(found.settings(), encoding="utf-8")
    return load_settings(file, environ=found.environment(component))


def setting_of(variable: str) -> str:
    return variable.removeprefix(ENV_PREFIX).lower().replace("__", ".")


def test_every_container_is_understood(cases: dict[tuple[str, str], Any], tmp_path: Path) -> None:
    for (name, version), found in cases.items():
        if version != "4":
            continue
        for component in found.pods():
            settings = understood(found, component, tmp_path)
            mounts = {mount["mountPath"] for mount in found.container(component)["volumeMounts"]}
            scheme, _, place = settings.stream.url.partition(":")
            if scheme == "sqlite":
                assert str(Path(place).parent) in mounts, name
            else:
                assert scheme == "kafka"
            if settings.registry.url.startswith("/"):
                assert settings.registry.url in mounts, name
            for file in (settings.stream.sasl_password_file, settings.stream.tls_ca_file, settings.stream.tls_key_file):
                assert not file or str(Path(file).parent) in mounts, name
            if component == "serving":
                assert settings.spool.path in mounts
                check_exposure("0.0.0.0", settings.serving)
                assert not settings.serving.keys or str(Path(settings.serving.keys).parent) in mounts
            if component == "trainer":
                assert settings.memory.path in mounts
                assert settings.ingest.shards == ("ingester" in found.pods())
            if component == "ingester":
                assert str(Path(settings.ingest.path).parent) in mounts


def test_every_file_that_is_named_is_mounted(cases: dict[tuple[str, str], Any], tmp_path: Path) -> None:
    """The items of volumes, where Kubernetes would find them."""
    for case in ("azure-mutual-tls", "ingesters-volume", "keda-sasl", "strimzi-keda"):
        found = cases[case, "4"]
        settings = understood(found, "trainer", tmp_path).stream
        [volume] = [each for each in found.pods()["trainer"]["spec"]["volumes"] if each["name"] == "kafka"]
        items = {
            f"/etc/perdure-kafka/{item['path']}"
            for source in volume["projected"]["sources"]
            for item in source["secret"]["items"]
        }
        named = {settings.sasl_password_file, settings.tls_ca_file, settings.tls_cert_file, settings.tls_key_file} - {
            ""
        }
        assert named == items


def test_every_variable_is_a_setting(cases: dict[tuple[str, str], Any]) -> None:
    known = set(setting_names())
    for found in cases.values():
        for component in found.pods():
            variables = [name for name in found.environment(component) if name.startswith(ENV_PREFIX)]
            assert variables
            assert {setting_of(name) for name in variables} <= known


def test_every_command_exists(cases: dict[tuple[str, str], Any]) -> None:
    group: Any = typer.main.get_command(cli.build())
    for found in cases.values():
        for component in found.pods():
            program, *words = found.container(component)["command"]
            assert program == "perdure"
            with group.make_context("perdure", list(words)) as context:
                _, parsed, rest = group.resolve_command(context, list(words))
                parsed.make_context(words[0], list(rest), parent=context)


def test_config_reaches_perdure(render: Callable[..., Any], tmp_path: Path) -> None:
    config = {"seed": 3, "lora": {"rank": 16}, "trainer": {"cron": "0 3 * * *"}, "model": {"ridge": [0.5]}}
    settings = understood(render({"config": config}), "trainer", tmp_path)
    assert (settings.seed, settings.lora.rank, settings.trainer.cron) == (3, 16, "0 3 * * *")
    assert settings.model.ridge == (0.5,)
    assert settings.registry.url == "s3://models/perdure"


def test_large_numbers_stay_what_they_are(render: Callable[..., Any], tmp_path: Path) -> None:
    """Helm reads numbers as floats, and writes large ones as 1e+09."""
    values = {"config": {"spool": {"max_bytes": 1_500_000_000}, "stream": {"replication": 3}}}
    settings = understood(render(values), "serving", tmp_path)
    assert settings.spool.max_bytes == 1_500_000_000
    assert settings.stream.replication == 3


def test_settings_of_the_chart_are_those_it_refuses(
    render: Callable[..., Any], refused_all: Callable[..., Any]
) -> None:
    """What the chart writes must not be overwritten from `config` without a word."""
    written = {name for name, _ in _leaves(yaml.safe_load(render().settings()))}
    for component in ("serving", "trainer"):
        written |= {setting_of(name) for name in render().environment(component) if name.startswith(ENV_PREFIX)}
    assert {"stream.url", "registry.url", "ingest.shards", "spool.path", "memory.path", "serving.keys"} <= written
    values = {}
    for name in sorted(written):
        section, _, leaf = name.partition(".")
        default = getattr(getattr(Settings(), section), leaf)
        values[name] = {"config": {section: {leaf: default}}}
    for name, said in refused_all(values).items():
        assert f"config.{name} is set, but the chart makes this setting" in said


def test_chart_is_of_this_release(documents: Any) -> None:
    project = tomllib.loads((documents.HERE.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    chart = yaml.safe_load((documents.CHART / "Chart.yaml").read_text(encoding="utf-8"))
    assert chart["appVersion"] == project["version"]


def test_written_files_are_current(documents: Any) -> None:
    for file, text in documents.documents().items():
        assert file.read_text(encoding="utf-8") == text, f"{file.name} is old: run python helm/documents.py"


def test_readme_says_what_each_value_means(documents: Any) -> None:
    values = list(documents.values())
    assert len(values) > 150
    silent = [value.name for value in values if value.default is not None and not value.meaning]
    # What these two are, is said of both.
    assert {name.rpartition(".")[2] for name in silent} == {"requests", "limits"}
    readme = documents.readme()
    assert '| `serving.spool.size` | `"2Gi"` | Room for records that wait for Kafka' in readme
    assert '| `serving.image.repository` | `"perdure-serving"` |' in readme


def test_schema_knows_every_value_and_refuses_others(documents: Any) -> None:
    schema = documents.schema()
    values = yaml.safe_load((documents.CHART / "values.yaml").read_text(encoding="utf-8"))

    def same(node: dict[str, Any], given: Any, path: str) -> None:
        node = _resolved(schema, node)
        if isinstance(given, dict) and given and path != "config" and "properties" in node:
            optional = {"global", "accessModes"}
            assert node["properties"].keys() - optional <= given.keys() <= node["properties"].keys(), path
            for key, below in given.items():
                same(node["properties"][key], below, f"{path}.{key}".strip("."))

    same(schema, values, "")
    assert list(_open(schema)) == [
        # Kubernetes' own, three levels deep; the API server looks at them.
        ".definitions.affinity.properties.nodeAffinity",
        ".definitions.affinity.properties.podAffinity",
        ".definitions.affinity.properties.podAntiAffinity",
        # Helm's, not the chart's.
        ".properties.global",
    ]
    assert schema["properties"]["serving"]["properties"]["allowAnonymous"]["enum"] == ["", ALLOW_ANONYMOUS]
    config = schema["properties"]["config"]
    names = set()
    for section, node in config["properties"].items():
        below = _resolved(schema, node).get("properties")
        names |= {f"{section}.{name}" for name in below} if below else {section}
    assert names == set(setting_names())


@pytest.mark.parametrize("name", ["serving.lame_duck_seconds", "serving.drain_seconds", "spool.max_bytes"])
def test_templates_compute_with_the_defaults(documents: Any, name: str) -> None:
    section, _, leaf = name.partition(".")
    stored = json.loads((documents.CHART / "files" / "defaults.json").read_text(encoding="utf-8"))
    assert stored[name] == getattr(getattr(Settings(), section), leaf)


def _leaves(tree: dict[str, Any]) -> list[tuple[str, Any]]:
    return [(f"{section}.{name}", value) for section, below in tree.items() for name, value in below.items()]


def _resolved(schema: dict[str, Any], node: dict[str, Any]) -> dict[str, Any]:
    node = node["allOf"][0] if "allOf" in node else node
    while "$ref" in node:
        node = schema["definitions"][node["$ref"].rpartition("/")[2]]
    return node


def _open(node: Any, path: str = "") -> Any:
    """Where an object may hold anything."""
    if isinstance(node, dict):
        if node.get("type") == "object" and "additionalProperties" not in node:
            yield path
        for key, below in node.items():
            yield from _open(below, f"{path}.{key}")
    if isinstance(node, list):
        for below in node:
            yield from _open(below, path)
