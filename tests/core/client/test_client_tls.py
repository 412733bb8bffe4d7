"""Over https: the same deadlines, and nobody is trusted who is not known."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import subprocess
import time

import pytest

from perdure.client import AsyncClient
from perdure.errors import ApiTimeout, ApiUnreachable

pytestmark = [
    pytest.mark.filterwarnings("error::ResourceWarning"),
    pytest.mark.skipif(shutil.which("openssl") is None, reason="makes a certificate with openssl"),
]


@pytest.fixture(scope="session")
def certificate(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run(
        [
            "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
            "-days", "2", "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1",
            "-keyout", str(folder / "key.pem"), "-out", str(folder / "certificate.pem"),
        ],
        check=True,
        capture_output=True,
    )  # fmt: skip
    return folder


@pytest.fixture
def secure(api, certificate):
    """The hand-made server, behind TLS; the client's end of the trust."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate / "certificate.pem", certificate / "key.pem")
    api.tls = context
    return f"https://127.0.0.1:{api.port}", ssl.create_default_context(cafile=str(certificate / "certificate.pem"))


def test_requests_and_kept_connections(secure, api, acts, client_of):
    url, trusted = secure
    client = client_of(url, tls=trusted)
    api.script = [acts.good, acts.good, acts.silent, acts.good]
    for _ in range(3):
        assert client.predict("order").id == "id-1"
    assert [asked.connection for asked in api.asked] == [1, 1, 1, 2]
    assert api.asked[0].headers["host"] == f"127.0.0.1:{api.port}"


def test_who_is_not_known_is_not_trusted(secure, api, acts, client_of):
    api.script = [acts.good]
    with pytest.raises(ApiUnreachable, match="certificate verify failed"):
        client_of(secure[0], tries=1, api_key="secret").predict("order")
    assert api.asked == []


def test_deadlines_hold_over_tls(secure, api, acts, client_of):
    url, trusted = secure
    api.script = [acts.drip(head=True)]
    begun = time.monotonic()
    with pytest.raises(ApiTimeout):
        client_of(url, tls=trusted, timeout=0.5, tries=1).predict("order")
    assert 0.4 < time.monotonic() - begun < 4


def test_a_handshake_that_never_ends_is_left(api, client_of):
    api.script = [lambda connection, server: True]
    begun = time.monotonic()
    # The server speaks plain HTTP, and waits for the end of a request that never comes.
    with pytest.raises(ApiUnreachable, match="Nothing was sent"):
        client_of(f"https://127.0.0.1:{api.port}", timeout=0.4, tries=1).predict("order")
    assert time.monotonic() - begun < 2.5


def test_a_cancelled_handshake_leaves_no_connection(api):
    async def main():
        async with AsyncClient(f"https://127.0.0.1:{api.port}") as client:
            call = asyncio.create_task(client.predict("order"))
            while not api.connections:
                await asyncio.sleep(0.005)
            await asyncio.sleep(0.05)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            while not api.closed:
                await asyncio.sleep(0.005)

    api.script = [lambda connection, server: True]
    asyncio.run(asyncio.wait_for(main(), 5))
