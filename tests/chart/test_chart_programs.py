"""What the chart is checked with is brought whole or not at all, and is what it says it is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture
def elsewhere(programs_module: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module, with nothing brought yet."""
    monkeypatch.setattr(programs_module, "FILES", tmp_path / "helm")
    return programs_module


@pytest.fixture
def go(tmp_path: Path) -> Callable[[str, Path], str]:
    """A `go` that says of each module what a test wants."""

    def make(checksum: str, folder: Path) -> str:
        program = tmp_path / "go"
        program.write_text(f"#!/bin/sh\necho '{json.dumps({'Sum': checksum, 'Dir': str(folder)})}'\n", encoding="utf-8")
        program.chmod(0o755)
        return str(program)

    return make


def test_what_is_there_needs_no_program(
    programs: object, programs_module: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert programs_module.fetch() == programs


def test_missing_program_is_named(elsewhere: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(elsewhere.ProgramMissing, match=r"there is no 'go' in PATH: apt-get install golang"):
        elsewhere.fetch()


def test_another_machine_is_told(elsewhere: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elsewhere.platform, "machine", lambda: "riscv64")
    with pytest.raises(elsewhere.ProgramMissing, match="on riscv64"):
        elsewhere.fetch()


def test_what_fails_on_the_way_leaves_nothing(elsewhere: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise elsewhere.FetchError("the line was cut")

    monkeypatch.setattr(elsewhere, "_unpack_packages", fail)
    with pytest.raises(elsewhere.FetchError, match="the line was cut"):
        elsewhere.fetch()
    assert [file.name for file in elsewhere.FILES.iterdir()] == ["lock"]


def test_changed_pins_are_brought_anew(elsewhere: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    brought = []
    monkeypatch.setattr(elsewhere, "_unpack_packages", lambda *_: brought.append("packages"))
    monkeypatch.setattr(elsewhere, "_copy_definitions", lambda *_: None)
    monkeypatch.setattr(elsewhere, "_generate_strimzi", lambda *_: None)
    first = elsewhere.fetch()
    assert elsewhere.fetch() == first
    monkeypatch.setattr(elsewhere, "MODULES", {})
    assert elsewhere.fetch() != first
    assert len(brought) == 2


def test_module_with_another_checksum_is_refused(
    elsewhere: ModuleType, go: Callable[[str, Path], str], tmp_path: Path
) -> None:
    (tmp_path / "module").mkdir()
    (tmp_path / "module" / "one.yaml").write_text("kind: X", encoding="utf-8")
    module = elsewhere.Module("example.com/x", "v1.0.0", "h1:right=", ("*.yaml",))
    with pytest.raises(elsewhere.FetchError, match=r"example.com/x@v1.0.0 has the checksum h1:wrong=, not h1:right="):
        elsewhere._copy_definitions(go("h1:wrong=", tmp_path / "module"), module, tmp_path / "target")
    elsewhere._copy_definitions(go("h1:right=", tmp_path / "module"), module, tmp_path / "target")
    assert (tmp_path / "target" / "one.yaml").read_text(encoding="utf-8") == "kind: X"
    missing = elsewhere.Module("example.com/x", "v1.0.0", "h1:right=", ("*.json",))
    with pytest.raises(elsewhere.FetchError, match=r"has no \*\.json: correct MODULES"):
        elsewhere._copy_definitions(go("h1:right=", tmp_path / "module"), missing, tmp_path / "none")


def test_every_package_is_pinned_by_its_content(programs_module: ModuleType) -> None:
    lines = programs_module.PACKAGES.read_text(encoding="utf-8").splitlines()
    pinned = [line for line in lines if not line.startswith("#")]
    assert len(pinned) == 3
    assert all("==" in line and "--hash=sha256:" in line for line in pinned)
