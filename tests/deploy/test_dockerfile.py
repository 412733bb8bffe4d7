"""The images, as far as can be told without building them: `make test-images` runs their install commands."""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import typer

from perdure import __version__, cli

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "deploy" / "Dockerfile"
TARGETS = ("serving", "serving-gpu", "trainer", "trainer-gpu")


@dataclass(frozen=True)
class Instruction:
    """`COPY`, say, its options (`--from=build`), and the rest of it on one line."""

    name: str
    options: tuple[str, ...]
    rest: str

    @property
    def taken_from(self) -> list[str]:
        """Stages that it takes files from."""
        found = [re.search(r"(?:^--|[=,])from=([^,]+)", option) for option in self.options]
        return [match[1] for match in found if match]

    @property
    def command(self) -> list[str]:
        """What runs, in the exec form."""
        words: list[str] = json.loads(self.rest[self.rest.index("[") :])
        return words


@dataclass(frozen=True)
class Stage:
    name: str
    base: str
    instructions: list[Instruction]


def stages() -> dict[str, Stage]:
    """All stages, in order."""
    text = "\n".join(line for line in FILE.read_text("utf-8").splitlines() if not line.startswith("#"))
    found: dict[str, Stage] = {}
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        name, *words = line.split(" ")
        if not name or (name == "ARG" and not found):
            continue
        count = next((at for at, word in enumerate(words) if not word.startswith("--")), len(words))
        rest = " ".join(words[count:])
        if name == "FROM":
            base, _, called = rest.partition(" AS ")
            assert called, f"a stage without a name: {line}"
            assert called not in found, f"two stages are called {called}"
            found[called] = Stage(called, base, [])
        else:
            found[list(found)[-1]].instructions.append(Instruction(name, tuple(words[:count]), rest))
    return found


def made_of(target: str) -> list[Instruction]:
    """Everything that makes the image `target`, in order."""
    stage = stages()[target]
    return [*(made_of(stage.base) if stage.base in stages() else ()), *stage.instructions]


def last(target: str, name: str) -> Instruction:
    return [one for one in made_of(target) if one.name == name][-1]


def environment(target: str) -> dict[str, str]:
    pairs = [re.findall(r"(\w+)=(\S+)", one.rest) for one in made_of(target) if one.name == "ENV"]
    return dict(pair for some in pairs for pair in some)


def test_the_linter_finds_nothing() -> None:
    """With a version of the syntax that it knows, it would complain of every wrong instruction too."""
    linter = shutil.which("hadolint", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if linter is None:
        if os.environ.get("CI"):
            pytest.fail("there is no hadolint: make setup")
        pytest.skip("there is no hadolint: make setup")
    done = subprocess.run([linter, "--failure-threshold", "style", FILE], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
    wrong = subprocess.run([linter, "-"], input="FROM python\nRUN cd /x\n", capture_output=True, text=True, check=False)
    assert wrong.returncode == 1, "it finds nothing anywhere"


def test_targets_and_what_they_take_from_are_there() -> None:
    known: list[str] = []
    for name, stage in stages().items():
        assert stage.base in known or stage.base == "${BASE}", f"{name} is made of {stage.base}"
        for one in stage.instructions:
            assert set(one.taken_from) <= set(known), f"{name}: {one}"
        known.append(name)
    assert set(TARGETS) <= set(known)
    used = {stage.base for stage in stages().values()}
    used |= {source for stage in stages().values() for one in stage.instructions for source in one.taken_from}
    assert set(known) - used == set(TARGETS), "a stage that nothing is made of"


def test_the_base_image_is_pinned_and_can_be_pinned_harder() -> None:
    [base] = re.findall(r"^ARG BASE=(\S+)$", FILE.read_text("utf-8"), re.M)
    assert re.fullmatch(r"python:3\.11\.\d+-slim-[a-z]+", base)


def ignored(path: PurePosixPath) -> bool:
    """Whether the build does not see it: the last pattern that matches it, or a folder above it, decides."""
    answer = False
    for line in (FILE.parent / "Dockerfile.dockerignore").read_text("utf-8").splitlines():
        pattern = line.removeprefix("!")
        if not line or line.startswith("#"):
            continue
        places = [path, *path.parents][:-1]
        names = [str(place) for place in places]
        if any(fnmatch.fnmatch(name, pattern) or fnmatch.fnmatch(f"/{name}", pattern[2:]) for name in names):
            answer = not line.startswith("!")
    return answer


def copied() -> list[PurePosixPath]:
    """What is copied from this folder."""
    found = [one for stage in stages().values() for one in stage.instructions if one.name == "COPY"]
    return [PurePosixPath(word) for one in found if not one.taken_from for word in one.rest.split()[:-1]]


def test_what_is_copied_is_there_and_seen() -> None:
    assert len(copied()) > 8
    for path in copied():
        place = ROOT / path
        assert place.exists(), path
        for file in [place] if place.is_file() else place.rglob("*"):
            inside = PurePosixPath(file.relative_to(ROOT).as_posix())
            assert ignored(inside) == ("__pycache__" in inside.parts), inside


def test_nothing_else_is_seen() -> None:
    for name in (
        ".git/config",
        "var/x",
        "tests/conftest.py",
        "requirements.lock",
        "deploy/kafka/broker.py",
        "keys.json",
    ):
        assert ignored(PurePosixPath(name)), name
    seen = {path.parts[0] for path in copied()}
    for place in ROOT.iterdir():
        assert ignored(PurePosixPath(place.name)) or place.name in seen, f"{place.name} goes into the build for nothing"


@pytest.mark.parametrize("target", TARGETS)
def test_packages_are_locked(target: str) -> None:
    source = stages()[f"packages-{target}"].instructions
    [lock] = [one.rest.split()[0] for one in source if one.name == "COPY"]
    assert lock == f"deploy/locks/{target}.lock"
    [install] = [one.rest for one in source if one.name == "RUN"]
    assert f"-r /locks/{target}.lock" in install
    assert {"--require-hashes", "--compile-bytecode"} <= set(install.split())
    assert "--only-binary :all:" in install, "nothing is built, so nothing runs before it is looked at"
    # Perdure itself comes last, by the wheel alone: a change of the source changes one small layer.
    layers = [one for one in made_of(target) if one.name in ("COPY", "RUN")]
    [packages] = [at for at, one in enumerate(layers) if one.taken_from == [f"packages-{target}"]]
    [wheel] = [at for at, one in enumerate(layers) if "wheel" in one.taken_from]
    assert packages < wheel == len(layers) - 1
    assert {"--no-deps", "--offline", "--no-cache"} <= set(layers[wheel].rest.split())


@pytest.mark.parametrize("target", TARGETS)
def test_nobody_is_root(target: str) -> None:
    made = made_of(target)
    users = [one.rest for one in made if one.name == "USER"]
    assert users == ["10001:10001"]
    assert made.index(last(target, "USER")) > max(at for at, one in enumerate(made) if one.name == "RUN")
    [added] = [one.rest for one in made if one.name == "RUN" and "useradd" in one.rest]
    assert "--uid 10001 --user-group" in added
    assert "-o perdure -g perdure" in added
    folders = {word for word in added.split() if word.startswith("/var/lib/perdure")}
    assert {f"/var/lib/perdure/{name}" for name in ("registry", "memory", "spool", "shards", "var")} <= folders


@pytest.mark.parametrize("target", TARGETS)
def test_labels_and_environment(target: str) -> None:
    labels = dict(re.findall(r'org\.opencontainers\.image\.(\w+)="([^"]+)"', last(target, "LABEL").rest))
    assert {"title", "description", "licenses", "version", "revision"} <= labels.keys()
    [version] = [one.rest for one in made_of(target) if one.name == "ARG" and one.rest.startswith("VERSION=")]
    assert version == f"VERSION={__version__}"
    given = environment(target)
    assert given["PATH"] == "/opt/perdure/venv/bin:$PATH"
    assert given["HF_HUB_OFFLINE"] == given["TRANSFORMERS_OFFLINE"] == given["DO_NOT_TRACK"] == "1"
    # The root file system may be read-only.
    assert all(given[name].startswith("/tmp") for name in ("HOME", "MPLCONFIGDIR"))
    assert ("NVIDIA_VISIBLE_DEVICES" in given) == target.endswith("-gpu")
    assert not [one for one in made_of(target) if one.name == "ADD"]


@pytest.mark.parametrize("target", TARGETS)
def test_commands_exist_and_are_asked_where_they_listen(target: str) -> None:
    command = last(target, "CMD").command
    assert command[0] == "perdure"
    group: Any = typer.main.get_command(cli.build())
    with group.make_context("perdure", command[1:]) as context:
        _, parsed, rest = group.resolve_command(context, command[1:])
        parsed.make_context(command[1], list(rest), parent=context)
    port = last(target, "EXPOSE").rest
    assert port in (command if "serving" in target else command[-1].split("="))
    health = last(target, "HEALTHCHECK")
    assert health.command[:2] == ["python", "-c"]
    compile(health.command[2], "HEALTHCHECK", "exec")
    assert f"http://127.0.0.1:{port}/healthz" in health.command[2]
    assert {option.partition("=")[0] for option in health.options} == {
        *("--interval", "--timeout", "--retries", "--start-period")
    }
