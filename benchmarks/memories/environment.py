"""Environments of their own for peers that want other packages than Perdure has."""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path

from contestants import avalanche
from contestants.child import run_child
from contestants.contest import Unavailable

RENATE = "renate==0.5.2"
SAME = ("torch", "transformers", "numpy", "pillow")
"""Packages that Renate's buffers import, in the versions that are here."""


def python_of(name: str, folder: Path) -> Path:
    """The Python that runs the contestant `name`; its environment is made in `folder` where there is none.

    Raises:
        Unavailable: it cannot be made.
    """
    if name.startswith("avalanche"):
        return avalanche.environment(folder / "avalanche")
    if name.startswith("renate"):
        return _renate(folder / "renate")
    return Path(sys.executable)


def _renate(folder: Path) -> Path:
    python = folder / "bin" / "python"
    if (folder / avalanche.MARK).exists():
        return python
    uv = Path(sys.executable).parent / "uv"
    if not uv.exists():
        raise Unavailable(f"Renate is not installed, and there is no {uv.name} beside {sys.executable} to bring it")
    run_child([sys.executable, "-m", "venv", "--without-pip", str(folder)])
    install = [str(uv), "pip", "install", "--quiet", "--python", str(python)]
    run_child([*install, *(f"{name}=={version(name)}" for name in SAME)])
    # Not with what it asks for: PyTorch before 1.13.2, of which there is none for this Python.
    run_child([*install, "--no-deps", RENATE])
    (folder / avalanche.MARK).touch()
    return python
