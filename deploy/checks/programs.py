"""The programs that check what is deployed, brought by package name into `var/checks`.

    python deploy/checks/programs.py        brings what is not there yet, and says where it is

- `promtool`, Prometheus' own: what is in PATH, or else from the package `prometheus` of Debian and its likes, which is
  unpacked and not installed.
- `compose`, built with Go from `deploy/checks/compose`: the Compose specification's own library, at the version and
  with the hashes that stand there.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
FILES = HERE.parents[1] / "var" / "checks"
"""Where the programs are kept."""


class ProgramMissing(RuntimeError):
    """A program cannot be had here; the message says why and what to do."""


def promtool(*, bring: bool = False) -> Path:
    """Prometheus' tool for its own files.

    Args:
        bring: fetch it where it is not there.

    Raises:
        ProgramMissing: it is not there, or could not be brought.
    """
    kept, found = FILES / "promtool", shutil.which("promtool")
    if found is not None or kept.exists():
        return Path(found or kept)
    if not bring:
        raise ProgramMissing(f"there is no promtool in PATH or {FILES}: run make check-programs")
    for needed in ("apt-get", "dpkg-deb"):
        if shutil.which(needed) is None:
            raise ProgramMissing(f"promtool is not in PATH, and there is no {needed} to bring it: install Prometheus")
    with _kept(kept) as target:
        download = ["apt-get", "--quiet", "download", "prometheus"], target.parent, "download the package prometheus"
        try:
            _run(*download)
        except ProgramMissing:
            # A new machine knows no packages yet.
            _run(["apt-get", "--quiet", "update"], target.parent, "bring the list of packages")
            _run(*download)
        [package] = target.parent.glob("prometheus_*.deb")
        _run(["dpkg-deb", "--extract", package.name, "unpacked"], target.parent, "unpack the package prometheus")
        (target.parent / "unpacked" / "usr" / "bin" / "promtool").rename(target)
    return kept


def compose(*, bring: bool = False) -> Path:
    """What reads a Compose file as Docker Compose does.

    Args:
        bring: build it where it is not there.

    Raises:
        ProgramMissing: it is not there, or could not be built.
    """
    source = HERE / "compose"
    state = hashlib.sha256(b"".join((source / name).read_bytes() for name in ("main.go", "go.mod", "go.sum")))
    kept = FILES / f"compose-{state.hexdigest()[:12]}"
    if kept.exists():
        return kept
    if not bring:
        raise ProgramMissing(f"there is no {kept.name} in {FILES}: run make check-programs")
    if shutil.which("go") is None:
        raise ProgramMissing("the check of compose.yaml is built with Go, and there is no go in PATH: install Go 1.24")
    with _kept(kept) as target:
        _run(
            ["go", "build", "-mod=readonly", "-trimpath", "-buildvcs=false", "-o", str(target), "."],
            source,
            "build the check of compose.yaml",
        )
    return kept


@contextlib.contextmanager
def _kept(kept: Path) -> Iterator[Path]:
    """A place in a folder of its own, moved to `kept` at the end: who is killed on the way leaves no half program."""
    FILES.mkdir(parents=True, exist_ok=True)
    with (FILES / "lock").open("w") as lock, tempfile.TemporaryDirectory(dir=FILES) as folder:
        fcntl.flock(lock, fcntl.LOCK_EX)
        made = Path(folder) / kept.name
        yield made
        made.rename(kept)


def _run(command: Sequence[str], folder: Path, purpose: str) -> None:
    done = subprocess.run(command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stdout + done.stderr).strip()[-2000:]
        raise ProgramMissing(f"could not {purpose}: {command[0]} ended with {done.returncode}: {said}")


def main() -> int:
    """Brings both; 1 where one cannot be had."""
    failed = 0
    for program in (promtool, compose):
        try:
            sys.stdout.write(f"{program(bring=True)}\n")
        except ProgramMissing as error:
            sys.stderr.write(f"{Path(__file__).name}: {error}\n")
            failed = 1
    return failed


if __name__ == "__main__":
    sys.exit(main())
