"""Which addresses are listened at, and with what TLS."""

from __future__ import annotations

import datetime
import ipaddress
import os
import socket
import ssl
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import typer
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from typer.testing import CliRunner

from perdure.config import ALLOW_ANONYMOUS, ServingSettings, Settings
from perdure.errors import SettingError
from perdure.registry import Registry
from perdure.stream import MemoryStream
from perdure_services.keys import add_key, issue
from perdure_services.serving import command
from perdure_services.serving.exposure import check_exposure, is_loopback, warnings
from perdure_services.serving.server import Server, listen, run, url_of
from perdure_services.serving.tls import tls_context

NOW = datetime.datetime.now(datetime.UTC)


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def serve():
    """`perdure serve` at a free port."""
    app = typer.Typer()
    app.command("serve")(command.serve)
    return lambda *arguments: CliRunner().invoke(app, ["--port", "0", *arguments])


@pytest.fixture
def ran(monkeypatch):
    """Settings that would have been run with."""
    found = []
    monkeypatch.setattr(command, "run", lambda settings, **named: found.append(settings))
    return found


def write_certificate(folder: Path, name: str = "server", password: bytes | None = None) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that vouches for itself, and its key."""
    private = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - datetime.timedelta(days=1))
        .not_valid_after(NOW + datetime.timedelta(days=1))
        .add_extension(names, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(private, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    hidden = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    shown, kept = folder / f"{name}.crt", folder / f"{name}.key"
    shown.write_bytes(certificate.public_bytes(pem))
    kept.write_bytes(private.private_bytes(pem, serialization.PrivateFormat.PKCS8, hidden))
    return shown, kept


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("LOCALHOST", True),
        ("0.0.0.0", False),
        ("::", False),
        ("", False),
        ("localhost.example", False),
        ("10.0.0.1", False),
    ],
)
def test_loopback(host, loopback):
    assert is_loopback(host) is loopback


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "10.0.0.1", "a.example"])
def test_other_machines_are_not_let_in_without_keys_unless_the_words_are_said(host):
    with pytest.raises(SettingError) as error:
        check_exposure(host, ServingSettings())
    for part in ("perdure keys create", "serving.keys", "127.0.0.1", ALLOW_ANONYMOUS):
        assert part in str(error.value)
    check_exposure(host, ServingSettings(keys="keys.json"))
    check_exposure(host, ServingSettings(allow_anonymous=ALLOW_ANONYMOUS))
    check_exposure("127.0.0.1", ServingSettings())


@pytest.mark.parametrize("said", ["yes", "true", True, ALLOW_ANONYMOUS.upper(), "anyone"])
def test_other_words_do_not_do(said):
    with pytest.raises(SettingError) as error:
        Settings().with_values({"serving.allow_anonymous": said})
    assert ALLOW_ANONYMOUS in str(error.value)


def test_the_command_refuses_before_it_listens(serve, ran):
    result = serve("--host", "0.0.0.0")
    assert result.exit_code == 2
    assert result.stderr.startswith("perdure serve: 0.0.0.0 can be reached from other machines")
    assert ALLOW_ANONYMOUS in result.stderr
    assert ran == []
    assert not Path("var").exists()


def test_the_command_warns_of_what_is_left_open(serve, ran):
    assert "Warning" not in serve("--host", "localhost").stderr
    assert ran.pop().serving.host == "localhost"
    add_key(Path("keys.json"), issue("web", ("predict",), created=NOW).key)
    for arguments, parts, missing in (
        (["--set", f"serving.allow_anonymous={ALLOW_ANONYMOUS}"], ["asks nobody", "without TLS: texts travel"], []),
        (["--set", "serving.keys=keys.json"], ["texts and API keys travel in the clear", "proxy"], ["asks nobody"]),
    ):
        result = serve("--host", "0.0.0.0", *arguments)
        assert result.exit_code == 0, result.output
        assert ran.pop().serving.host == "0.0.0.0"
        assert all(part in result.stderr for part in parts)
        assert not any(part in result.stderr for part in missing)
    assert list(warnings("0.0.0.0", ServingSettings(keys="k", tls_certificate="c"))) == []


def test_what_listens_is_looked_at_too_whatever_the_settings_say(monkeypatch):
    monkeypatch.setattr(Server, "run", lambda self, sockets: pytest.fail("it serves"))
    with (
        MemoryStream() as stream,
        listen("0.0.0.0", 0) as listener,
        pytest.raises(SettingError, match=r"0\.0\.0\.0 can be reached"),
    ):
        run(
            Settings(),
            listener=listener,
            registry=Registry("memory://"),
            stream=stream,
            load=lambda version: pytest.fail("it ran"),
            announce=lambda line: pytest.fail("it ran"),
        )


def test_the_url_says_whether_there_is_tls():
    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        assert url_of(listener) == f"http://127.0.0.1:{port}"
        assert url_of(listener, tls=True) == f"https://127.0.0.1:{port}"


def test_without_a_certificate_there_is_no_tls():
    assert tls_context(ServingSettings()) is None


def test_a_key_may_stand_in_the_file_of_its_certificate_and_behind_a_password(tmp_path):
    certificate, key = write_certificate(tmp_path, password=b"open sesame")
    both = tmp_path / "both.pem"
    both.write_bytes(certificate.read_bytes() + key.read_bytes())
    Path("password").write_text("open sesame\n")
    for named in ({"tls_key": str(key), "tls_certificate": str(certificate)}, {"tls_certificate": str(both)}):
        context = tls_context(ServingSettings(tls_key_password_file="password", **named))
        assert context is not None
        assert context.minimum_version == ssl.TLSVersion.TLSv1_2


@pytest.mark.parametrize(
    ("files", "parts"),
    [
        ({"tls_key": "server.key"}, ["serving.tls_key is set, but no certificate"]),
        ({"tls_key_password_file": "right"}, ["serving.tls_key_password_file is set"]),
        ({"tls_certificate": "absent.crt"}, ["cannot read serving.tls_certificate absent.crt", "No such file"]),
        ({"tls_certificate": "."}, ["cannot read serving.tls_certificate .", "directory"]),
        ({"tls_certificate": "server.crt", "tls_key": "absent.key"}, ["cannot read serving.tls_key absent.key"]),
        (
            {"tls_certificate": "server.crt", "tls_key_password_file": "absent"},
            ["serving.tls_key_password_file absent"],
        ),
        ({"tls_certificate": "server.key"}, ["server.key holds no certificate"]),
        ({"tls_certificate": "server.crt"}, ["serving.tls_key"]),
        ({"tls_certificate": "server.crt", "tls_key": "right"}, ["the key right cannot be used", "PEM"]),
        ({"tls_certificate": "server.crt", "tls_key": "other.key"}, ["other.key does not belong", "server.crt"]),
        ({"tls_certificate": "broken.crt", "tls_key": "server.key"}, ["broken.crt", "PEM"]),
        ({"tls_certificate": "secret.crt", "tls_key": "secret.key"}, ["encrypted", "serving.tls_key_password_file"]),
        (
            {"tls_certificate": "secret.crt", "tls_key": "secret.key", "tls_key_password_file": "wrong"},
            ["secret.key cannot be read with the password in wrong"],
        ),
        (
            {"tls_certificate": "secret.crt", "tls_key": "secret.key", "tls_key_password_file": "long"},
            ["the file long holds no password"],
        ),
    ],
)
def test_files_that_do_not_fit_are_told_in_words(tmp_path, serve, files, parts):
    for name, password in (("server", None), ("other", None), ("secret", b"open sesame")):
        write_certificate(tmp_path, name, password)
    Path("broken.crt").write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    Path("right").write_text("open sesame")
    Path("wrong").write_text("open wheat")
    Path("long").write_text("open wheat" * 1000)
    with pytest.raises(SettingError) as error:
        tls_context(ServingSettings(**files))
    assert all(part in str(error.value) for part in parts), str(error.value)
    assert "sesame" not in str(error.value)
    assert "wheat" not in str(error.value)
    result = serve(*(word for name, value in files.items() for word in ("--set", f"serving.{name}={value}")))
    assert result.exit_code == 2
    assert parts[0] in result.stderr


PROGRAM = """
import sys
from perdure.config import Settings
from perdure.model.double import KeywordClassifier
from perdure.registry import Registry
from perdure.stream import SqliteStream
from perdure_services.serving.server import listen, run

settings = Settings().with_values({"serving.keys": "keys.json", "serving.tls_certificate": "server.crt",
    "serving.tls_key": "server.key", "serving.drain_seconds": 2})
with SqliteStream("stream.db") as stream, listen("127.0.0.1", 0) as listener:
    run(settings, listener=listener, registry=Registry("registry"), stream=stream,
        load=lambda version: KeywordClassifier(version, {"order": "order", "refund": "refund"}),
        announce=lambda line: print(line, flush=True))
"""


@pytest.mark.e2e
def test_https_works_with_a_key_and_plain_http_does_not(tmp_path, publish):
    publish(Registry("registry"), "v1")
    write_certificate(tmp_path)
    issued = issue("web", ("predict",), created=NOW)
    add_key(Path("keys.json"), issued.key)
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PERDURE_")}
    with Path("stderr").open("wb") as errors:
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**environ, "OMP_NUM_THREADS": "1"},
        )
    try:
        line = process.stdout.readline()
        assert line.startswith("Perdure serves version v1 at https://127.0.0.1:"), Path("stderr").read_text()
        url = line.split()[5]
        trusting = ssl.create_default_context(cafile="server.crt")
        with httpx.Client(base_url=url, verify=trusting, timeout=10) as client:
            body = {"text": "a refund"}
            assert client.post("/v1/predict", json=body).status_code == 401
            answer = client.post("/v1/predict", json=body, headers={"X-API-Key": issued.text})
            assert (answer.status_code, answer.json()["label"]) == (200, "refund")
        with pytest.raises(httpx.TransportError):
            httpx.post(url.replace("https", "http") + "/v1/predict", json=body, timeout=10)
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{url}/healthz", timeout=10)
        host, port = url.removeprefix("https://").split(":")
        older = ssl.create_default_context(cafile="server.crt")
        older.maximum_version = ssl.TLSVersion.TLSv1_2
        with (
            socket.create_connection((host, int(port)), timeout=10) as plain,
            older.wrap_socket(plain, server_hostname=host) as wrapped,
        ):
            cipher = wrapped.cipher()[0]
            assert cipher.startswith("ECDHE")
            assert "GCM" in cipher or "CHACHA20" in cipher
    finally:
        process.terminate()
        process.stdout.close()
        assert process.wait(10) == 0
    told = Path("stderr").read_text()
    assert issued.text[21:] not in told
    assert "Traceback" not in told
