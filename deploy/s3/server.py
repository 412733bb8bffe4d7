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
import fcntl
import functools
import hashlib
import logging
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from obstore.store import S3Store

HERE = Path(__file__).resolve().parent
FILES = HERE.parents[1] / "var" / "s3"
"""Where the built server is kept, one for each state of its sources."""

SOURCES = ("main.go", "go.mod", "go.sum")

GO = (1, 25)
"""Oldest Go that builds it."""

HOST = "127.0.0.1"

REGION = "us-east-1"

ACCESS_KEY = "perdure-tests"
SECRET_KEY = "not-a-secret-of-anybody"

PORTS = range(20_000, 30_000)
"""Below the ports that systems give to outgoing connections: a client that reconnects to a stopped server on one of
those can be given that very port, and then talks to itself and keeps the server from coming back."""

logger = logging.getLogger(__name__)


class ServerError(RuntimeError):
    """The server cannot be had, started or ended; the message says why and what to do."""


class ProgramMissing(ServerError):
    """Go is not on this machine, or too old."""


class Server:
    """One S3 server in a process of its own.

    Its objects outlive it: started again on the same folder, after whatever end, it has them. It ends with the process
    that started it, however that one ends.

    Args:
        folder: holds all that it writes; made where it is missing.
        port: where clients reach it on 127.0.0.1; a free one where None is given, the same at every start.
    """

    def __init__(self, folder: Path | str, *, port: int | None = None) -> None:
        self.folder = Path(folder).resolve()
        self._port = port
        self._process: subprocess.Popen[bytes] | None = None
        self._watch: subprocess.Popen[bytes] | None = None

    @property
    def port(self) -> int:
        """Where clients reach it."""
        if self._port is None:
            self._port = _free_port()
        return self._port

    @property
    def endpoint(self) -> str:
        """Its URL."""
        return f"http://{HOST}:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """What a client needs in its environment."""
        return environment(self.endpoint)

    @property
    def log_file(self) -> Path:
        """What the server said, over all its starts."""
        return self.folder / "server.log"

    @property
    def pid(self) -> int | None:
        """The process that runs; None where none does."""
        return self._process.pid if self._process and self._process.poll() is None else None

    def start(self, timeout: float = 30.0) -> Self:
        """Returns when the server takes connections.

        Args:
            timeout: seconds that it may take, building it not included.

        Raises:
            ServerError: it is running already; it ended, or did not answer in time.
            ProgramMissing: Go is missing, and the server was never built here.
        """
        if self.pid is not None:
            raise ServerError(f"the server in {self.folder} runs already: stop it first")
        self._release()
        program = fetch()
        objects, about = self.folder / "objects", self.folder / "attributes"
        for folder in (objects, about):
            folder.mkdir(parents=True, exist_ok=True)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("ROOT_", "AWS_"))}
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen(
                [program, f"{HOST}:{self.port}", objects, about],
                env={**kept, "ROOT_ACCESS_KEY": ACCESS_KEY, "ROOT_SECRET_KEY": SECRET_KEY, "S3_REGION": REGION},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                start_new_session=True,  # Ctrl-C is for us: we end the server, in order
            )
        try:
            self._watch = _watch(self._process.pid)
            self._await(time.monotonic() + timeout, timeout)
        except BaseException:
            self.kill()
            raise
        logger.info("the server in %s answers at %s", self.folder, self.endpoint)
        return self

    def stop(self, timeout: float = 15.0) -> None:
        """Asks the server to end (SIGTERM) and waits for it; one that does not run stays so.

        Raises:
            ServerError: it did not end within `timeout` seconds, and was killed.
        """
        if (process := self._process) is None:
            return
        if process.poll() is None:
            process.send_signal(signal.SIGCONT)
            process.terminate()
            try:
                process.wait(timeout)
            except subprocess.TimeoutExpired as error:
                self.kill()
                raise ServerError(
                    f"the server in {self.folder} did not end within {timeout:g} s and was killed: see {self.log_file}"
                ) from error
        self._release()

    def kill(self) -> None:
        """Ends the server at once (SIGKILL), as a crash would; one that does not run stays so."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._release()

    def pause(self) -> None:
        """Stops the server where it stands (SIGSTOP): connections stay open, and nothing answers.

        Raises:
            ServerError: it does not run.
        """
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Lets a paused server go on.

        Raises:
            ServerError: it does not run.
        """
        self._signal(signal.SIGCONT)

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

    def __enter__(self) -> Self:
        return self if self.pid is not None else self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _signal(self, number: signal.Signals) -> None:
        if self._process is None or self.pid is None:
            raise ServerError(f"the server in {self.folder} does not run, so it cannot get {number.name}: start it")
        self._process.send_signal(number)

    def _release(self) -> None:
        # After the server: its number could belong to another process by the time that the watch uses it.
        if self._watch is not None and self._watch.stdin is not None:
            self._watch.kill()
            self._watch.stdin.close()
            self._watch.wait()
        self._watch = self._process = None

    def _await(self, deadline: float, timeout: float) -> None:
        while not _answers(self.port):
            if self._process is not None and (status := self._process.poll()) is not None:
                raise ServerError(f"the server in {self.folder} ended with {status} at its start: {self._said()}")
            if time.monotonic() > deadline:
                raise ServerError(
                    f"the server in {self.folder} did not answer within {timeout:g} s: give it longer, or see why in "
                    f"{self.log_file}: {self._said()}"
                )
            time.sleep(0.02)

    def _said(self) -> str:
        return self.log_file.read_text(encoding="utf-8", errors="replace").strip()[-2000:] or "it said nothing"


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
    state = hashlib.sha256(b"".join((HERE / name).read_bytes() for name in SOURCES)).hexdigest()[:12]
    target = FILES / f"s3-server-{state}"
    if target.exists():
        return target
    go = _go()
    FILES.mkdir(parents=True, exist_ok=True)
    with (FILES / "lock").open("w") as lock, tempfile.TemporaryDirectory(dir=FILES) as folder:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if target.exists():
            return target
        logger.info("building %s", target)
        made = Path(folder) / "s3-server"
        flags = ["-mod=readonly", "-trimpath", "-buildvcs=false", "-ldflags=-s -w"]
        _run(
            [go, "build", *flags, "-o", str(made), "."],
            "build the S3 server",
            # Without C: nothing else than Go need be here.
            env={**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "", "GOWORK": "off"},
        )
        # In one step: who is killed on the way leaves no half of it.
        made.rename(target)
    return target


@functools.cache
def _go() -> str:
    remedy = f"install Go {GO[0]}.{GO[1]} or newer"
    go = shutil.which("go")
    if go is None:
        raise ProgramMissing(f"Go is needed to build an S3 server, and there is no 'go' in PATH: {remedy}")
    said = _run([go, "env", "GOVERSION"], "ask Go for its version", env=dict(os.environ))
    found = re.match(r"go(\d+)\.(\d+)", said)
    if found is None or (int(found[1]), int(found[2])) < GO:
        raise ProgramMissing(f"Go {GO[0]}.{GO[1]} builds the S3 server, but {go} says {said!r}: {remedy}")
    return go


def _run(command: Sequence[str], purpose: str, *, env: Mapping[str, str]) -> str:
    done = subprocess.run(command, cwd=HERE, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    said = (done.stdout + done.stderr).strip()
    if done.returncode:
        raise ServerError(f"could not {purpose}: {Path(command[0]).name} ended with {done.returncode}: {said[-2000:]}")
    return said


def _watch(pid: int) -> subprocess.Popen[bytes]:
    """A process that ends `pid` when this one is gone: it notices by the pipe that closes then."""
    script = 'while read -r _; do :; done; kill -9 "$1"'
    return subprocess.Popen(
        ["/bin/sh", "-c", script, "sh", str(pid)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _free_port() -> int:
    for port in random.SystemRandom().sample(PORTS, 100):
        with socket.socket() as probe:
            # Connections of a server that was killed linger; they keep nobody from listening.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return port
    raise ServerError(f"no free port found between {PORTS.start} and {PORTS.stop - 1}: name one")


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
    for number in (signal.SIGTERM, signal.SIGINT):
        # Also where a shell that started it in the background has told it not to listen.
        signal.signal(number, signal.default_int_handler)
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
