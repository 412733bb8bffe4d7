"""A real Kafka broker on this machine: for tests, for benchmarks, and to try things out.

    python deploy/kafka/broker.py                 runs one until Ctrl-C, and prints its address when it is ready
    python deploy/kafka/broker.py --fetch         only brings the broker's files (Java 17 and Maven)

One node is broker and controller (KRaft), on loopback only. The files come from Maven Central by the coordinates in
`pom.xml`, once, into `var/kafka/`. Everything else that a broker writes lies in its folder: `data`, `secrets`,
`server.properties` and `broker.log`.

    with Broker(folder) as broker:
        KafkaProducer(bootstrap_servers=broker.address)

A topic that nobody made is an error here, not a new topic, so that a misspelt name is noticed.
"""

from __future__ import annotations

import argparse
import logging
import random
import secrets
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Self

HERE = Path(__file__).resolve().parent
if str(HERE) not in sys.path:  # loaded by its path, it finds its neighbour all the same
    sys.path.append(str(HERE))

from kafka_distribution import (  # noqa: E402
    FILES,
    BrokerError,
    ProgramMissing,
    fetch,
    java_command,
    program,
    run,
    whole_folder,
)

__all__ = ["Broker", "BrokerError", "ProgramMissing", "fetch"]

HOST = "127.0.0.1"

PORTS = range(20_000, 30_000)
"""Below the ports that systems give to outgoing connections: a client that reconnects to a stopped broker on one of
those can be given that very port, and then talks to itself and keeps the broker from coming back."""

OWNED = frozenset(
    {
        *("process.roles", "node.id", "log.dirs", "listeners", "advertised.listeners"),
        *("listener.security.protocol.map", "inter.broker.listener.name"),
        *("controller.listener.names", "controller.quorum.voters"),
    }
)
"""Settings that follow from the folder and the ports."""

logger = logging.getLogger(__name__)


class Broker:
    """One Kafka broker in a process of its own.

    Its records outlive it: started again on the same folder, after whatever end, it has them. It ends with the process
    that started it, however that one ends.

    Args:
        folder: holds all that it writes; made where it is missing.
        port: where clients reach it on 127.0.0.1; a free one where None is given, the same at every start.
        sasl_ssl: clients need TLS (see `ca_file`) and a password by SCRAM-SHA-512 (`username`, `password_file`).
        settings: the broker's settings, over those in `server.properties`, with Kafka's names.

    Raises:
        ValueError: `settings` name one that follows from the folder and the ports.
    """

    def __init__(
        self,
        folder: Path | str,
        *,
        port: int | None = None,
        sasl_ssl: bool = False,
        settings: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        for name in sorted(OWNED & settings.keys()):
            raise ValueError(f"settings cannot hold {name!r}: it follows from the folder and the ports, leave it out")
        self.folder = Path(folder).resolve()
        self.sasl_ssl = sasl_ssl
        self.username = "perdure"
        self._settings = dict(settings)
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
    def address(self) -> str:
        """`127.0.0.1:PORT`."""
        return f"{HOST}:{self.port}"

    @property
    def ca_file(self) -> Path:
        """The certificate (PEM) that vouches for the broker; made by the first start with `sasl_ssl`."""
        return self.folder / "secrets" / "ca.pem"

    @property
    def password_file(self) -> Path:
        """The password of `username`; made by the first start with `sasl_ssl`."""
        return self.folder / "secrets" / "password"

    @property
    def log_file(self) -> Path:
        """What the broker said, over all its starts."""
        return self.folder / "broker.log"

    @property
    def pid(self) -> int | None:
        """The process that runs; None where none does."""
        return self._process.pid if self._process and self._process.poll() is None else None

    def start(self, timeout: float = 60.0) -> Self:
        """Returns when the broker answers and would take records.

        Args:
            timeout: seconds that it may take, fetching its files not included.

        Raises:
            BrokerError: it is running already; its port is taken; it ended, or did not answer in time.
            ProgramMissing: Java, Maven or OpenSSL is missing.
        """
        if self.pid is not None:
            raise BrokerError(f"the broker in {self.folder} runs already: stop it first")
        self._release()
        if not _is_free(self.port):
            raise BrokerError(f"port {self.port} is taken by another process: end that one, or take another port")
        jars = fetch()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._prepare(jars)
        internal, controller = self._inner_ports()
        config = self._write("server.properties", self.folder / "data", internal, controller)
        since = self.log_file.stat().st_size if self.log_file.exists() else 0
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen(
                java_command(jars, "kafka.Kafka", str(config)),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                start_new_session=True,  # Ctrl-C is for us: we end the broker, in order
            )
        try:
            self._watch = _watch(self._process.pid)
            self._await(internal, time.monotonic() + timeout, timeout, since)
        except BaseException:
            self.kill()
            raise
        logger.info("the broker in %s answers at %s", self.folder, self.address)
        return self

    def stop(self, timeout: float = 30.0) -> None:
        """Asks the broker to end (SIGTERM) and waits for it; one that does not run stays so.

        Raises:
            BrokerError: it did not end within `timeout` seconds, and was killed.
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
                raise BrokerError(
                    f"the broker in {self.folder} did not end within {timeout:g} s and was killed: see {self.log_file}"
                ) from error
        self._release()

    def kill(self) -> None:
        """Ends the broker at once (SIGKILL), as a crash would; one that does not run stays so."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._release()

    def pause(self) -> None:
        """Stops the broker where it stands (SIGSTOP): connections stay open, and nothing answers.

        Raises:
            BrokerError: it does not run.
        """
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Lets a paused broker go on.

        Raises:
            BrokerError: it does not run.
        """
        self._signal(signal.SIGCONT)

    def __enter__(self) -> Self:
        return self if self.pid is not None else self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _signal(self, number: signal.Signals) -> None:
        if self._process is None or self.pid is None:
            raise BrokerError(f"the broker in {self.folder} does not run, so it cannot get {number.name}: start it")
        self._process.send_signal(number)

    def _release(self) -> None:
        # After the broker: its number could belong to another process by the time that the watch uses it.
        if self._watch is not None and self._watch.stdin is not None:
            self._watch.kill()
            self._watch.stdin.close()
            self._watch.wait()
        self._watch = self._process = None

    def _prepare(self, jars: Path) -> None:
        """Makes the data folder, and with `sasl_ssl` the secrets, where they are not there yet."""
        data, kept = self.folder / "data", self.folder / "secrets"
        if self.sasl_ssl and not kept.exists():
            if data.exists():
                raise BrokerError(f"{self.folder} was made without SASL_SSL, so it knows no user: take another folder")
            with whole_folder(kept) as made:
                made.chmod(0o700)
                program("openssl", "OpenSSL", "install it, or do without SASL_SSL")
                run(["/bin/sh", str(HERE / "certificates.sh"), str(made)], "make the broker's certificates")
                (made / "password").touch(0o600)
                (made / "password").write_text(secrets.token_urlsafe(24), encoding="utf-8")
        if data.exists():
            return
        users = []
        if self.sasl_ssl:
            password = self.password_file.read_text(encoding="utf-8")
            users = ["--add-scram", f"SCRAM-SHA-512=[name={self.username},password={password}]"]
        with whole_folder(data) as made:
            config = self._write("format.properties", made, *self._inner_ports())
            tool = java_command(jars, "kafka.tools.StorageTool", "format", "--cluster-id", _cluster_id())
            run([*tool, "--config", str(config), *users], "format the broker's data folder")
            config.unlink()

    def _inner_ports(self) -> tuple[int, int]:
        """Free ports for the broker's own listener and its controller's; none of a broker's may be the same."""
        internal = _free_port(self.port)
        return internal, _free_port(self.port, internal)

    def _write(self, name: str, data: Path, internal: int, controller: int) -> Path:
        """Writes the broker's settings into the file `name`."""
        protocol = "SASL_SSL" if self.sasl_ssl else "PLAINTEXT"
        public = f"CLIENT://{self.address},INTERNAL://{HOST}:{internal}"
        values = {
            **self._settings,
            "process.roles": "broker,controller",
            "node.id": "1",
            "controller.quorum.voters": f"1@{HOST}:{controller}",
            "listeners": f"{public},CONTROLLER://{HOST}:{controller}",
            "advertised.listeners": public,
            "listener.security.protocol.map": f"CLIENT:{protocol},INTERNAL:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "inter.broker.listener.name": "INTERNAL",
            "controller.listener.names": "CONTROLLER",
            "log.dirs": str(data),
        }
        if self.sasl_ssl:
            values |= {
                "sasl.enabled.mechanisms": "SCRAM-SHA-512",
                "listener.name.client.scram-sha-512.sasl.jaas.config": (
                    "org.apache.kafka.common.security.scram.ScramLoginModule required;"
                ),
                "listener.name.client.ssl.keystore.type": "PEM",
                "listener.name.client.ssl.keystore.location": str(self.folder / "secrets" / "broker.pem"),
            }
        file = self.folder / name
        # Of a name that stands there twice, Java takes the last.
        lines = [f"{key}={value}\n".replace("\\", "\\\\") for key, value in sorted(values.items())]
        defaults = (HERE / "server.properties").read_text(encoding="utf-8")
        file.write_text("\n".join([defaults, *lines]), encoding="utf-8")
        return file

    def _await(self, port: int, deadline: float, timeout: float, since: int) -> None:
        """Waits until the broker that listens at `port` takes records."""
        while not _serves(port):
            if self._process is not None and (status := self._process.poll()) is not None:
                raise BrokerError(f"the broker in {self.folder} ended with {status} at its start: {self._said(since)}")
            if time.monotonic() > deadline:
                raise BrokerError(
                    f"the broker in {self.folder} did not answer within {timeout:g} s: give it longer, or see why in "
                    f"{self.log_file}: {self._said(since)}"
                )
            time.sleep(0.05)

    def _said(self, since: int) -> str:
        said = self.log_file.read_bytes()[since:].decode("utf-8", "replace").strip()
        return said[-2000:] or "it said nothing"


def _watch(pid: int) -> subprocess.Popen[bytes]:
    """A process that ends `pid` when this one is gone: it notices by the pipe that closes then.

    The kernel's own way, PR_SET_PDEATHSIG, goes by the thread that started the process, and a test may well start a
    broker in a thread that ends.
    """
    script = 'while read -r _; do :; done; kill -9 "$1"'
    return subprocess.Popen(
        ["/bin/sh", "-c", script, "sh", str(pid)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _free_port(*but: int) -> int:
    for port in random.SystemRandom().sample(PORTS, 100):
        if port not in but and _is_free(port):
            return port
    raise BrokerError(f"no free port found between {PORTS.start} and {PORTS.stop - 1}: name one")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # Connections of a broker that was killed linger; they keep nobody from listening.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def _serves(port: int) -> bool:
    """Whether the broker answers a metadata request (version 1, for no topic), and counts itself among the living.

    The port is open, and the version request answered, before the controller has admitted the broker.
    """
    body = struct.pack(">hhihi", 3, 1, 1, -1, 0)
    try:
        with socket.create_connection((HOST, port), timeout=5) as connection, connection.makefile("rb") as answer:
            connection.sendall(struct.pack(">i", len(body)) + body)
            head = answer.read(12)
    except OSError:
        return False
    return len(head) == 12 and bool(struct.unpack(">iii", head)[2] > 0)


def _cluster_id() -> str:
    # Kafka's tools take a leading dash for an option.
    return "P" + secrets.token_urlsafe(16)[:21]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a broker in the foreground until Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(description="Run a Kafka broker on this machine until Ctrl-C.")
    parser.add_argument("--port", type=int, default=9092, help="where clients reach it on 127.0.0.1 (default: 9092)")
    parser.add_argument("--folder", type=Path, default=FILES / "broker", help="what it keeps (default: %(default)s)")
    parser.add_argument("--sasl-ssl", action="store_true", help="ask clients for TLS and a password")
    parser.add_argument("--fetch", action="store_true", help="only bring the broker's files, and leave")
    given = parser.parse_args(arguments)
    for number in (signal.SIGTERM, signal.SIGINT):
        # Also where a shell that started it in the background has told it not to listen.
        signal.signal(number, signal.default_int_handler)
    try:
        if given.fetch:
            sys.stdout.write(f"{fetch()}\n")
            return 0
        with Broker(given.folder, port=given.port, sasl_ssl=given.sasl_ssl) as broker:
            sys.stdout.write(f"{broker.address}\n")
            if broker.sasl_ssl:
                sys.stdout.write(f"user {broker.username}, password in {broker.password_file}, CA {broker.ca_file}\n")
            sys.stdout.flush()
            if sys.stderr.isatty():
                sys.stderr.write(f"Kafka runs until Ctrl-C: set stream.url to kafka://{broker.address}\n")
            while broker.pid is not None:
                time.sleep(0.2)
        sys.stderr.write(f"the broker ended by itself: see {broker.log_file}\n")
    except KeyboardInterrupt:
        return 0
    except (BrokerError, OSError) as error:
        sys.stderr.write(f"broker: {error}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
