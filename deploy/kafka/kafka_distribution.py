"""The Kafka broker's files on this machine, and the programs that they need.

They come from Maven Central by the coordinates in `pom.xml`, once for each state of that file.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from functools import cache, partial
from pathlib import Path

HERE = Path(__file__).resolve().parent
if str(HERE.parent) not in sys.path:  # loaded by its path, it finds its neighbours all the same
    sys.path.append(str(HERE.parent))

import brought  # noqa: E402

FILES = HERE.parents[1] / "var" / "kafka"
"""Where the broker's files are kept, in a folder for each state of `pom.xml`."""

POM = HERE / "pom.xml"

JAVA = 17
"""Oldest Java that this Kafka runs on."""

# Client compiler only, serial collector: on two cores a start takes half as long, and nothing runs beside it.
JVM = ("-Xms64m", "-Xmx512m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-XX:-UsePerfData")

logger = logging.getLogger(__name__)


class BrokerError(RuntimeError):
    """The broker cannot be had, started or ended; the message says why and what to do."""


class ProgramMissing(BrokerError):
    """Java, Maven or OpenSSL is not on this machine."""


run = partial(brought.run, failed=BrokerError)
program = partial(brought.program, use="is needed to run a Kafka broker", missing=ProgramMissing)


def fetch() -> Path:
    """The folder with the broker's files; brought from Maven Central the first time, by one process at a time.

    Raises:
        ProgramMissing: Java or Maven is missing.
        BrokerError: Maven could not bring them; what it said is in the message.
    """
    java_program()
    target = FILES / f"files-{brought.state(POM)}"
    if not target.exists():
        maven = program("mvn", "Maven", "install it (on Debian: apt-get install maven)")
        brought.once(target, partial(_bring, maven))
    return target


def _bring(maven: str, made: Path) -> None:
    logger.info("bringing the broker's files into %s", FILES)
    made.mkdir()
    goal = [maven, "--batch-mode", "--quiet", "--file", str(POM), "dependency:copy-dependencies"]
    run([*goal, "-DincludeScope=runtime", f"-DoutputDirectory={made}"], "bring the broker's files with Maven")


@cache
def java_program() -> str:
    remedy = f"install Java {JAVA} or newer (on Debian: apt-get install openjdk-17-jre-headless)"
    home = os.environ.get("JAVA_HOME")
    java = program(f"{home}/bin/java" if home else "java", f"Java {JAVA}", remedy)
    told = run([java, "-version"], "ask Java for its version")
    said = (told.stdout + told.stderr).strip()
    found = re.search(r'version "(\d+)', said)
    if found is None or int(found[1]) < JAVA:
        raise ProgramMissing(f"Kafka needs Java {JAVA}, but {java} says {said.splitlines()[0]!r}: {remedy}")
    return java


def java_command(jars: Path, main: str, *arguments: str) -> list[str]:
    logging_file = f"-Dlog4j2.configurationFile={HERE / 'log4j2.properties'}"
    return [java_program(), *JVM, logging_file, "-cp", f"{jars}/*", main, *arguments]
