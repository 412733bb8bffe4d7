"""A real Kubernetes API server with what production has in it, and Helm."""

from __future__ import annotations

import importlib.util
import itertools
import os
import sys
from collections.abc import Callable, Iterator
from functools import cache
from types import ModuleType
from typing import Any

import pytest
import yaml

from .namespace import INSTALLER, ROOT, VALUES, Helm, Namespace, objects_of, said_name


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


@pytest.fixture(scope="session")
def files() -> Any:
    """Helm, and the definitions of the operators' kinds."""
    programs = module("helm/programs.py")
    try:
        return programs.fetch()
    except programs.ProgramMissing as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def server(files: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One API server for all tests, with the CRDs of the operators that the chart knows."""
    programs = module("deploy/cluster/api_server.py")
    try:
        started = programs.ApiServer(tmp_path_factory.mktemp("api")).start()
    except programs.ProgramMissing as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))
    with started:
        for file in files.definitions:
            started.kubectl("create", f"--filename={file}")
        started.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=60s")
        yield started


@pytest.fixture(scope="session")
def helms(files: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Helm]:
    """Helm 3 and 4."""
    return {
        int(major): Helm(str(program), tmp_path_factory.mktemp(f"helm-{major}"))
        for major, program in files.helm.items()
    }


@pytest.fixture(params=[3, 4], ids=["helm3", "helm4"])
def helm(request: pytest.FixtureRequest, helms: dict[int, Helm]) -> Helm:
    """Each of them in turn."""
    return helms[request.param]


@pytest.fixture(scope="session")
def namespaces(server: Any) -> Callable[..., Namespace]:
    """Makes namespaces; nothing runs in them, so they are left until the server ends."""
    installer = server.user(INSTALLER)
    numbers = itertools.count(1)

    def make() -> Namespace:
        name = f"test-{next(numbers)}"
        server.kubectl("create", "--filename=-", said=yaml.safe_dump_all(objects_of(name)))
        made = Namespace(name, server, installer)
        server.until(made.settled, f"{name} has an account, and its quota is counted")
        return made

    return make


@pytest.fixture(scope="session", params=VALUES, ids=said_name)
def installed(
    request: pytest.FixtureRequest, helms: dict[int, Helm], namespaces: Callable[..., Namespace]
) -> tuple[Namespace, str]:
    """A namespace with the release `shop`, of each file of values in turn, and its manifest."""
    here = namespaces()
    here.install(helms[4], "shop", request.param)
    return here, here.helm(helms[4], "get", "manifest", "shop")
