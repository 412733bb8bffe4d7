"""The gRPC port: who is let in, over what, and how it ends."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from perdure.config import ALLOW_ANONYMOUS, ServingSettings, Settings
from perdure.errors import SettingError
from perdure.registry import Registry
from perdure_services.serving import create_app
from perdure_services.serving.metrics import Metrics
from perdure_services.serving.rpc import open_inference_pb2 as pb
from perdure_services.serving.rpc.server import running
from perdure_services.serving.service import Service


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def certificate(tmp_path):
    """Writes server.crt, for 127.0.0.1, and server.key."""

    def write(password=None):
        private, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
        names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
        made = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject)
            .public_key(private.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(names, critical=False)
            .sign(private, hashes.SHA256())
        )
        hidden = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
        pem = serialization.Encoding.PEM
        Path("server.crt").write_bytes(made.public_bytes(pem))
        Path("server.key").write_bytes(private.private_bytes(pem, serialization.PrivateFormat.PKCS8, hidden))

    return write


TLS = {"tls_certificate": "server.crt", "tls_key": "server.key"}


def live(channel):
    call = channel.unary_unary(
        "/inference.GRPCInferenceService/ServerLive",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=pb.ServerLiveResponse.FromString,
    )
    return call(pb.ServerLiveRequest(), timeout=3).live


def infer(channel, text):
    request = pb.ModelInferRequest(model_name="perdure")
    request.inputs.add(name="text", datatype="BYTES", shape=[1]).contents.bytes_contents.append(text.encode())
    call = channel.unary_unary(
        "/inference.GRPCInferenceService/ModelInfer",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=pb.ModelInferResponse.FromString,
    )
    return call(request, timeout=10).outputs[0].contents.bytes_contents[0].decode()


def app(registry, stream, shelf, **settings):
    tree = Settings().with_values({f"serving.{name}": value for name, value in {"grpc_port": 0, **settings}.items()})
    return create_app(tree, registry=registry, stream=stream, load=shelf)


@pytest.mark.parametrize("both", [False, True])
def test_with_a_certificate_only_tls_is_spoken(certificate, serving, both):
    certificate()
    files = TLS
    if both:
        Path("both.pem").write_bytes(Path("server.crt").read_bytes() + Path("server.key").read_bytes())
        files = {"tls_certificate": "both.pem"}
    with serving(grpc_port=0, **files) as client:
        place = f"127.0.0.1:{client.app.state.grpc_port}"
        trusted = grpc.ssl_channel_credentials(Path("server.crt").read_bytes())
        with grpc.secure_channel(place, trusted) as channel:
            assert live(channel) is True
        with grpc.insecure_channel(place) as channel, pytest.raises(grpc.RpcError) as error:
            live(channel)
        assert error.value.code() == grpc.StatusCode.UNAVAILABLE
        with grpc.secure_channel(place, grpc.ssl_channel_credentials()) as channel, pytest.raises(grpc.RpcError):
            live(channel)


def test_an_encrypted_key_is_refused_in_words(certificate, registry, stream, shelf):
    certificate(b"open sesame")
    Path("password").write_text("open sesame")
    with pytest.raises(SettingError, match="gRPC cannot use a TLS key that is encrypted"):
        app(registry, stream, shelf, tls_key_password_file="password", **TLS)
    with pytest.raises(SettingError, match="cannot read serving"):
        app(registry, stream, shelf, tls_certificate="absent")


def test_other_machines_are_let_in_only_as_over_http(registry, stream, shelf, file, make):
    make()
    with pytest.raises(SettingError, match="can be reached from other machines"):
        app(registry, stream, shelf, host="0.0.0.0")
    app(registry, stream, shelf, host="0.0.0.0", keys=str(file))
    app(registry, stream, shelf, host="0.0.0.0", allow_anonymous=ALLOW_ANONYMOUS)


def test_a_port_that_is_taken_is_told_at_once(registry, stream, shelf):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=rf"127.0.0.1:{port} for gRPC .*: choose another serving.grpc_port"):
            app(registry, stream, shelf, grpc_port=port)


def test_two_servers_do_not_share_a_port(serving, registry, stream, shelf):
    with serving(grpc_port=0) as client, pytest.raises(OSError, match=r"choose another serving\.grpc_port"):
        app(registry, stream, shelf, grpc_port=client.app.state.grpc_port)


def test_two_that_start_at_once_do_not_share_it_either():
    async def start():
        service, again = (SimpleNamespace(metrics=Metrics(), ending=asyncio.Event()) for _ in range(2))
        async with running(ServingSettings(grpc_port=0), service, None, None, None) as port:
            with pytest.raises(OSError, match=r"choose another serving\.grpc_port"):
                async with running(ServingSettings(grpc_port=port), again, None, None, None):
                    pass

    asyncio.run(start())


def test_it_ends_while_http_does_and_not_after_it(registry, stream, shelf):
    """New calls are refused, and those under way answered, before the context is over."""

    async def main():
        service = Service(ServingSettings(drain_seconds=5), registry=registry, stream=stream, load=shelf)
        assert service.seconds_left == 5
        released = asyncio.Event()

        async def held():
            await released.wait()
            return type("Readiness", (), {"ready": True})()

        service.ready = held
        settings = ServingSettings(grpc_port=0)
        async with running(settings, service, None, None, None) as port, connected(port) as calls:
            under_way = asyncio.ensure_future(ready(calls))
            in_flight = service.metrics.registry.get_sample_value
            while in_flight("perdure_grpc_requests_in_flight") != 1:
                await asyncio.sleep(0.005)
            service.end_within(3)
            assert 2.5 < service.seconds_left <= 3
            await asyncio.sleep(0.1)
            async with connected(port) as late:
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await ready(late)
            assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
            released.set()
            assert pb.ServerReadyResponse.FromString(await under_way).ready

    def connected(port):
        return grpc.aio.insecure_channel(f"127.0.0.1:{port}")

    async def ready(calls):
        return await calls.unary_unary("/inference.GRPCInferenceService/ServerReady")(b"", timeout=5)

    asyncio.run(main())


def test_where_grpc_is_not_installed_it_says_what_to_install(monkeypatch, registry, stream, shelf):
    for name in [name for name in sys.modules if name.startswith("perdure_services.serving.rpc")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "grpc", None)
    with pytest.raises(SettingError, match=r"install perdure\[grpc\]"):
        app(registry, stream, shelf)
    app(registry, stream, shelf, grpc_port=None)


PROGRAM = """
import sys, time
from perdure.config import Settings
from perdure.model.double import KeywordClassifier
from perdure.registry import Registry
from perdure.stream import SqliteStream
from perdure_services.serving.server import listen, run

class Slow(KeywordClassifier):
    def scores(self, texts):
        if "slow" in texts[0]:
            print("asked", flush=True)
            time.sleep(1.0)
        return super().scores(texts)

settings = Settings().with_values({"serving.grpc_port": int(sys.argv[1]), "serving.drain_seconds": 5})
with SqliteStream("stream.db") as stream, listen("127.0.0.1", 0) as listener:
    run(settings, listener=listener, registry=Registry("registry"), stream=stream,
        load=lambda version: Slow(version, {"order": "order", "refund": "refund"}),
        announce=lambda line: print(line, flush=True))
"""


@pytest.mark.e2e
def test_a_call_under_way_is_answered_when_the_process_is_told_to_stop(publish):
    publish(Registry("registry"), "v1")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PERDURE_")}
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(port)],
        stdout=subprocess.PIPE,
        text=True,
        env={**environ, "OMP_NUM_THREADS": "1"},
    )
    answers = []
    try:
        assert process.stdout.readline().startswith("Perdure serves version v1")
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            asking = threading.Thread(target=lambda: answers.append(infer(channel, "a slow refund")))
            asking.start()
            assert process.stdout.readline() == "asked\n"
            process.send_signal(signal.SIGTERM)
            asking.join(10)
        assert answers == ["refund"]
    finally:
        process.terminate()
        process.stdout.close()
        assert process.wait(10) == 0
