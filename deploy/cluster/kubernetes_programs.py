"""The programs of a Kubernetes control plane on this machine, built from their Go modules.

`go.mod` names the versions and `go.sum` their hashes: kube-apiserver, kube-controller-manager and kubectl of one
release, and etcd. They are built once for each state of the two files.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path

HERE = Path(__file__).resolve().parent
if str(HERE.parent) not in sys.path:  # loaded by its path, it finds its neighbours all the same
    sys.path.append(str(HERE.parent))

import brought  # noqa: E402

FILES = HERE.parents[1] / "var" / "cluster"
"""Where the programs are kept, in a folder for each state of `go.mod` and `go.sum`."""

MODULES = {"k8s.io/kubernetes": "Kubernetes", "go.etcd.io/etcd/server/v3": "etcd"}

logger = logging.getLogger(__name__)


class ClusterError(RuntimeError):
    """The control plane cannot be had, started or asked; the message says why and what to do."""


class ProgramMissing(ClusterError):
    """Go or OpenSSL is not on this machine, or the programs have not been built yet."""


run = partial(brought.run, failed=ClusterError)
program = partial(brought.program, use="is needed for a Kubernetes API server", missing=ProgramMissing)


def built() -> Path:
    """The folder with the programs.

    Raises:
        ProgramMissing: they have not been built yet.
    """
    target = _target()
    if not target.exists():
        raise ProgramMissing("the Kubernetes API server has not been built yet: `make cluster-files` builds it")
    return target


def build() -> Path:
    """The folder with the programs; built the first time, by one process at a time.

    Raises:
        ProgramMissing: Go is missing.
        ClusterError: Go could not bring or build them; what it said is in the message.
    """
    target = _target()
    if not target.exists():
        brought.once(target, partial(_build, program("go", "Go", "install Go 1.26 or newer")))
    return target


def versions(go: str) -> Mapping[str, str]:
    """What `go.mod` names, as `{"Kubernetes": "v1.2.3", "etcd": "v1.2.3"}`."""
    command = [go, "list", "-m", "-f", "{{.Path}} {{.Version}}", *MODULES]
    told = run(command, "read go.mod", folder=HERE, environment=_environment())
    return {MODULES[path]: version for path, version in (line.split() for line in told.stdout.splitlines())}


def _build(go: str, made: Path) -> None:
    found = versions(go)
    logger.info("building Kubernetes %s and etcd %s: once, about a quarter of an hour on two cores", *found.values())
    made.mkdir()
    release = found["Kubernetes"]
    major, minor = release.removeprefix("v").split(".")[:2]
    stamp = "k8s.io/component-base/version"
    # Without these the server calls itself v0.0.0, and charts go by what it calls itself.
    flags = f"-X {stamp}.gitVersion={release} -X {stamp}.gitMajor={major} -X {stamp}.gitMinor={minor}"
    command = [go, "build", "-mod=readonly", "-trimpath", "-ldflags", f"-s -w {flags}", "-o", f"{made}/", "tool"]
    run(command, "build the API server with Go", folder=HERE, environment=_environment())
    # A package's program has the name of its folder, and etcd's is called server.
    (made / "server").rename(made / "etcd")


def _environment() -> dict[str, str]:
    # No C compiler, no version control and no workspace of whoever builds has a say in what is built.
    return {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-buildvcs=false", "GOWORK": "off"}


def _target() -> Path:
    state = brought.state(*(HERE / name for name in ("go.mod", "go.sum", Path(__file__).name)))
    return FILES / f"programs-{state}"
