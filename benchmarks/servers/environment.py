"""An environment of its own for each peer, with the versions that its file in `requirements/` names."""

from __future__ import annotations

import hashlib
import shutil
import sys
import sysconfig
from pathlib import Path

from contestants.child import run_child

REQUIREMENTS = Path(__file__).parent / "requirements"
MARK = "complete"


def requirements(name: str) -> Path:
    """The file with the pinned packages of an environment."""
    return REQUIREMENTS / f"{name}.txt"


def environment(name: str, folder: Path, *, fresh: bool = False, seeing_ours: bool = False) -> Path:
    """The Python of the environment `name`; made in `folder` where there is none with these very packages.

    The files name every package, so nothing is resolved anew. With `seeing_ours` the packages of this Python are seen
    there too, behind its own.

    `uv` is used where it lies beside this Python: its cache shares files between environments, so that PyTorch stands
    on the disk once. Otherwise pip brings everything for each.

    Raises:
        Unavailable: it cannot be made; with the reason.
    """
    wanted = requirements(name)
    place = folder / name
    python = place / "bin" / "python"
    ours = sysconfig.get_path("purelib") if seeing_ours else ""
    digest = hashlib.sha256(wanted.read_bytes() + f"{sys.version} {ours}".encode()).hexdigest()
    mark = place / MARK
    if not fresh and mark.is_file() and mark.read_text(encoding="utf-8") == digest:
        return python
    shutil.rmtree(place, ignore_errors=True)
    uv = Path(sys.executable).parent / "uv"
    if uv.exists():
        run_child([sys.executable, "-m", "venv", "--without-pip", str(place)])
        run_child([str(uv), "pip", "install", "--quiet", "--no-deps", "--python", str(python), "-r", str(wanted)])
    else:
        run_child([sys.executable, "-m", "venv", str(place)])
        run_child([str(python), "-m", "pip", "install", "--quiet", "--no-deps", "-r", str(wanted)])
    if seeing_ours:
        packages = next((place / "lib").glob("python*")) / "site-packages"
        (packages / "ours.pth").write_text(f"{ours}\n", encoding="utf-8")
    mark.write_text(digest, encoding="utf-8")
    return python
