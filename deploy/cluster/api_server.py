"""A real Kubernetes API server on this machine, with etcd and the controllers: for tests, and to try the chart out.

    python deploy/cluster/api_server.py             runs one until Ctrl-C, and prints where its kubeconfig is
    python deploy/cluster/api_server.py --build     only builds the programs (Go)

    with ApiServer(folder) as server:
        server.kubectl("get", "namespaces")

RBAC, admission and the controllers are those of a production cluster. No kubelet runs: pods are made and do not start.
With `scheduler=True` they are given to whatever nodes somebody has written down. etcd listens on a socket in the
folder, the API server on a port of 127.0.0.1 that the system picks. Everything that they write lies in the folder.
"""

from __future__ import annotations

import argparse
import logging
import os
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

HERE = Path(__file__).resolve().parent
# Loaded by its path, it finds its neighbours all the same.
sys.path += [place for place in (str(HERE), str(HERE.parent)) if place not in sys.path]

from authority import Authority  # noqa: E402
from kubernetes_programs import FILES, ClusterError, ProgramMissing, build, built, run  # noqa: E402
from local_process import heed_signals, last_words, launch, unwatch, watch  # noqa: E402
from local_server import HOST  # noqa: E402

__all__ = ["ApiServer", "ClusterError", "ProgramMissing", "build", "built"]

SERVICES = "10.96.0.0/16"
"""Addresses that Services are given; nothing is ever sent to one."""

SOCKET = "etcd.sock"
LONGEST_SOCKET = 103
"""Bytes that the path of a socket may have, on the systems that allow the fewest."""

ISSUER = "https://kubernetes.default.svc"

logger = logging.getLogger(__name__)


class ApiServer:
    """etcd, kube-apiserver and kube-controller-manager in processes of their own.

    They end with the process that started them, however that one ends. What they hold is thrown away with their folder;
    started again on the same folder, they go on.

    Args:
        folder: holds all that they write; made where it is missing.
        scheduler: run kube-scheduler too. Pods that have a node are deleted by its kubelet alone, and so never are.

    Raises:
        ValueError: the folder's path is too long for etcd's socket in it.
    """

    def __init__(self, folder: Path | str, *, scheduler: bool = False) -> None:
        self.folder = Path(folder).resolve()
        if len(os.fsencode(self.folder / SOCKET)) > LONGEST_SOCKET:
            raise ValueError(
                f"the path {str(self.folder)!r} is too long, as a socket in it may have {LONGEST_SOCKET} bytes: take a "
                "shorter one"
            )
        self.scheduler = scheduler
        self.url = ""
        self.kubeconfig = self.folder / "not-started"
        self._authority: Authority | None = None
        self._programs: list[_Program] = []
        self._watch: subprocess.Popen[bytes] | None = None
        self._port: socket.socket | None = None
        self._kubectl = ""

    def start(self, timeout: float = 120.0) -> Self:
        """Returns when the API server is ready and the controllers have made what every namespace has.

        Args:
            timeout: seconds that all of it may take.

        Raises:
            ClusterError: it runs already; a program ended, or did not answer in time.
            ProgramMissing: the programs are not built, or OpenSSL is missing.
        """
        if self._programs:
            raise ClusterError(f"the API server in {self.folder} runs already: stop it first")
        programs = built()
        self._kubectl = str(programs / "kubectl")
        deadline = time.monotonic() + timeout
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            self._start_all(programs, deadline)
        except BaseException:
            self.stop()
            raise
        logger.info("the API server in %s answers at %s", self.folder, self.url)
        return self

    def stop(self) -> None:
        """Ends them, the last first; they keep nothing that a kill could hurt."""
        for one in reversed(self._programs):
            one.end()
        self._programs.clear()
        unwatch(self._watch)
        self._watch = None
        if self._port is not None:
            self._port.close()
        self._port = None

    def check(self) -> None:
        """Raises ClusterError where a program has ended by itself."""
        for one in self._programs:
            one.check()

    def user(self, name: str, *groups: str) -> Path:
        """A kubeconfig for the user `name`, who may do what RBAC grants to them and to `groups`."""
        return self._running().kubeconfig(self.url, name, groups)

    def account(self, namespace: str, name: str) -> Path:
        """A kubeconfig for a ServiceAccount, by a token as its pods would get it where they asked for one."""
        token = self.kubectl("create", "token", name, f"--namespace={namespace}")
        return self._running().token_kubeconfig(self.url, f"{namespace}-{name}", token.strip())

    def trust(self) -> ssl.SSLContext:
        """TLS to the API server, as somebody who may do everything."""
        authority = self._running()
        context = ssl.create_default_context(cafile=str(authority.certificate))
        context.load_cert_chain(*authority.client("administrator", ["system:masters"]))
        return context

    def kubectl(self, *arguments: str, said: str | None = None, kubeconfig: Path | None = None) -> str:
        """What kubectl answers, by default to somebody who may do everything.

        Raises:
            ClusterError: kubectl failed; the message holds what it said.
        """
        command = [
            self._kubectl,
            f"--kubeconfig={kubeconfig or self.kubeconfig}",
            f"--cache-dir={self.folder / 'cache'}",
        ]
        command += arguments
        return run(command, f"run `kubectl {' '.join(arguments[:4])}`", said=said or "", folder=self.folder).stdout

    def until(self, true: Callable[[], bool], what: str, timeout: float = 60.0) -> None:
        """Waits until `true()`.

        Raises:
            ClusterError: `what` was not so within `timeout` seconds, or a program has ended.
        """
        deadline = time.monotonic() + timeout
        while not true():
            self.check()
            if time.monotonic() > deadline:
                raise ClusterError(f"not within {timeout:g} s: {what}; the logs are in {self.folder}")
            time.sleep(0.1)

    def __enter__(self) -> Self:
        return self if self._programs else self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _running(self) -> Authority:
        if self._authority is None:
            raise ClusterError(f"the API server in {self.folder} does not run: start it")
        return self._authority

    def _start_all(self, programs: Path, deadline: float) -> None:
        authority = self._authority = Authority(self.folder / "authority")
        self._port = _held_port()
        number = self._port.getsockname()[1]
        self.url = f"https://{HOST}:{number}"
        self.kubeconfig = authority.kubeconfig(self.url, "administrator", ["system:masters"])
        controllers = authority.kubeconfig(self.url, "system:kube-controller-manager")
        store = self.folder / SOCKET
        store.unlink(missing_ok=True)

        self._launch(programs / "etcd", self._etcd(store))
        self._await(store.is_socket, "etcd listens", deadline)
        self._launch(programs / "kube-apiserver", self._api(store, number))
        self._await(self._ready, "the API server is ready", deadline)
        self._launch(programs / "kube-controller-manager", self._controllers(controllers))
        if self.scheduler:
            scheduler = authority.kubeconfig(self.url, "system:kube-scheduler")
            arguments = [f"--kubeconfig={scheduler}", "--leader-elect=false", "--secure-port=0"]
            self._launch(programs / "kube-scheduler", arguments)
        self._await(self._settled, "the controllers have made what every namespace has", deadline)

    def _etcd(self, store: Path) -> list[str]:
        return [
            f"--data-dir={self.folder / 'etcd'}",
            f"--listen-client-urls=unix://{store}",
            # Who listens on a socket has no address to advertise; nobody asks for it.
            "--advertise-client-urls=http://127.0.0.1:0",
            "--listen-peer-urls=http://127.0.0.1:0",
            "--unsafe-no-fsync",
            "--log-level=warn",
        ]

    def _api(self, store: Path, port: int) -> list[str]:
        authority = self._running()
        certificate, key = authority.server("kubernetes", [f"IP:{HOST}", "DNS:localhost", "DNS:kubernetes.default.svc"])
        return [
            f"--etcd-servers=unix://{store}",
            f"--bind-address={HOST}",
            f"--secure-port={port}",
            "--permit-port-sharing=true",
            f"--tls-cert-file={certificate}",
            f"--tls-private-key-file={key}",
            f"--client-ca-file={authority.certificate}",
            "--authorization-mode=RBAC",
            # The plugins that are on by default stay on, with PodSecurity, ResourceQuota and LimitRanger among them.
            "--enable-admission-plugins=NodeRestriction",
            f"--service-account-issuer={ISSUER}",
            f"--service-account-key-file={authority.folder / 'tokens.pub'}",
            f"--service-account-signing-key-file={authority.folder / 'tokens.key'}",
            f"--service-cluster-ip-range={SERVICES}",
            # Endpoints may not be on loopback, and no pod looks for this one.
            "--endpoint-reconciler-type=none",
        ]

    def _controllers(self, kubeconfig: Path) -> list[str]:
        authority = self._running()
        return [
            f"--kubeconfig={kubeconfig}",
            f"--root-ca-file={authority.certificate}",
            f"--service-account-private-key-file={authority.folder / 'tokens.key'}",
            "--use-service-account-credentials=true",
            "--leader-elect=false",
            "--secure-port=0",
            # No kubelet says that a node is well; it is once somebody has said so.
            "--node-monitor-grace-period=24h",
        ]

    def _launch(self, program: Path, arguments: Sequence[str]) -> None:
        self._programs.append(_Program(program, arguments, self.folder))
        unwatch(self._watch)
        self._watch = watch(*(one.pid for one in self._programs))

    def _await(self, true: Callable[[], bool], what: str, deadline: float) -> None:
        self.until(true, what, max(deadline - time.monotonic(), 0.1))

    def _ready(self) -> bool:
        trust = ssl.create_default_context(cafile=str(self._running().certificate))
        try:
            with urllib.request.urlopen(f"{self.url}/readyz", timeout=5, context=trust) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            return False

    def _settled(self) -> bool:
        # The account that pods without one of their own run as, and the rights of ClusterRoles that collect others'.
        account = self.kubectl("get", "serviceaccount", "default", "--ignore-not-found", "-o", "name")
        rules = self.kubectl("get", "clusterrole", "admin", "-o", "jsonpath={.rules[*].resources}")
        return bool(account) and "deployments" in rules


class _Program:
    """A process and its log."""

    def __init__(self, program: Path, arguments: Sequence[str], folder: Path) -> None:
        self.name = program.name
        self.log_file = folder / f"{self.name}.log"
        self._process = launch([program, *arguments], self.log_file)

    @property
    def pid(self) -> int:
        return self._process.pid

    def check(self) -> None:
        if (status := self._process.poll()) is not None:
            raise ClusterError(f"{self.name} ended with {status}, see {self.log_file}: {last_words(self.log_file)}")

    def end(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _held_port() -> socket.socket:
    """A socket on a free port that nobody else is given while it is open; the API server listens there beside it."""
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    held.bind((HOST, 0))
    return held


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs an API server in the foreground until Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(description="Run a Kubernetes API server on this machine until Ctrl-C.")
    parser.add_argument("--folder", type=Path, default=FILES / "run", help="what it keeps (default: %(default)s)")
    parser.add_argument("--build", action="store_true", help="only build the programs, and leave")
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    heed_signals()
    try:
        folder = build()
        if given.build:
            sys.stdout.write(f"{folder}\n")
            return 0
        with ApiServer(given.folder) as server:
            sys.stdout.write(f"export KUBECONFIG={server.kubeconfig} PATH={folder}:$PATH\n")
            sys.stdout.flush()
            while True:
                server.check()
                time.sleep(0.2)
    except KeyboardInterrupt:
        return 0
    except (ClusterError, OSError) as error:
        sys.stderr.write(f"api server: {error}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
