"""The images, made in folders by the Dockerfile's own commands, and run as another user on a read-only system.

`make test-images` runs this; it installs some gigabytes, needs root for the other user, and no Docker. What it cannot
say: how a container engine builds and runs them, and anything about a GPU.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import Distribution, distributions
from pathlib import Path

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(3000)]

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text(encoding="utf-8")
MADE = ROOT / "var" / "images"
USER = "10001"
STATE = ("registry", "memory", "shards", "spool", "stream", "var")

# What a container has: a system that cannot be written, /tmp in memory, volumes, another user without any right.
CONTAINER = """
mount --make-rprivate /
mount --bind "$STATE" "$STATE"
mount -t tmpfs -o mode=1777 tmpfs "$SCRATCH"
mount -o remount,ro,bind /
cd "$STATE"
exec setpriv --reuid 10001 --regid 10001 --clear-groups --no-new-privs --inh-caps=-all --bounding-set=-all "$@"
"""


def stage(name: str) -> list[str]:
    """The commands that `RUN` has in a stage, each on one line."""
    text = DOCKERFILE.split(f" AS {name}\n")[1].split("\nFROM ")[0]
    text = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    return re.findall(r"^RUN (.+)$", re.sub(r"\\\n\s*", "", text), re.M)


def environment() -> dict[str, str]:
    """What the images set, with this machine's places."""
    text = DOCKERFILE.split(" AS runtime\n")[1].split("\nRUN ")[0]
    found = dict(re.findall(r"^(?:ENV )?\s*([A-Z_]+)=(\S+)", text, re.M))
    return {name: value for name, value in found.items() if name not in ("PATH", "VERSION", "REVISION")}


@dataclass(frozen=True)
class Image:
    """What would be in an image."""

    name: str
    folder: Path
    """Stands for `/`."""

    @property
    def venv(self) -> Path:
        return self.folder / "opt" / "perdure" / "venv"

    @property
    def megabytes(self) -> float:
        return sum(file.lstat().st_size for file in self.venv.rglob("*") if not file.is_dir()) / 1e6

    @property
    def packages(self) -> list[Distribution]:
        [site] = self.venv.glob("lib/python3.*/site-packages")
        return list(distributions(path=[str(site)]))


def python_for_everybody() -> str:
    """A Python 3.11 that the other user may run; root's own may lie where nobody else may look."""
    for python in (os.path.realpath(sys.executable), "/usr/local/bin/python3.11", "/usr/bin/python3.11"):
        asked = ["setpriv", "--reuid", USER, "--regid", USER, "--clear-groups", "--no-new-privs", "--inh-caps=-all"]
        asked += [python, "-c", "import ssl, sqlite3"]
        if Path(python).exists() and subprocess.run(asked, capture_output=True, check=False, cwd="/").returncode == 0:
            return python
    pytest.skip(f"no Python 3.11 here that user {USER} may run: install one below /usr")


@pytest.fixture(scope="session", autouse=True)
def _tools() -> None:
    missing = [name for name in ("unshare", "setpriv", "mount") if shutil.which(name) is None]
    if os.geteuid() or missing:
        pytest.skip(f"another user and a read-only system need root{f', and {missing}' if missing else ''}")


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Image]:
    """Makes an image in a folder, once for each state of what it is made of."""
    python = python_for_everybody()
    work = tmp_path_factory.mktemp("build")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, work / name)
    for name in ("src", "replay", "services"):
        shutil.copytree(ROOT / name, work / name, ignore=shutil.ignore_patterns("__pycache__"))

    def run(command: str, folder: Path) -> None:
        """A command of the Dockerfile, with `folder` for the image's `/`, and `work` for what does not get into it."""
        places = {
            r"/opt/perdure": f"{folder}/opt/perdure",
            r"/opt/build": f"{work}/opt/build",
            r"/locks/": f"{ROOT}/deploy/locks/",
            r"/wheel": f"{work}/wheel",
            r"/usr/local/bin/python3(?=\s)": python,
        }
        for place, here in places.items():
            command = re.sub(rf"(^|[\s=]){place}", rf"\g<1>{here}", command)
        # `python` of the base image makes the installer's environment; the cache is this machine's.
        path = f"{work}/opt/build/bin:{Path(sys.executable).parent}:{os.environ['PATH']}"
        there = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
        environ = {**there, "PATH": path, "UV_PYTHON_DOWNLOADS": "never"}
        done = subprocess.run(
            ["sh", "-ec", command], cwd=work, env=environ, capture_output=True, text=True, timeout=2400, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"

    made: dict[str, Image] = {}
    for command in (*stage("build"), *stage("wheel")):
        run(command, work)
    [wheel] = (work / "wheel").glob("*.whl")

    def make(name: str) -> Image:
        if name not in made:
            folder = MADE / name
            shutil.rmtree(folder, ignore_errors=True)
            for command in stage(f"packages-{name}"):
                run(command, folder)
            [install] = [command for command in stage(name) if "--mount=" in command]
            run(re.sub(r"--mount=\S+\s+", "", install).replace("/*.whl", f"/{wheel.name}"), folder)
            made[name] = Image(name, folder)
        return made[name]

    return make


@dataclass(frozen=True)
class Container:
    """Runs commands of images over the same volumes."""

    state: Path
    scratch: Path

    def start(self, image: Image, *command: str, **named: object) -> subprocess.Popen[str]:
        places = {"HOME": self.scratch, "TMPDIR": self.scratch, "MPLCONFIGDIR": self.scratch / "matplotlib"}
        environ = {**environment(), **{name: str(place) for name, place in places.items()}, "LANG": "C.UTF-8"}
        environ |= {"PATH": f"{image.venv}/bin:/usr/bin:/bin:/usr/sbin:/sbin", "OMP_NUM_THREADS": "1"}
        environ |= {"STATE": str(self.state), "SCRATCH": str(self.scratch)}
        words = ["unshare", "--mount", "sh", "-ec", CONTAINER, "sh", *command]
        return subprocess.Popen(words, env=environ, text=True, **named)  # type: ignore[call-overload, no-any-return]

    def run(self, image: Image, *command: str) -> str:
        process = self.start(image, *command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        out, errors = process.communicate(timeout=900)
        assert process.returncode == 0, f"{' '.join(command)}\n{out}\n{errors}"
        assert "Read-only file system" not in errors
        return str(out)


@pytest.fixture(scope="session")
def container(tmp_path_factory: pytest.TempPathFactory) -> Container:
    # Below `var`: pytest's own folders are for nobody else.
    place = MADE / "state"
    shutil.rmtree(place, ignore_errors=True)
    for name in STATE:
        (place / name).mkdir(parents=True)
    settings = {
        "registry": {"url": str(place / "registry")},
        "memory": {"path": str(place / "memory")},
        "stream": {"url": f"sqlite:{place / 'stream' / 'stream.db'}"},
        "spool": {"path": str(place / "spool")},
        "model": {"features": 512},
        "lora": {"enabled": False},
    }
    (place / "perdure.yaml").write_text(json.dumps(settings), encoding="utf-8")
    for path in (place, *place.rglob("*")):
        os.chown(path, int(USER), int(USER))
    scratch = MADE / "scratch"
    scratch.mkdir(exist_ok=True)
    return Container(place, scratch)


@pytest.fixture(scope="session")
def fitted(image: Callable[[str], Image], container: Container) -> Container:
    """Version 1, made by the trainer's image from the rows that it brings."""
    rows = (ROOT / "examples" / "support_desk" / "stream.jsonl").read_text(encoding="utf-8").splitlines()[:264]
    (container.state / "rows.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    told = container.run(
        image("trainer"), "perdure", "fit", "--data", "rows.jsonl", "--config", "perdure.yaml", "--json"
    )
    assert json.loads(told)["champion"] == "v000001-head"
    return container


@pytest.mark.parametrize("name", ["serving", "trainer"])
def test_every_file_belongs_to_a_package(
    image: Callable[[str], Image], name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """So that a bill of materials, which is made of the packages' metadata, misses nothing."""
    made = image(name)
    packages = made.packages
    with capsys.disabled():
        print(f"\n{name}: {made.megabytes:,.0f} MB in {len(packages)} packages")
    [site] = made.venv.glob("lib/python3.*/site-packages")
    owned = {(site / file).resolve() for package in packages for file in package.files or ()}
    assert all(package.files and package.version and package.metadata["Name"] for package in packages)
    loose = [
        file
        for file in site.rglob("*")
        if file.is_file() and "__pycache__" not in file.parts and file.resolve() not in owned
    ]
    # What uv itself puts into every environment.
    assert {file.name for file in loose} <= {"_virtualenv.py", "_virtualenv.pth"}, loose[:20]
    lock = (ROOT / "deploy" / "locks" / f"{name}.lock").read_text(encoding="utf-8")
    locked = set(re.findall(r"^([a-z0-9-]+)==", lock, re.M))
    found = {re.sub(r"[-_.]+", "-", package.metadata["Name"]).lower() for package in packages}
    assert found - locked == {"perdure"}
    if name == "serving":
        assert made.megabytes < 500, "the serving image is small"


def test_the_system_cannot_be_written_and_nobody_is_root(image: Callable[[str], Image], container: Container) -> None:
    made = image("serving")
    asked = (
        "import os, pathlib, json\n"
        "def writable(place):\n"
        "    try: (pathlib.Path(place) / 'written').write_text('x')\n"
        "    except OSError: return False\n"
        "    return True\n"
        f"places = {[str(made.venv), '/tmp', '/var/lib', '/', str(container.scratch), str(container.state)]!r}\n"
        "print(json.dumps([os.getuid(), os.getgroups(), [writable(place) for place in places]]))"
    )
    told = json.loads(container.run(made, "python", "-c", asked))
    assert told == [int(USER), [], [False, False, False, False, True, True]]


def test_the_serving_image_answers_with_a_version_that_was_made_before(
    image: Callable[[str], Image], fitted: Container, serving: Callable[..., str]
) -> None:
    url = serving(image("serving"))
    with urllib.request.urlopen(f"{url}/readyz", timeout=10) as answer:
        assert answer.status == 200
    body = json.dumps({"text": "where is my parcel, it should have come yesterday"}).encode()
    asked = urllib.request.Request(f"{url}/v1/predict", body, {"content-type": "application/json"})
    with urllib.request.urlopen(asked, timeout=10) as answer:
        told = json.load(answer)
    assert (told["version"], told["recorded"]) == ("v000001-head", True)
    assert told["label"] in ("track_order", "delivery_late")
    # The image asks itself so.
    [code] = {found for found in re.findall(r'CMD \["python", "-c", "(.+)"\]', DOCKERFILE) if ":8000/" in found}
    health = code.replace("http://127.0.0.1:8000", url)
    fitted.run(image("serving"), "python", "-c", health)
    with pytest.raises(AssertionError):
        fitted.run(image("serving"), "python", "-c", health.replace("/healthz", "/nothing"))


def test_the_trainers_image_runs_a_turn(image: Callable[[str], Image], fitted: Container) -> None:
    fitted.run(image("trainer"), "perdure", "train", "--once", "--config", "perdure.yaml")
    versions = json.loads(fitted.run(image("serving"), "perdure", "versions", "--json", "--config", "perdure.yaml"))
    assert versions["champion"]
    assert json.loads(fitted.run(image("serving"), "perdure", "memory", "--json", "--config", "perdure.yaml"))[
        "samples"
    ]


@pytest.fixture
def serving(fitted: Container, tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Starts `perdure serve`; its address."""
    started: list[subprocess.Popen[str]] = []

    def start(made: Image) -> str:
        log = (tmp_path / "serve.log").open("w")
        command = ("perdure", "serve", "--port", "0", "--config", "perdure.yaml")
        started.append(fitted.start(made, *command, stdout=subprocess.PIPE, stderr=log))
        log.close()
        pipe = started[-1].stdout
        assert pipe is not None
        line = pipe.readline()
        found = re.search(r"serves version v000001-head at (http://127\.0\.0\.1:\d+)", line)
        assert found is not None, line + (tmp_path / "serve.log").read_text()
        return found[1]

    yield start
    for process in started:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert process.stdout is not None
        process.stdout.close()
    assert "Read-only file system" not in (tmp_path / "serve.log").read_text()
