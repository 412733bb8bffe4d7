"""What `make test-cluster` builds, as far as it can be checked without building it."""

from __future__ import annotations

import importlib.util
import json
import re
import stat
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

CLUSTER = Path(__file__).parents[2] / "deploy" / "cluster"


def module(name: str) -> ModuleType:
    """A module in `deploy/cluster`, which no package holds."""
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, CLUSTER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    loaded = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


api_server = module("api_server")
programs = module("kubernetes_programs")
authority = module("authority")


@pytest.fixture
def no_programs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing has been built, and nothing is in PATH."""
    monkeypatch.setattr(programs, "FILES", tmp_path / "files")
    monkeypatch.setenv("PATH", str(tmp_path))


@pytest.mark.usefixtures("no_programs")
def test_who_has_no_go_is_told_so() -> None:
    with pytest.raises(programs.ProgramMissing, match=r"Go is needed .* no 'go' in PATH: install Go 1\.26"):
        programs.build()


@pytest.mark.usefixtures("no_programs")
def test_a_start_does_not_build(tmp_path: Path) -> None:
    with pytest.raises(programs.ProgramMissing, match="has not been built yet: `make cluster-files`"):
        api_server.ApiServer(tmp_path / "cluster").start()
    assert not (tmp_path / "files").exists()


@pytest.mark.usefixtures("no_programs")
def test_a_build_that_fails_leaves_nothing_and_says_why(tmp_path: Path) -> None:
    go = tmp_path / "go"
    go.write_text(
        "#!/bin/sh\n"
        '[ "$1" = list ] && echo "k8s.io/kubernetes v9.8.7\ngo.etcd.io/etcd/server/v3 v3.2.1" && exit\n'
        "echo no space left >&2; exit 1\n",
        encoding="utf-8",
    )
    go.chmod(0o755)

    with pytest.raises(programs.ClusterError, match=r"could not build the API server with Go: .* 1: no space left"):
        programs.build()

    assert [file.name for file in (tmp_path / "files").iterdir()] == ["lock"]


@pytest.mark.usefixtures("no_programs")
def test_what_is_built_says_its_release_and_is_built_once(tmp_path: Path) -> None:
    """Charts go by the version that the server says."""
    go = tmp_path / "go"
    go.write_text(
        "#!/bin/sh\n"
        '[ "$1" = list ] && echo "k8s.io/kubernetes v9.8.7\ngo.etcd.io/etcd/server/v3 v3.2.1" && exit\n'
        f'echo "$@" >> {tmp_path}/asked\n'
        'while [ "$1" != -o ]; do shift; done; : > "$2server"; : > "$2kube-apiserver"\n',
        encoding="utf-8",
    )
    go.chmod(0o755)

    folder = programs.build()
    again = programs.build()

    (asked,) = (tmp_path / "asked").read_text(encoding="utf-8").splitlines()
    assert "gitVersion=v9.8.7" in asked
    assert "gitMajor=9" in asked
    assert "gitMinor=8" in asked
    assert again == folder
    assert {file.name for file in folder.iterdir()} == {"etcd", "kube-apiserver"}


def test_the_staging_modules_are_those_of_the_release() -> None:
    """Kubernetes' own go.mod asks for v0.0.0 of each; one of another release may compile, and be something else."""
    text = (CLUSTER / "go.mod").read_text(encoding="utf-8")
    (minor,) = re.findall(r"^\s*k8s\.io/kubernetes v1\.(\S+)(?: // indirect)?$", text, re.MULTILINE)
    replaced = re.findall(r"^\s*(k8s\.io/\S+) => (\S+) v0\.(\S+)$", text, re.MULTILINE)
    assert len(replaced) > 20
    assert all(name == target and version == minor for name, target, version in replaced)
    unreplaced = set(re.findall(r"^\s*(k8s\.io/\S+) v0\.0\.0(?: |$)", text, re.MULTILINE)) - {
        name for name, *_ in replaced
    }
    assert not unreplaced


def test_a_path_too_long_for_a_socket_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="too long, as a socket in it may have 103 bytes"):
        api_server.ApiServer(tmp_path / ("x" * 100))


def test_the_authority_signs_servers_and_users(tmp_path: Path) -> None:
    made = authority.Authority(tmp_path / "authority")
    server, _ = made.server("kubernetes", ["IP:127.0.0.1"])
    config = json.loads(made.kubeconfig("https://127.0.0.1:1", "ann", ["readers"]).read_text(encoding="utf-8"))
    ann = tmp_path / "authority" / "user-ann.pem"

    for certificate, purpose in ((server, "sslserver"), (ann, "sslclient")):
        verify = ["openssl", "verify", "-purpose", purpose, "-CAfile", made.certificate, certificate]
        assert subprocess.run(verify, check=False, capture_output=True).returncode == 0
    asked = ["openssl", "x509", "-in", ann, "-noout", "-subject", "-nameopt", "RFC2253"]
    said = subprocess.run(asked, check=True, capture_output=True, text=True)
    assert said.stdout.strip() == "subject=CN=ann,O=readers"
    assert config["clusters"][0]["cluster"]["server"] == "https://127.0.0.1:1"
    assert set(config["users"][0]["user"]) == {"client-certificate-data", "client-key-data"}


def test_keys_and_kubeconfigs_are_for_their_owner_alone(tmp_path: Path) -> None:
    made = authority.Authority(tmp_path / "authority")
    made.kubeconfig("https://127.0.0.1:1", "ann")
    made.token_kubeconfig("https://127.0.0.1:1", "pod", "secret")
    assert stat.S_IMODE(made.folder.stat().st_mode) == 0o700
    for file in made.folder.iterdir():
        if file.suffix in {".key", ".kubeconfig"}:
            assert stat.S_IMODE(file.stat().st_mode) == 0o600, file.name
