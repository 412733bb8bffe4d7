"""The programs that check what is deployed, and where the files are."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Installs whole images; `make test-images` asks for it.
collect_ignore = [] if os.environ.get("PERDURE_TEST_IMAGES") else ["test_images.py"]


@cache
def programs() -> ModuleType:
    """`deploy/checks/programs.py`, which no package holds."""
    file = ROOT / "deploy" / "checks" / "programs.py"
    spec = importlib.util.spec_from_file_location("perdure_check_programs", file)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def had(program: Callable[[], Path]) -> Path:
    """Where `program` is; without it tests are skipped, but not in CI."""
    try:
        return program()
    except programs().ProgramMissing as error:
        if os.environ.get("CI"):
            pytest.fail(str(error))
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def promtool() -> Path:
    return had(programs().promtool)


@pytest.fixture(scope="session")
def compose_program() -> Path:
    return had(programs().compose)
