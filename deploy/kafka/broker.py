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
import secrets
import socket
import struct
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Self

HERE = Path(__file__).resolve().parent
# Loaded by its path, it finds its neighbours all the same.
sys.path += [place for place in (str(HERE), str(HERE.parent)) if place not in sys.path]

from brought import whole  # noqa: E402
from kafka_distribution import FILES, BrokerError, ProgramMissing, fetch, java_command, program, run  # noqa: E402
from local_process import heed_signals  # noqa: E402
from local_server import HOST, LocalServer, is_free  # noqa: E402

__all__ = ["Broker", "BrokerError", "ProgramMissing", "fetch"]

OWNED = frozenset(
    {
        *("process.roles", "node.id", "log.dirs", "listeners", "advertised.listeners"),
        *("listener.security.protocol.map", "inter.broker.listener.name"),
        *("controller.listener.names", "controller.quorum.voters"),
    }
)
"""Settings that follow from the folder and the ports."""

logger = logging.getLogger(__name__)


class Broker(LocalServer):
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

    called = "broker"
    error = BrokerError

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
        super().__init__(folder, port=port)
        self.sasl_ssl = sasl_ssl
        self.username = "perdure"
        self._settings = dict(settings)

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

    def start(self, timeout: float = 60.0) -> Self:
        """Returns when the broker answers and would take records.

        Args:
            timeout: seconds that it may take, fetching its files not included.

        Raises:
            BrokerError: it is running already; its port is taken; it ended, or did not answer in time.
            ProgramMissing: Java, Maven or OpenSSL is missing.
        """
        self._clear()
        if not is_free(self.port):
            raise BrokerError(f"port {self.port} is taken by another process: end that one, or take another port")
        jars = fetch()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._prepare(jars)
        internal, controller = self._inner_ports()
        config = self._write("server.properties", self.folder / "data", internal, controller)
        self._begin(java_command(jars, "kafka.Kafka", str(config)), lambda: _serves(internal), timeout)
        logger.info("the broker in %s answers at %s", self.folder, self.address)
        return self

    def _prepare(self, jars: Path) -> None:
        """Makes the data folder, and with `sasl_ssl` the secrets, where they are not there yet."""
        data, kept = self.folder / "data", self.folder / "secrets"
        if self.sasl_ssl and not kept.exists():
            if data.exists():
                raise BrokerError(f"{self.folder} was made without SASL_SSL, so it knows no user: take another folder")
            with whole(kept) as made:
                made.mkdir(0o700)
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
        with whole(data) as made:
            made.mkdir()
            config = self._write("format.properties", made, *self._inner_ports())
            tool = java_command(jars, "kafka.tools.StorageTool", "format", "--cluster-id", _cluster_id())
            run([*tool, "--config", str(config), *users], "format the broker's data folder")
            config.unlink()

    def _inner_ports(self) -> tuple[int, int]:
        """Free ports for the broker's own listener and its controller's; none of a broker's may be the same."""
        internal = self._free_port(self.port)
        return internal, self._free_port(self.port, internal)

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
    heed_signals()
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
