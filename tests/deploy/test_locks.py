"""What the images install: the very versions that are tested here, each as little as it needs."""

from __future__ import annotations

import re
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
LOCKS = ROOT / "deploy" / "locks"
EXTRAS = {
    "serving": ("grpc", "otel"),
    "serving-gpu": ("gpu", "grpc", "otel", "demo"),
    "trainer": ("cpu", "demo"),
    "trainer-gpu": ("gpu", "demo"),
}
TRAINING = {"torch", "transformers", "onnx", "onnxscript", "scipy", "pandas", "evidently", "matplotlib", "apscheduler"}
ONLY_GPU = re.compile(r"faiss-gpu|nvidia-[a-z-]+-cu12")
"""What the environment of the tests has not: the tests have no GPU."""


@cache
def locked(file: Path) -> dict[str, tuple[str, frozenset[str]]]:
    """Version and hashes of each package of a lock."""
    found: dict[str, tuple[str, frozenset[str]]] = {}
    for entry in re.split(r"\n(?=[a-z0-9])", re.sub(r"^\s*#.*\n", "", file.read_text("utf-8"), flags=re.M)):
        head, *hashes = re.split(r"\s*\\\s*--hash=", entry.strip())
        match = re.fullmatch(r"([\w.-]+)==([^\s;]+)(?:\s*;.*)?", head)
        assert match is not None, head
        assert hashes, f"{head} has no hash"
        found[canonicalize_name(match[1])] = (match[2], frozenset(one.split("\n")[0].strip() for one in hashes))
    return found


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    tree: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    return tree


def test_each_image_has_a_lock_and_each_lock_an_image() -> None:
    assert {file.stem for file in LOCKS.glob("*.lock")} == {*EXTRAS, "build"}


@pytest.mark.parametrize("image", EXTRAS)
def test_a_lock_holds_all_that_is_asked_for(image: str, project: dict[str, Any]) -> None:
    found = locked(LOCKS / f"{image}.lock")
    wanted = [*project["dependencies"]]
    for extra in EXTRAS[image]:
        wanted += project["optional-dependencies"][extra]
    for one in map(Requirement, wanted):
        if one.marker is None or one.marker.evaluate():
            version, _ = found[canonicalize_name(one.name)]
            assert one.specifier.contains(version, prereleases=True), f"{one}: make lock"


@pytest.mark.parametrize("image", [*EXTRAS, "build"])
def test_images_have_the_versions_that_are_tested(image: str) -> None:
    tested = locked(ROOT / "requirements.lock")
    for name, (version, hashes) in locked(LOCKS / f"{image}.lock").items():
        if name in tested:
            assert (version, hashes) == tested[name], f"{name}: make lock"
        else:
            assert ONLY_GPU.fullmatch(name) or image == "build", f"{name} is in no test: make lock"


def test_the_base_install_brings_nothing_that_only_training_needs(project: dict[str, Any]) -> None:
    names = {canonicalize_name(Requirement(one).name) for one in project["dependencies"]}
    assert not names & TRAINING
    for extra in ("cpu", "gpu"):
        brought = {canonicalize_name(Requirement(one).name) for one in project["optional-dependencies"][extra]}
        assert brought >= TRAINING, f"{extra} must train"


def test_the_serving_image_is_small() -> None:
    found = locked(LOCKS / "serving.lock")
    assert not found.keys() & TRAINING
    assert not [name for name in found if name.startswith(("nvidia-", "faiss", "triton"))]
    assert len(found) < 70


def test_what_makes_the_images_is_pinned() -> None:
    assert {"uv", "hatchling"} <= locked(LOCKS / "build.lock").keys()
