"""The programs that check what is deployed, brought by package name into `var/checks`.

    python deploy/checks/programs.py        brings what is not there yet, and says where it is

- `promtool`, Prometheus' own: what is in PATH, or else from the package `prometheus` of Debian and its likes, which is
  unpacked and not installed.
- `compose`, built with Go from `deploy/checks/compose`: the Compose specification's own library, at the version and
  with the hashes that stand there.
"""

from __future__ import annotations

import shutil
import sys
from functools import partial
from pathlib import Path

HERE = Path(__file__).resolve().parent
if str(HERE.parent) not in sys.path:  # loaded by its path, it finds its neighbours all the same
    sys.path.append(str(HERE.parent))

import brought  # noqa: E402

FILES = HERE.parents[1] / "var" / "checks"
"""Where the programs are kept."""

COMPOSE = HERE / "compose"


class ProgramMissing(RuntimeError):
    """A program cannot be had here; the message says why and what to do."""


_run = partial(brought.run, failed=ProgramMissing)


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
    brought.once(kept, _unpack_promtool)
    return kept


def _unpack_promtool(made: Path) -> None:
    download = ["apt-get", "--quiet", "download", "prometheus"], "download the package prometheus"
    try:
        _run(*download, folder=made.parent)
    except ProgramMissing:
        # A new machine knows no packages yet.
        _run(["apt-get", "--quiet", "update"], "bring the list of packages", folder=made.parent)
        _run(*download, folder=made.parent)
    [package] = made.parent.glob("prometheus_*.deb")
    _run(["dpkg-deb", "--extract", package.name, "unpacked"], "unpack the package prometheus", folder=made.parent)
    (made.parent / "unpacked" / "usr" / "bin" / "promtool").rename(made)


def compose(*, bring: bool = False) -> Path:
    """What reads a Compose file as Docker Compose does.

    Args:
        bring: build it where it is not there.

    Raises:
        ProgramMissing: it is not there, or could not be built.
    """
    kept = FILES / f"compose-{brought.state(*(COMPOSE / name for name in ('main.go', 'go.mod', 'go.sum')))}"
    if kept.exists():
        return kept
    if not bring:
        raise ProgramMissing(f"there is no {kept.name} in {FILES}: run make check-programs")
    if shutil.which("go") is None:
        raise ProgramMissing("the check of compose.yaml is built with Go, and there is no go in PATH: install Go 1.24")
    brought.once(kept, _build_compose)
    return kept


def _build_compose(made: Path) -> None:
    command = ["go", "build", "-mod=readonly", "-trimpath", "-buildvcs=false", "-o", str(made), "."]
    _run(command, "build the check of compose.yaml", folder=COMPOSE)


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
