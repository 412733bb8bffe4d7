"""A real Kubernetes API server with what production has in it, and Helm."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from .namespace import VALUES, Helm, Namespace, namespace_maker, said_name
from .programs import fetched, server_in


@pytest.fixture(scope="session")
def files() -> Any:
    """Helm, and the definitions of the operators' kinds."""
    return fetched()


@pytest.fixture(scope="session")
def server(files: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One API server for all tests but those of the scheduler."""
    with server_in(tmp_path_factory.mktemp("api"), files) as started:
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
def namespaces(server: Any) -> Callable[[], Namespace]:
    """Makes namespaces; nothing runs in them, so they are left until the server ends."""
    return namespace_maker(server)


@pytest.fixture(scope="session", params=VALUES, ids=said_name)
def installed(
    request: pytest.FixtureRequest, helms: dict[int, Helm], namespaces: Callable[..., Namespace]
) -> tuple[Namespace, str]:
    """A namespace with the release `shop`, of each file of values in turn, and its manifest."""
    here = namespaces()
    here.install(helms[4], "shop", request.param)
    return here, here.helm(helms[4], "get", "manifest", "shop")
