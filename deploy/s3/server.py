"""A real S3-compatible server on this machine: for tests, for benchmarks, and to try things out.

    python deploy/s3/server.py                 runs one until Ctrl-C, and prints what to set when it is ready
    python deploy/s3/server.py --fetch         only builds the server (Go 1.25 or newer)

It is the Versity S3 gateway over a folder (`main.go`), on loopback only. Its source comes as a Go module by the version
in `go.mod`, checked against `go.sum`, and is built once into `var/s3/`. Objects are files below `objects` in the
server's folder, and outlive it.

    with Server(folder) as server:
        server.make_bucket("models")
        subprocess.run([...], env={**os.environ, **server.environment})
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import socket
import sys
import time
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Self

from obstore.store import S3Store

HERE = Path(__file__).resolve().parent
if str(HERE.parent) not in sys.path:  # loaded by its path, it finds its neighbours all the same
    sys.path.append(str(HERE.parent))

import brought  # noqa: E402
from local_process import heed_signals  # noqa: E402
from local_server import HOST, LocalServer  # noqa: E402

FILES = HERE.parents[1] / "var" / "s3"
"""Where the built server is kept, one for each state of its sources."""

SOURCES = ("main.go", "go.mod", "go.sum")

GO = (1, 25)
"""Oldest Go that builds it."""

REGION = "us-east-1"

ACCESS_KEY = "perdure-tests"
SECRET_KEY = "not-a-secret-of-anybody"

logger = logging.getLogger(__name__)


class ServerError(RuntimeError):
    """The server cannot be had, started or ended; the message says why and what to do."""


class ProgramMissing(ServerError):
    """Go is not on this machine, or too old."""


_run = partial(brought.run, failed=ServerError, folder=HERE)


class Server(LocalServer):
    """One S3 server in a process of its own.

    Its objects outlive it: started again on the same folder, after whatever end, it has them. It ends with the process
    that started it, however that one ends.

    Args:
        folder: holds all that it writes; made where it is missing.
        port: where clients reach it on 127.0.0.1; a free one where None is given, the same at every start.
    """

    called = "server"
    error = ServerError

    @property
    def endpoint(self) -> str:
        """Its URL."""
        return f"http://{HOST}:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """What a client needs in its environment."""
        return environment(self.endpoint)

    def start(self, timeout: float = 30.0) -> Self:
        """Returns when the server takes connections.

        Args:
            timeout: seconds that it may take, building it not included.

        Raises:
            ServerError: it is running already; it ended, or did not answer in time.
            ProgramMissing: Go is missing, and the server was never built here.
        """
        self._clear()
        program = fetch()
        objects, about = self.folder / "objects", self.folder / "attributes"
        for folder in (objects, about):
            folder.mkdir(parents=True, exist_ok=True)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("ROOT_", "AWS_"))}
        self._begin(
            [program, f"{HOST}:{self.port}", objects, about],
            lambda: _answers(self.port),
            timeout,
            {**kept, "ROOT_ACCESS_KEY": ACCESS_KEY, "ROOT_SECRET_KEY": SECRET_KEY, "S3_REGION": REGION},
        )
        logger.info("the server in %s answers at %s", self.folder, self.endpoint)
        return self

    def make_bucket(self, name: str) -> S3Store:
        """A new, empty bucket."""
        # A bucket of this server is a folder, and it looks for them at every request.
        (self.folder / "objects" / name).mkdir()
        return self.store(name)

    def store(self, bucket: str, *, prefix: str | None = None) -> S3Store:
        """A client of one bucket, that tries nothing again."""
        return S3Store(
            bucket,
            prefix=prefix,
            endpoint=self.endpoint,
            region=REGION,
            access_key_id=ACCESS_KEY,
            secret_access_key=SECRET_KEY,
            client_options={"allow_http": True},
            retry_config={"max_retries": 0},
        )


def environment(endpoint: str) -> dict[str, str]:
    """What a client of a server of these tests needs in its environment to reach it at `endpoint`."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_REGION": REGION,
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
    }


def fetch() -> Path:
    """The server's program; built the first time, by one process at a time.

    Raises:
        ProgramMissing: Go is missing, or too old.
        ServerError: Go could not build it; what it said is in the message.
    """
    target = FILES / f"s3-server-{brought.state(*(HERE / name for name in SOURCES))}"
    if not target.exists():
        brought.once(target, partial(_build, _go()))
    return target


def _build(go: str, made: Path) -> None:
    logger.info("building the S3 server into %s", FILES)
    flags = ["-mod=readonly", "-trimpath", "-buildvcs=false", "-ldflags=-s -w"]
    _run(
        [go, "build", *flags, "-o", str(made), "."],
        "build the S3 server",
        # Without C: nothing else than Go need be here.
        environment={**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "", "GOWORK": "off"},
    )


@cache
def _go() -> str:
    remedy = f"install Go {GO[0]}.{GO[1]} or newer"
    go = brought.program("go", "Go", remedy, use="is needed to build an S3 server", missing=ProgramMissing)
    said = _run([go, "env", "GOVERSION"], "ask Go for its version").stdout.strip()
    found = re.match(r"go(\d+)\.(\d+)", said)
    if found is None or (int(found[1]), int(found[2])) < GO:
        raise ProgramMissing(f"Go {GO[0]}.{GO[1]} builds the S3 server, but {go} says {said!r}: {remedy}")
    return go


def _answers(port: int) -> bool:
    try:
        with socket.create_connection((HOST, port), timeout=5) as connection:
            connection.sendall(f"GET / HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n".encode())
            return connection.recv(5) == b"HTTP/"
    except OSError:
        return False


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a server in the foreground until Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(description="Run an S3-compatible server on this machine until Ctrl-C.")
    parser.add_argument("--port", type=int, default=7070, help="where clients reach it on 127.0.0.1 (default: 7070)")
    parser.add_argument("--folder", type=Path, default=FILES / "server", help="what it keeps (default: %(default)s)")
    parser.add_argument("--bucket", default="perdure", help="made where it is missing (default: %(default)s)")
    parser.add_argument("--fetch", action="store_true", help="only build the server, and leave")
    given = parser.parse_args(arguments)
    heed_signals()
    try:
        if given.fetch:
            sys.stdout.write(f"{fetch()}\n")
            return 0
        with Server(given.folder, port=given.port) as server:
            if not (server.folder / "objects" / given.bucket).exists():
                server.make_bucket(given.bucket)
            for name, value in {**server.environment, "PERDURE_REGISTRY__URL": f"s3://{given.bucket}"}.items():
                sys.stdout.write(f"export {name}={value}\n")
            sys.stdout.flush()
            while server.pid is not None:
                time.sleep(0.2)
        sys.stderr.write(f"the server ended by itself: see {server.log_file}\n")
    except KeyboardInterrupt:
        return 0
    except (ServerError, OSError) as error:
        sys.stderr.write(f"server: {error}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
