"""The programs that these tests run, which no package holds: the API server and Helm.

Where one cannot be had the tests are skipped, but in CI they fail.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from .namespace import ROOT


@cache
def module(path: str) -> ModuleType:
    """A program in `deploy` or `helm`, which no package holds."""
    file = ROOT / path
    spec = importlib.util.spec_from_file_location(f"cluster_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    loaded = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def fetched() -> Any:
    """Helm, and the definitions of the operators' kinds."""
    programs = module("helm/programs.py")
    try:
        return programs.fetch()
    except programs.ProgramMissing as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))


def server_in(folder: Path, files: Any, **options: bool) -> Any:
    """A started API server with the definitions of the operators' kinds."""
    programs = module("deploy/cluster/api_server.py")
    try:
        started = programs.ApiServer(folder, **options).start()
    except programs.ProgramMissing as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))
    with contextlib.ExitStack() as stack:
        stack.enter_context(started)
        started.kubectl("create", *(f"--filename={file}" for file in files.definitions))
        started.until(lambda: established(started), "the operators' kinds are known")
        stack.pop_all()
    return started


def established(server: Any) -> bool:
    """Whether all definitions count."""
    found = json.loads(server.kubectl("get", "customresourcedefinitions", "--output=json"))["items"]
    return all(
        any(
            one["type"] == "Established" and one["status"] == "True"
            for one in (definition["status"].get("conditions") or [])
        )
        for definition in found
    )
