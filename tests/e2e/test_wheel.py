"""What is distributed: the wheel, installed outside the tree, and the editable install."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from perdure import __version__

pytestmark = pytest.mark.e2e

TREE = Path(__file__).resolve().parents[2]
PACKAGES = {"perdure": "src", "perdure_replay": "replay", "perdure_services": "services"}

WHERE = (
    "import json, perdure, perdure_replay, perdure_services as services; "
    "print(json.dumps([one.__file__ for one in (perdure, perdure_replay, services)]))"
)


def run(*command: str | Path, cwd: Path) -> str:
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("PERDURE_", "PYTHON"))}
    ran = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=200,
        env={**environ, "OMP_NUM_THREADS": "1", "PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
    )
    assert ran.returncode == 0, f"{' '.join(map(str, command))}\n{ran.stdout}\n{ran.stderr}"
    return ran.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, TREE, cwd=out)
    (found,) = out.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` of an environment that has the wheel, and of the present one everything but Perdure."""
    folder = tmp_path_factory.mktemp("installed")
    run(sys.executable, "-m", "venv", folder, cwd=folder)
    python = folder / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", wheel, cwd=folder)
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip())
    # A path that a .pth file adds is searched last, and .pth files in it, the editable install's too, are not read.
    (site / "present.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    return folder / "bin"


def test_everything_is_in_the_wheel_and_nothing_else(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name.split("/")[0] for name in names} == {*PACKAGES, f"perdure-{__version__}.dist-info"}
    for package, folder in PACKAGES.items():
        root = TREE / folder / package
        there = {
            file.relative_to(TREE / folder).as_posix()
            for file in root.rglob("*")
            if file.is_file() and "__pycache__" not in file.parts
        }
        assert there <= names, sorted(there - names)
        assert f"{package}/py.typed" in names
    assert any(name.startswith("perdure_replay/migrations/0001_") for name in names)
    assert "perdure/judge/templates/page.html.j2" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_wheel_runs_outside_the_tree(installed, tmp_path, tiny_encoder):
    assert run(installed / "perdure", "--version", cwd=tmp_path) == f"{__version__}\n"
    for file in json.loads(run(installed / "python", "-c", WHERE, cwd=tmp_path)):
        assert Path(file).is_relative_to(installed.parent), file
    help_page = run(installed / "perdure", "--help", cwd=tmp_path)
    assert all(f" {name} " in help_page for name in ("demo", "fit", "serve", "train", "update"))
    rows = [
        {"text": f"{word} {filler} please", "label": label}
        for label, words in {"refund": "refund money back", "parcel": "parcel late order"}.items()
        for word in words.split()
        for filler in ["where", "is", "my", "the", "want", "help", "can"]
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    # Migrations, templates and entry points are all needed for this.
    settings = ("--set", "model.features=256", "--set", "lora.enabled=false", "--model", str(tiny_encoder))
    result = json.loads(run(installed / "perdure", "fit", "--data", "rows.jsonl", *settings, "--json", cwd=tmp_path))
    assert result["champion"] == "v000001-head"
    report = tmp_path / "var" / "perdure" / "registry" / "versions" / "v000001-head" / "report.html"
    assert "Turn 1" in report.read_text(encoding="utf-8")


def test_the_editable_install_runs_outside_the_tree(tmp_path):
    if not Path(json.loads(run(sys.executable, "-c", WHERE, cwd=tmp_path))[0]).is_relative_to(TREE):
        pytest.skip("Perdure is not installed editable here")
    perdure = Path(sys.executable).with_name("perdure")
    assert run(perdure, "--version", cwd=tmp_path) == f"{__version__}\n"
    found = [Path(file) for file in json.loads(run(sys.executable, "-c", WHERE, cwd=tmp_path))]
    assert found == [TREE / folder / package / "__init__.py" for package, folder in PACKAGES.items()]
    program = "from perdure_replay.store import migrations; print(len(migrations()))"
    assert int(run(sys.executable, "-c", program, cwd=tmp_path)) >= 1
