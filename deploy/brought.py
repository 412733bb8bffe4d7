"""What is brought or built once on this machine, and the programs that do it."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path


def state(*files: Path) -> str:
    """Twelve digits that follow from what the files hold."""
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]


def once(target: Path, make: Callable[[Path], None]) -> None:
    """Makes the file or folder `target`, by one process at a time, unless another one has done so meanwhile.

    Args:
        target: where it is kept, beside the file by which processes wait for each other.
        make: makes it at the place that it is given. That lies in a folder of its own, which is thrown away at the end.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with (target.parent / "lock").open("w") as lock:
        # Maven's own store is not made for two that download at once either.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            with whole(target) as made:
                make(made)


@contextlib.contextmanager
def whole(target: Path) -> Iterator[Path]:
    """A place for the file or folder that becomes `target`: who is killed on the way leaves no half of it."""
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as folder:
        made = Path(folder) / target.name
        yield made
        made.rename(target)


def run(
    command: Sequence[str],
    purpose: str,
    *,
    failed: type[Exception],
    said: str = "",
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Runs `command` in `folder`, with `said` as its input.

    Raises:
        failed: it ended with another status than 0; what it said is in the message.
    """
    done = subprocess.run(command, input=said, capture_output=True, text=True, check=False, cwd=folder, env=environment)
    if done.returncode:
        told = "\n".join(part.strip()[-2000:] for part in (done.stderr, done.stdout)).strip()
        raise failed(f"could not {purpose}: {Path(command[0]).name} ended with {done.returncode}: {told}")
    return done


def program(name: str, called: str, remedy: str, *, use: str, missing: type[Exception]) -> str:
    """The path of the program `name`.

    Raises:
        missing: it is not in PATH; `use` says in the message what it would do.
    """
    found = shutil.which(name)
    if found is None:
        raise missing(f"{called} {use}, and there is no {name!r} in PATH: {remedy}")
    return found
