"""What `docker compose` would start agrees with the settings, the commands and the files that are there.

The file is read by the Compose specification's own library; without Go, as YAML.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import xml.etree.ElementTree as ElementTree
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import typer
import yaml

from perdure import cli
from perdure.config import ENV_PREFIX, Settings, load_settings, setting_names

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
OURS = ("fit", "serving", "trainer", "ingester")
THEIRS = ("kafka", "prometheus", "grafana")
INSTALLED = PurePosixPath("/opt/perdure")
STATE = PurePosixPath("/var/lib/perdure")


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    tree: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
    return tree


@pytest.fixture(scope="module")
def services(compose: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = compose["services"]
    return found


@pytest.fixture(scope="module")
def dockerfile() -> list[list[str]]:
    """The instructions, each as its words."""
    text = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [shlex.split(line) for line in "\n".join(lines).replace("\\\n", " ").splitlines()]


def settings(service: dict[str, Any]) -> Settings:
    """What the processes of a service read: the mounted file, and the environment over it."""
    tree = yaml.safe_load((DEPLOY / "perdure.yaml").read_text(encoding="utf-8"))
    environ = service.get("environment", {})
    assert all(isinstance(value, str) for value in environ.values())
    told = {**environ, **{key: value.split(":-")[1].rstrip("}") for key, value in environ.items() if ":-" in value}}
    values = {f"{section}.{name}": value for section, inner in tree.items() for name, value in inner.items()}
    assert set(values) <= set(setting_names())
    given = {key.removeprefix(ENV_PREFIX).lower().replace("__", "."): value for key, value in told.items()}
    return load_settings(environ=told).with_values({name: value for name, value in values.items() if name not in given})


def command(service: dict[str, Any]) -> list[str]:
    """The words of the `perdure` command that a service runs."""
    words: list[str] = service["command"]
    if "entrypoint" in service:
        assert service["entrypoint"] == ["/bin/sh", "-c"]
        assert len(words) == 1
        words = shlex.split(words[0].partition("||")[0])
    assert words[0] == "perdure"
    return words[1:]


def mounts(service: dict[str, Any]) -> dict[str, str]:
    """Where each volume lies in the container; without a name it is under its place."""
    return dict(reversed(mount.split(":")[1::-1]) if ":" in mount else (mount, mount) for mount in service["volumes"])


@pytest.mark.parametrize("name", OURS)
def test_all_read_one_file_of_settings(compose: dict[str, Any], services: dict[str, Any], name: str) -> None:
    assert compose["configs"] == {"perdure": {"file": "./perdure.yaml"}}
    [mounted] = services[name]["configs"]
    assert mounted["source"] == "perdure"
    words = command(services[name])
    assert words[words.index("--config") + 1] == mounted["target"] == "/etc/perdure/perdure.yaml"
    given = [key for key in services[name].get("environment", {}) if key.startswith(ENV_PREFIX)]
    assert all("__" in key for key in given), "without a section it would be ignored"
    read = settings(services[name])
    assert read.stream.url == "kafka://kafka:9092"
    assert read.registry.url == "/var/lib/perdure/registry"


@pytest.mark.parametrize("name", OURS)
def test_every_command_and_its_options_exist(services: dict[str, Any], name: str) -> None:
    words = command(services[name])
    # Files of the image are copied from this folder, and the settings are those that are mounted.
    places = {"/etc/perdure/perdure.yaml": str(DEPLOY / "perdure.yaml")}
    there = [
        places.get(word) or str(ROOT / PurePosixPath(word).relative_to(INSTALLED)) if word.startswith("/") else word
        for word in words
    ]
    for word in there:
        assert not word.startswith("/") or Path(word).is_file()
    group: Any = typer.main.get_command(cli.build())
    assert words[0] == {"fit": "fit", "serving": "serve", "trainer": "train", "ingester": "ingest"}[name]
    with group.make_context("perdure", list(there)) as context:
        found, parsed, rest = group.resolve_command(context, there)
        assert found == words[0]
        parsed.make_context(found, list(rest), parent=context)


def test_first_version_comes_before_what_uses_it(services: dict[str, Any]) -> None:
    assert services["fit"]["depends_on"] == {"kafka": {"condition": "service_healthy"}}
    assert "healthcheck" in services["kafka"]
    assert services["fit"]["healthcheck"] == {"disable": True}, "it ends, and nobody can ask it"
    for name in ("serving", "trainer", "ingester"):
        assert services[name]["depends_on"] == {"fit": {"condition": "service_completed_successfully"}}
    # A trainer that holds memory already has a first version.
    assert services["fit"]["command"][0].endswith(f"|| test $$? -eq {cli.EXIT_BUSY}")
    assert services["fit"]["restart"] == "no"


def test_kafka_listens_where_the_others_look_for_it(services: dict[str, Any]) -> None:
    kafka = services["kafka"]["environment"]
    host, port = settings(services["serving"]).stream.url.removeprefix("kafka://").split(":")
    assert host in services
    assert kafka["KAFKA_ADVERTISED_LISTENERS"] == f"PLAINTEXT://{host}:{port}"
    assert f"PLAINTEXT://:{port}" in kafka["KAFKA_LISTENERS"].split(",")
    assert f"localhost:{port}" in services["kafka"]["healthcheck"]["test"]
    assert "ports" not in services["kafka"], "it asks nobody who they are"
    controller = kafka["KAFKA_CONTROLLER_QUORUM_VOTERS"].rpartition(":")[2]
    assert f"CONTROLLER://:{controller}" in kafka["KAFKA_LISTENERS"].split(",")
    assert mounts(services["kafka"])["kafka"] == kafka["KAFKA_LOG_DIRS"]
    # 16 bytes in base64, without padding.
    assert re.fullmatch(r"[A-Za-z0-9_-]{22}", kafka["CLUSTER_ID"])


def test_tests_and_compose_run_the_same_kafka(services: dict[str, Any]) -> None:
    pom = ElementTree.parse(DEPLOY / "kafka" / "pom.xml")
    version = pom.findtext(".//{*}kafka.version")
    assert services["kafka"]["image"] == f"apache/kafka:{version}"


def test_ports_agree_and_stay_on_this_machine(services: dict[str, Any], dockerfile: list[list[str]]) -> None:
    serve = services["serving"]
    [published] = serve["ports"]
    address, _, port = published.split(":")
    assert address == "127.0.0.1"
    words = command(serve)
    assert words[words.index("--port") + 1] == port
    assert words[words.index("--host") + 1] == "0.0.0.0"
    assert f":{port}/readyz" in serve["healthcheck"]["test"][-1]
    compile(serve["healthcheck"]["test"][-1], "healthcheck", "exec")
    assert ["EXPOSE", port] in dockerfile
    for name in ("serving", "prometheus", "grafana"):
        assert all(mapped.startswith("127.0.0.1:") for mapped in services[name]["ports"])
    assert [name for name in services if "ports" in services[name]] == ["serving", "prometheus", "grafana"]


def test_prometheus_asks_where_they_tell(services: dict[str, Any], dockerfile: list[list[str]]) -> None:
    asked = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text(encoding="utf-8"))
    found = {
        name: one["port"]
        for job in asked["scrape_configs"]
        for one in job.get("dns_sd_configs", ())
        for name in one["names"]
    }
    tree = yaml.safe_load((DEPLOY / "perdure.yaml").read_text(encoding="utf-8"))
    assert found == {"serving": 8000, "trainer": tree["trainer"]["port"], "ingester": tree["ingest"]["port"]}
    assert found.keys() <= services.keys()
    assert ["EXPOSE", str(found["trainer"])] in dockerfile
    assert tree["trainer"]["host"] == tree["ingest"]["host"] == "0.0.0.0"
    mounted = dict(reversed(mount.split(":")[:2]) for mount in services["prometheus"]["volumes"])
    assert (DEPLOY / mounted["/etc/prometheus/rules"] / "perdure.yaml").resolve().is_file()
    assert (DEPLOY / mounted["/etc/prometheus/prometheus.yml"]).is_file()
    assert "--config.file=/etc/prometheus/prometheus.yml" in services["prometheus"]["command"]


def test_volumes_hold_everything_that_is_kept(
    compose: dict[str, Any], services: dict[str, Any], dockerfile: list[list[str]]
) -> None:
    used = {name for service in services.values() for name in mounts(service) if not name.startswith((".", "/"))}
    assert used == set(compose["volumes"])
    for name in OURS:
        given, places = settings(services[name]), mounts(services[name])
        assert places["registry"] == given.registry.url
        if "memory" in places:
            assert places["memory"] == given.memory.path
        if "spool" in places:
            assert places["spool"] == given.spool.path
    # One process writes memory at a time, and only these two ever do; the spool belongs to one serving process, and
    # each ingester has a folder of its own.
    assert [name for name in services if "memory" in mounts(services[name])] == ["fit", "trainer"]
    assert [name for name in services if "spool" in mounts(services[name])] == ["serving"]
    assert settings(services["ingester"]).ingest.path in mounts(services["ingester"])
    made = {word for words in dockerfile if words[0] == "RUN" and "install" in words for word in words}
    for name in OURS:
        assert set(mounts(services[name]).values()) <= made, "a volume takes its owner from a folder of the image"


def test_nothing_runs_as_root_and_nothing_is_downloaded(services: dict[str, Any], dockerfile: list[list[str]]) -> None:
    [user] = {words[1] for words in dockerfile if words[0] == "USER"}
    assert user != "0:0"
    for name in OURS:
        assert services[name]["user"] == user
        assert services[name]["read_only"] is True
        # What is left to write to, beside volumes.
        writable = {mount.split(":")[0]: mount for mount in services[name]["tmpfs"]}
        assert set(writable) == {"/tmp", "/var/lib/perdure/var"}
        assert "uid=10001,gid=10001" in writable["/var/lib/perdure/var"]
    for name in (*OURS, "prometheus", "grafana"):
        assert services[name]["cap_drop"] == ["ALL"]
        assert services[name]["security_opt"] == ["no-new-privileges:true"]
    for name in THEIRS:
        assert re.fullmatch(r"[a-z]+/[a-z]+:v?\d+\.\d+\.\d+", services[name]["image"]), "pinned by its version"
    [environment] = [words[1:] for words in dockerfile if words[0] == "ENV" and any("HF_HUB" in word for word in words)]
    assert {"HF_HUB_OFFLINE=1", "DO_NOT_TRACK=1"} <= set(environment)
    uid, _ = user.split(":")
    assert any("useradd" in words and uid in words for words in dockerfile)


def test_images_are_built_from_what_is_there(services: dict[str, Any], dockerfile: list[list[str]]) -> None:
    stages = {words[3] for words in dockerfile if words[0] == "FROM"}
    for name in OURS:
        build = services[name]["build"]
        assert (DEPLOY / build["context"]).resolve() == ROOT
        assert (ROOT / build["dockerfile"]).is_file()
        assert build["target"] in stages
        assert services[name]["image"] == f"perdure-{build['target']}"


def test_ingesters_are_there_where_they_are_asked_for(services: dict[str, Any]) -> None:
    assert services["ingester"]["profiles"] == ["ingesters"]
    assert [name for name in services if "profiles" in services[name]] == ["ingester"]
    # The trainer puts together what they read, or reads itself.
    assert services["trainer"]["environment"] == {"PERDURE_INGEST__SHARDS": "${PERDURE_INGEST__SHARDS:-false}"}
    assert settings(services["trainer"]).ingest.shards is False


@pytest.mark.parametrize("shards", ["", "true"])
def test_compose_accepts_it(compose_program: Path, services: dict[str, Any], shards: str) -> None:
    """By the specification's schema, and what hangs together does."""
    environ = {"PATH": os.environ["PATH"], **({"PERDURE_INGEST__SHARDS": shards} if shards else {})}
    asked = [compose_program, DEPLOY / "compose.yaml", *(["ingesters"] if shards else [])]
    done = subprocess.run(asked, capture_output=True, text=True, timeout=60, check=False, env=environ)
    assert (done.returncode, done.stderr) == (0, "")
    project = json.loads(done.stdout)
    assert set(project["services"]) == set(services) - (set() if shards else {"ingester"})
    assert project["services"]["trainer"]["environment"]["PERDURE_INGEST__SHARDS"] == (shards or "false")
    for service in project["services"].values():
        for mount in service["volumes"]:
            assert mount["type"] == "volume" or Path(mount["source"]).exists(), mount
    assert project["configs"]["perdure"]["file"] == str(DEPLOY / "perdure.yaml")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("  init: true", "  inti: true"), "inti false schema"),
        (("      - spool:/var", "      - spol:/var"), "undefined volume spol"),
        (("    condition: service_completed_successfully", "    condition: whenever"), "depends_on"),
        (("- source: perdure", "- source: nothing"), "undefined config nothing"),
    ],
)
def test_compose_is_asked_in_earnest(compose_program: Path, tmp_path: Path, change: tuple[str, str], told: str) -> None:
    text = (DEPLOY / "compose.yaml").read_text(encoding="utf-8")
    assert change[0] in text
    (tmp_path / "compose.yaml").write_text(text.replace(*change), encoding="utf-8")
    asked = [compose_program, tmp_path / "compose.yaml"]
    done = subprocess.run(asked, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert told in done.stderr
