"""The Kafka broker's files on this machine, and the programs that they need.

They come from Maven Central by the coordinates in `pom.xml`, once for each state of that file.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import logging
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
FILES = HERE.parents[1] / "var" / "kafka"
"""Where the broker's files are kept, in a folder for each state of `pom.xml`."""

JAVA = 17
"""Oldest Java that this Kafka runs on."""

# Client compiler only, serial collector: on two cores a start takes half as long, and nothing runs beside it.
JVM = ("-Xms64m", "-Xmx512m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-XX:-UsePerfData")

logger = logging.getLogger(__name__)


class BrokerError(RuntimeError):
    """The broker cannot be had, started or ended; the message says why and what to do."""


class ProgramMissing(BrokerError):
    """Java, Maven or OpenSSL is not on this machine."""


def fetch() -> Path:
    """The folder with the broker's files; brought from Maven Central the first time, by one process at a time.

    Raises:
        ProgramMissing: Java or Maven is missing.
        BrokerError: Maven could not bring them; what it said is in the message.
    """
    java_program()
    pom = HERE / "pom.xml"
    target = FILES / f"files-{hashlib.sha256(pom.read_bytes()).hexdigest()[:12]}"
    if target.exists():
        return target
    maven = program("mvn", "Maven", "install it (on Debian: apt-get install maven)")
    FILES.mkdir(parents=True, exist_ok=True)
    with (FILES / "lock").open("w") as lock:
        # Maven's own store is not made for two that download at once either.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if target.exists():
            return target
        logger.info("bringing the broker's files into %s", target)
        with whole_folder(target) as made:
            goal = [maven, "--batch-mode", "--quiet", "--file", str(pom), "dependency:copy-dependencies"]
            run([*goal, "-DincludeScope=runtime", f"-DoutputDirectory={made}"], "bring the broker's files with Maven")
    return target


@contextlib.contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A new folder that becomes `target` at the end: who is killed on the way leaves no half of it."""
    made = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}-"))
    made.chmod(0o755)
    try:
        yield made
        made.rename(target)
    except BaseException:
        shutil.rmtree(made)
        raise


def run(command: Sequence[str], purpose: str) -> str:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    said = (done.stdout + done.stderr).strip()
    if done.returncode:
        raise BrokerError(f"could not {purpose}: {Path(command[0]).name} ended with {done.returncode}: {said[-2000:]}")
    return said


def program(name: str, called: str, remedy: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise ProgramMissing(f"{called} is needed to run a Kafka broker, and there is no {name!r} in PATH: {remedy}")
    return found


@functools.cache
def java_program() -> str:
    remedy = f"install Java {JAVA} or newer (on Debian: apt-get install openjdk-17-jre-headless)"
    home = os.environ.get("JAVA_HOME")
    java = program(f"{home}/bin/java" if home else "java", f"Java {JAVA}", remedy)
    said = run([java, "-version"], "ask Java for its version")
    found = re.search(r'version "(\d+)', said)
    if found is None or int(found[1]) < JAVA:
        raise ProgramMissing(f"Kafka needs Java {JAVA}, but {java} says {said.splitlines()[0]!r}: {remedy}")
    return java


def java_command(jars: Path, main: str, *arguments: str) -> list[str]:
    logging_file = f"-Dlog4j2.configurationFile={HERE / 'log4j2.properties'}"
    return [java_program(), *JVM, logging_file, "-cp", f"{jars}/*", main, *arguments]
