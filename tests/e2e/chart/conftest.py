"""A release of the chart whose pods are processes of this machine, before a real broker."""

from __future__ import annotations

import importlib.util
import os
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from uuid import uuid4

import pytest

from .pods import Cluster, render

ROOT = Path(__file__).parents[3]

TOPICS = {
    "refund": "refund money back pay",
    "parcel": "parcel late order where",
    "login": "password login account email",
    "card": "card stolen lost limit",
    "phone": "phone number change update",
}
FILLERS = ["is", "my", "the", "a", "i", "want", "to", "please", "help", "can", "you", "not"]


def texts(label: str, count: int, seed: int = 0) -> list[str]:
    """`count` different sentences on a topic, always the same ones."""
    rng = random.Random(f"{label} {seed}")
    found: dict[str, None] = {}
    while len(found) < count:
        words = rng.sample(TOPICS[label].split(), 2) + rng.sample(FILLERS, 4)
        rng.shuffle(words)
        found[" ".join(words)] = None
    return list(found)


def _programs() -> ModuleType:
    """`helm/programs.py`, which no package holds."""
    spec = importlib.util.spec_from_file_location("perdure_helm_programs", ROOT / "helm" / "programs.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def helm_4() -> Path:
    """Helm 4. Where it cannot be brought the test is skipped, but in CI it fails."""
    module = _programs()
    try:
        return Path(module.fetch().helm["4"])
    except module.ProgramMissing as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def install(
    helm_4: Path, kafka_broker: Any, tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., Cluster]]:
    """Renders a release before a topic of its own; no pod is started yet. Names of values have `__` for the dots."""
    made: list[Cluster] = []

    def render_it(**sets: str) -> Cluster:
        objects = render(
            helm_4,
            ROOT / "helm" / "perdure",
            Path(__file__).with_name("processes-values.yaml"),
            stream__kafka__bootstrapServers=kafka_broker.address,
            stream__topic=f"events-{uuid4().hex[:12]}",
            stream__group=f"group-{uuid4().hex[:12]}",
            config__model__name="/opt/encoder",
            **sets,
        )
        made.append(Cluster(objects, tmp_path_factory.mktemp("cluster"), {"/opt/encoder": tiny_encoder}))
        return made[-1]

    yield render_it
    for cluster in made:
        cluster.close()
