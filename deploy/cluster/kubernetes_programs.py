"""The programs of a Kubernetes control plane on this machine, built from their Go modules.

`go.mod` names the versions and `go.sum` their hashes: kube-apiserver, kube-controller-manager and kubectl of one
release, and etcd. They are built once for each state of the two files.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
FILES = HERE.parents[1] / "var" / "cluster"
"""Where the programs are kept, in a folder for each state of `go.mod` and `go.sum`."""

MODULES = {"k8s.io/kubernetes": "Kubernetes", "go.etcd.io/etcd/server/v3": "etcd"}

GO_REMEDY = "install Go 1.26 or newer"

logger = logging.getLogger(__name__)


class ClusterError(RuntimeError):
    """The control plane cannot be had, started or asked; the message says why and what to do."""


class ProgramMissing(ClusterError):
    """Go or OpenSSL is not on this machine, or the programs have not been built yet."""


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
    if target.exists():
        return target
    go = program("go", "Go", GO_REMEDY)
    FILES.mkdir(parents=True, exist_ok=True)
    with (FILES / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if target.exists():
            return target
        release = versions(go)
        logger.info(
            "building Kubernetes %s and etcd %s: once, about a quarter of an hour on two cores",
            *release.values(),
        )
        with whole_folder(target) as made:
            _build(go, made, release["Kubernetes"])
    return target


def versions(go: str) -> Mapping[str, str]:
    """What `go.mod` names, as `{"Kubernetes": "v1.2.3", "etcd": "v1.2.3"}`."""
    said = run(
        [go, "list", "-m", "-f", "{{.Path}} {{.Version}}", *MODULES], "read go.mod", cwd=HERE, environ=_environ()
    )
    return {MODULES[path]: version for path, version in (line.split() for line in said.splitlines())}


def _build(go: str, into: Path, release: str) -> None:
    major, minor = release.removeprefix("v").split(".")[:2]
    stamp = "k8s.io/component-base/version"
    # Without these the server calls itself v0.0.0, and charts go by what it calls itself.
    flags = f"-X {stamp}.gitVersion={release} -X {stamp}.gitMajor={major} -X {stamp}.gitMinor={minor}"
    command = [go, "build", "-mod=readonly", "-trimpath", "-ldflags", f"-s -w {flags}", "-o", f"{into}/", "tool"]
    run(command, "build the API server with Go", cwd=HERE, environ=_environ())
    # A package's program has the name of its folder, and etcd's is called server.
    (into / "server").rename(into / "etcd")


def _environ() -> dict[str, str]:
    # No C compiler, no version control and no workspace of whoever builds has a say in what is built.
    return {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-buildvcs=false", "GOWORK": "off"}


def _target() -> Path:
    state = hashlib.sha256()
    for name in ("go.mod", "go.sum", Path(__file__).name):
        state.update((HERE / name).read_bytes())
    return FILES / f"programs-{state.hexdigest()[:12]}"


@contextlib.contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A new folder that becomes `target` at the end: who is killed on the way leaves no half of it."""
    made = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}-"))
    made.chmod(0o755)
    try:
        yield made
        made.rename(target)
    except BaseException:
        shutil.rmtree(made)
        raise


def run(
    command: Sequence[str],
    purpose: str,
    *,
    said: str | None = None,
    cwd: Path | None = None,
    environ: Mapping[str, str] | None = None,
) -> str:
    """What `command` writes to its standard output, given `said` as its input.

    Raises:
        ClusterError: it ended with another status than 0; what it said is in the message.
    """
    done = subprocess.run(
        command,
        input=said if said is not None else "",
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env=environ,
    )
    if done.returncode:
        told = (done.stderr + done.stdout).strip()[-4000:]
        raise ClusterError(f"could not {purpose}: {Path(command[0]).name} ended with {done.returncode}: {told}")
    return done.stdout


def program(name: str, called: str, remedy: str) -> str:
    """The path of a program.

    Raises:
        ProgramMissing: it is not in PATH.
    """
    found = shutil.which(name)
    if found is None:
        raise ProgramMissing(
            f"{called} is needed for a Kubernetes API server, and there is no {name!r} in PATH: {remedy}"
        )
    return found
