"""What `docker compose` would start agrees with the settings, the commands and the files that are there."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import typer
import yaml

from perdure import cli
from perdure.config import ENV_PREFIX, Settings, load_settings

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
OURS = ("fit", "serve", "train")
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
    assert all(isinstance(value, str) for value in service["environment"].values())
    return load_settings(environ=service["environment"])


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
    """Where each volume lies in the container."""
    return dict(mount.split(":") for mount in service["volumes"])


@pytest.mark.parametrize("name", OURS)
def test_every_setting_exists(services: dict[str, Any], name: str) -> None:
    given = [key for key in services[name]["environment"] if key.startswith(ENV_PREFIX)]
    assert given
    assert all("__" in key for key in given), "without a section it would be ignored"
    assert settings(services[name]).stream.url == "kafka://kafka:9092"


@pytest.mark.parametrize("name", OURS)
def test_every_command_and_its_options_exist(services: dict[str, Any], name: str) -> None:
    words = command(services[name])
    # Files of the image are copied from this folder.
    there = [str(ROOT / PurePosixPath(word).relative_to(INSTALLED)) if word.startswith("/") else word for word in words]
    for word in there:
        assert not word.startswith("/") or Path(word).is_file()
    group: Any = typer.main.get_command(cli.build())
    assert words[0] == name
    with group.make_context("perdure", list(there)) as context:
        found, parsed, rest = group.resolve_command(context, there)
        assert found == name
        parsed.make_context(found, list(rest), parent=context)


def test_first_version_comes_before_what_uses_it(services: dict[str, Any]) -> None:
    assert services["fit"]["depends_on"] == {"kafka": {"condition": "service_healthy"}}
    assert "healthcheck" in services["kafka"]
    for name in ("serve", "train"):
        assert services[name]["depends_on"] == {"fit": {"condition": "service_completed_successfully"}}
    # A trainer that holds memory already has a first version.
    assert services["fit"]["command"][0].endswith(f"|| test $$? -eq {cli.EXIT_BUSY}")
    assert services["fit"]["restart"] == "no"


def test_kafka_listens_where_the_others_look_for_it(services: dict[str, Any]) -> None:
    kafka = services["kafka"]["environment"]
    host, port = settings(services["serve"]).stream.url.removeprefix("kafka://").split(":")
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
    serve = services["serve"]
    [published] = serve["ports"]
    address, _, port = published.split(":")
    assert address == "127.0.0.1"
    words = command(serve)
    assert words[words.index("--port") + 1] == port
    assert words[words.index("--host") + 1] == "0.0.0.0"
    assert f":{port}/readyz" in serve["healthcheck"]["test"][-1]
    compile(serve["healthcheck"]["test"][-1], "healthcheck", "exec")
    assert ["EXPOSE", port] in dockerfile
    assert [name for name in services if "ports" in services[name]] == ["serve"]


def test_volumes_hold_everything_that_is_kept(
    compose: dict[str, Any], services: dict[str, Any], dockerfile: list[list[str]]
) -> None:
    used = {volume for service in services.values() for volume in mounts(service)}
    assert used == set(compose["volumes"])
    for name in OURS:
        given, places = settings(services[name]), mounts(services[name])
        assert places["registry"] == given.registry.url
        if "memory" in places:
            assert places["memory"] == given.memory.path
        if "spool" in places:
            assert places["spool"] == given.spool.path
    # One process writes memory at a time, and only these two ever do; the spool belongs to one serving process.
    assert [name for name in services if "memory" in mounts(services[name])] == ["fit", "train"]
    assert [name for name in services if "spool" in mounts(services[name])] == ["serve"]
    made = {word for words in dockerfile if words[0] == "RUN" and "install" in words for word in words}
    for name in OURS:
        assert set(mounts(services[name]).values()) <= made, "a volume takes its owner from a folder of the image"


def test_nothing_runs_as_root_and_nothing_is_downloaded(services: dict[str, Any], dockerfile: list[list[str]]) -> None:
    [user] = [words[1] for words in dockerfile if words[0] == "USER"]
    assert user != "0:0"
    for name in OURS:
        assert services[name]["user"] == user
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
    copied = [word for words in dockerfile if words[0] == "COPY" and "--from" not in words[1] for word in words[1:-1]]
    allowed = (DEPLOY / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    for word in copied:
        assert (ROOT / word).exists(), word
        assert f"!{word}" in allowed, "the build would not see it"
    assert "*" in allowed


def test_docker_compose_accepts_it() -> None:
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "compose", "version"], capture_output=True, check=False).returncode:
        return  # no such program here; the tests above read the same file
    done = subprocess.run(
        [docker, "compose", "-f", str(DEPLOY / "compose.yaml"), "config", "--quiet"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
