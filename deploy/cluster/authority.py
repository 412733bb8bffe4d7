"""Who is who in a cluster: an authority of its own, and what it signs."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from kubernetes_programs import program, run

DAYS = "30"
KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


class Authority:
    """Signs certificates of servers and of clients; all that it makes lies in its folder, for its owner alone.

    Args:
        folder: made where it is missing; one that is there goes on.

    Raises:
        ProgramMissing: OpenSSL is missing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._openssl = program("openssl", "OpenSSL", "install it (on Debian: apt-get install openssl)")
        if self.certificate.exists():
            return
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._write("authority.cnf", _request("Perdure test cluster", "CA:TRUE", "keyCertSign, cRLSign"))
        self._run(
            "req", "-config", "authority.cnf", *KEY, "-x509", "-days", DAYS, "-keyout", "ca.key", "-out", "ca.pem"
        )
        # What signs the tokens of service accounts.
        self._run("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-out", "tokens.key")
        self._run("pkey", "-in", "tokens.key", "-pubout", "-out", "tokens.pub")

    @property
    def certificate(self) -> Path:
        """The authority's own certificate (PEM)."""
        return self.folder / "ca.pem"

    def server(self, name: str, addresses: Sequence[str]) -> tuple[Path, Path]:
        """Certificate and key (PEM) of a server; addresses as OpenSSL writes them, as in `IP:127.0.0.1`."""
        extensions = f"extendedKeyUsage = serverAuth\nsubjectAltName = {', '.join(addresses)}\n"
        return self._signed(name, f"/CN={name}", extensions)

    def client(self, user: str, groups: Sequence[str]) -> tuple[Path, Path]:
        """Certificate and key (PEM) of a user; Kubernetes reads the groups from the organisations in it."""
        subject = "".join(f"/O={group}" for group in groups) + f"/CN={user}"
        return self._signed(f"user-{user.replace(':', '-')}", subject, "extendedKeyUsage = clientAuth\n")

    def kubeconfig(self, url: str, user: str, groups: Sequence[str] = ()) -> Path:
        """A file with which kubectl and Helm are `user`, of `groups`, at the API server at `url`."""
        certificate, key = self.client(user, groups)
        identity = {"client-certificate-data": _encoded(certificate), "client-key-data": _encoded(key)}
        return self._kubeconfig(certificate.stem, url, identity)

    def token_kubeconfig(self, url: str, name: str, token: str) -> Path:
        """The same for whoever holds `token`, and nothing else; `name` names the file."""
        return self._kubeconfig(f"token-{name}", url, {"token": token})

    def _kubeconfig(self, name: str, url: str, identity: Mapping[str, str]) -> Path:
        cluster = {"server": url, "certificate-authority-data": _encoded(self.certificate)}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "cluster", "cluster": cluster}],
            "users": [{"name": "user", "user": identity}],
            "contexts": [{"name": "cluster", "context": {"cluster": "cluster", "user": "user"}}],
            "current-context": "cluster",
        }
        return self._write(f"{name}.kubeconfig", json.dumps(config, indent=1))

    def _signed(self, name: str, subject: str, extensions: str) -> tuple[Path, Path]:
        self._write(
            f"{name}.cnf", f"basicConstraints = critical, CA:FALSE\nkeyUsage = critical, digitalSignature\n{extensions}"
        )
        self._run(
            *(
                "req",
                "-config",
                "authority.cnf",
                *KEY,
                "-subj",
                subject,
                "-keyout",
                f"{name}.key",
                "-out",
                f"{name}.csr",
            )
        )
        self._run(
            *("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"),
            *("-days", DAYS, "-extfile", f"{name}.cnf", "-out", f"{name}.pem"),
        )
        return self.folder / f"{name}.pem", self.folder / f"{name}.key"

    def _run(self, *arguments: str) -> None:
        run([self._openssl, *arguments], "make the certificates of the cluster", folder=self.folder)

    def _write(self, name: str, text: str) -> Path:
        file = self.folder / name
        file.touch(0o600)
        file.write_text(text, encoding="utf-8")
        return file


def _request(name: str, constraints: str, usage: str) -> str:
    return (
        "[req]\ndistinguished_name = name\nx509_extensions = extensions\nprompt = no\n"
        f"[name]\nCN = {name}\n[extensions]\n"
        f"basicConstraints = critical, {constraints}\nkeyUsage = critical, {usage}\nsubjectKeyIdentifier = hash\n"
    )


def _encoded(file: Path) -> str:
    return base64.b64encode(file.read_bytes()).decode("ascii")
