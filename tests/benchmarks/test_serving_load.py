"""The load generator against a server whose every answer is known."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import pytest

from servers.connection import dechunked
from servers.figures import LoadFigures, quantile
from servers.load import Load, measured, request_bytes

OK = b'{"label":"yes"}'


def reply(body: bytes = OK, status: int = 200, extra: bytes = b"") -> bytes:
    return b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n%s\r\n%s" % (status, len(body), extra, body)


def chunks(*parts: bytes) -> bytes:
    body = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (*parts, b""))
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + body


@dataclass
class Stub:
    """Answers every request alike, in pieces where it is told so, after a delay; or holds still for a while."""

    pieces: Sequence[bytes] = (reply(),)
    """Sent one after another."""
    delay: float = 0.0
    still: tuple[float, float] = (0.0, 0.0)
    """Seconds after the first request from which, and how long, no answer goes out."""
    hang_up_every: int = 0
    """Every so many requests the connection is closed in place of an answer."""
    answers: Sequence[bytes] = ()
    """Whole answers, in turns, in place of `pieces`."""
    port: int = 0
    requests: list[bytes] = field(default_factory=list)
    connections: int = 0
    first: float = 0.0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
                self.requests.append(await reader.readexactly(length))
                self.first = self.first or time.perf_counter()
                number = len(self.requests)
                if self.hang_up_every and number % self.hang_up_every == 0:
                    break
                into = time.perf_counter() - self.first - self.still[0]
                pause = self.still[1] - into if 0 <= into < self.still[1] else 0.0
                if self.delay + pause:
                    await asyncio.sleep(self.delay + pause)
                for piece in (self.answers[number % len(self.answers)],) if self.answers else self.pieces:
                    writer.write(piece)
                    await writer.drain()
                    if len(self.pieces) > 1:
                        await asyncio.sleep(0.001)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@dataclass
class Host:
    """Runs stubs in a thread of their own."""

    loop: asyncio.AbstractEventLoop
    servers: deque[asyncio.Server] = field(default_factory=deque)

    def __call__(self, stub: Stub) -> Stub:
        async def start() -> None:
            server = await asyncio.start_server(stub.serve, "127.0.0.1", 0)
            stub.port = server.sockets[0].getsockname()[1]
            self.servers.append(server)

        asyncio.run_coroutine_threadsafe(start(), self.loop).result(5)
        return stub


@pytest.fixture
def host() -> Iterator[Host]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    one = Host(loop)
    yield one

    async def stop() -> None:
        for server in one.servers:
            server.close()
        rest = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

    asyncio.run_coroutine_threadsafe(stop(), loop).result(5)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(5)
    loop.close()


def load(stub: Stub, **how: object) -> Load:
    given = {"seconds": 0.4, "warm_up": 0.1, "check_every": 1, **how}
    return Load(stub.port, "/ask", ['{"text":"ä"}'], ['"label":"yes"'], **given)  # type: ignore[arg-type]


def asked(stub: Stub, **how: object) -> LoadFigures:
    return measured(load(stub, **how))


def test_a_request_is_what_http_says(host: Host) -> None:
    stub = host(Stub())
    asked(stub, seconds=0.1)
    assert set(stub.requests) == {'{"text":"ä"}'.encode()}
    data = request_bytes(load(stub), "ä")
    assert data.startswith(b"POST /ask HTTP/1.1\r\nHost: 127.0.0.1:")
    assert b"\r\nContent-Length: 2\r\n" in data
    assert data.endswith(b"\r\n\r\n\xc3\xa4")


def test_all_requests_are_asked_in_a_drawn_order(host: Host) -> None:
    stub = host(Stub())
    bodies = [str(number) for number in range(20)]
    measured(replace(load(stub, seconds=0.3), bodies=bodies, marks=bodies, seed=1))
    first = [body.decode() for body in stub.requests[:20]]
    assert sorted(first) == sorted(bodies)
    assert first != bodies
    assert [body.decode() for body in stub.requests[20:40]] == first


@pytest.mark.parametrize("connections", [1, 6])
def test_a_closed_loop_waits_for_its_answers(host: Host, connections: int) -> None:
    stub = host(Stub(delay=0.02))
    found = asked(stub, connections=connections, seconds=0.6)
    assert stub.connections == connections
    # Never more than one request under way on a connection: no more than 1/delay a second each.
    assert 0.2 * connections / 0.02 < found.rps <= 1.05 * connections / 0.02
    assert 20 <= found.p50_ms < 100
    assert found.p50_ms <= found.p90_ms <= found.p99_ms <= found.max_ms
    assert found.failures == 0
    assert found.requests == pytest.approx(found.rps * found.seconds, abs=1)
    assert found.checked == found.right == found.requests
    assert 0 < found.generator_us < 20_000


def test_warm_up_does_not_count(host: Host) -> None:
    stub = host(Stub(delay=0.01, still=(0.0, 0.4)))
    found = asked(stub, warm_up=0.5, seconds=0.3)
    assert found.max_ms < 350
    assert found.requests < len(stub.requests)


def test_an_open_loop_asks_at_its_rate(host: Host) -> None:
    stub = host(Stub(delay=0.03))
    found = asked(stub, rate=100.0, connections=50, seconds=1.0, warm_up=0.2)
    assert found.requests == 100
    assert found.rps == 100
    assert len(stub.requests) == pytest.approx(120, abs=1)
    # One connection alone would not do.
    assert 1 < stub.connections <= 50
    assert 30 <= found.p50_ms < 130
    assert found.within(200)
    assert not found.within(29)


def test_who_would_have_come_during_a_stall_is_counted(host: Host) -> None:
    """One connection: without counting from the schedule, a stall of 0.3 s would be one slow request among many."""
    stub = host(Stub(still=(0.3, 0.3)))
    found = asked(stub, rate=100.0, connections=1, seconds=1.0, warm_up=0.1)
    assert found.requests == 100
    assert found.max_ms >= 280
    # 30 requests were due in the stall; they waited 0.15 s on average.
    assert found.p90_ms > 120
    assert not found.within(50)
    # In a closed loop the same stall is one request.
    closed = asked(host(Stub(delay=0.005, still=(0.3, 0.3))), seconds=1.0)
    assert closed.p90_ms < 120


def test_poisson_arrivals_keep_the_mean_rate(host: Host) -> None:
    found = asked(host(Stub()), rate=300.0, connections=30, seconds=1.0, arrivals="poisson", seed=3)
    assert 240 < found.requests < 360
    assert found.requests != 300
    assert found.failures == 0


def test_a_server_that_falls_behind_is_given_up(host: Host) -> None:
    stub = host(Stub(delay=0.2))
    began = time.perf_counter()
    found = asked(stub, rate=200.0, connections=4, seconds=20.0, give_up_seconds=0.5)
    assert time.perf_counter() - began < 5
    assert found.gave_up
    assert found.unanswered > 0
    assert not found.within(1e6)
    patient = asked(host(Stub(delay=0.1)), rate=50.0, connections=1, seconds=0.6, give_up_seconds=0.0)
    assert not patient.gave_up
    assert patient.requests == 30
    assert patient.max_ms > 1000


@pytest.mark.parametrize(
    "pieces",
    [
        (reply(),),
        (reply()[:5], reply()[5:20], reply()[20:-4], reply()[-4:]),
        (chunks(OK[:4], OK[4:]),),
        (chunks(OK[:4], OK[4:])[:-30], chunks(OK[:4], OK[4:])[-30:-2], b"\r\n"),
        (b"HTTP/1.1 200 OK\r\nCONTENT-LENGTH:15\r\nX: y\r\n\r\n" + OK,),
    ],
    ids=["whole", "in pieces", "chunks", "chunks in pieces", "capitals"],
)
def test_answers_are_read_whatever_their_frame(host: Host, pieces: tuple[bytes, ...]) -> None:
    found = asked(host(Stub(pieces)), connections=2)
    assert found.requests > 5
    assert found.right == found.checked == found.requests
    assert found.failures == 0


def test_other_statuses_are_no_answers(host: Host) -> None:
    stub = host(Stub(answers=(reply(), reply(status=429), reply(), reply(status=503))))
    found = asked(stub, seconds=0.3)
    assert set(found.statuses) == {"429", "503"}
    refused = sum(found.statuses.values())
    assert found.failures == refused
    assert abs(refused - found.requests) <= 2
    assert found.rps == pytest.approx(found.requests / found.seconds, rel=0.01)
    assert not found.within(1e6)


def test_lost_connections_are_counted_and_replaced(host: Host) -> None:
    stub = host(Stub(hang_up_every=10))
    found = asked(stub, connections=2, seconds=0.5)
    assert found.broken >= 3
    assert stub.connections >= 2 + found.broken - 2
    assert found.requests > 3 * found.broken
    assert not found.within(1e6)


def test_a_server_that_closes_after_each_answer_is_no_failure(host: Host) -> None:
    stub = host(Stub((reply(extra=b"Connection: close\r\n"),)))
    found = asked(stub, seconds=0.4)
    assert found.failures == 0
    assert stub.connections > 5
    assert found.requests > 3


def test_answers_that_cannot_be_framed_are_failures(host: Host) -> None:
    found = asked(host(Stub((b"HTTP/1.1 200 OK\r\nX: y\r\n\r\nhello",))), seconds=0.2)
    assert found.requests == 0
    assert found.broken > 0


def test_requests_without_an_answer_are_counted(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("servers.load.GRACE_SECONDS", 0.1)
    found = asked(host(Stub(delay=30.0)), connections=3, seconds=0.2)
    assert found.unanswered == 3
    assert found.failures == 3
    assert found.rps == 0
    assert found.p50_ms > 200


def test_wrong_answers_are_seen(host: Host) -> None:
    other = reply(b'{"label":"yes_or_no"}')
    found = asked(host(Stub((other,))), seconds=0.2)
    assert found.requests > 0
    assert found.checked == found.requests
    assert found.right == 0
    assert found.wrong
    assert not found.within(1e6)
    some = asked(host(Stub()), seconds=0.3, check_every=4)
    assert some.checked == pytest.approx(some.requests / 4, abs=2)


def test_nobody_listens() -> None:
    with pytest.raises(OSError, match="Connect call failed"):
        measured(Load(1, "/", ["x"], ["x"], 0.1))


def test_quantiles_are_values_that_were_seen() -> None:
    values = [float(value) for value in range(1, 101)]
    assert [quantile(values, share) for share in (0.5, 0.9, 0.99, 1.0)] == [50, 90, 99, 100]
    assert quantile([3.0], 0.99) == 3
    assert quantile([1.0, 2.0, 3.0], 0.5) == 2
    assert quantile([], 0.5) == 0


def test_a_body_in_chunks() -> None:
    whole = chunks(b"ab", b"cde").split(b"\r\n\r\n", 1)[1]
    assert dechunked(whole, 0) == b"abcde"
    assert all(dechunked(whole[:end], 0) is None for end in range(len(whole)))
    assert dechunked(b"2;x=y\r\nab\r\n0\r\n\r\n", 0) == b"ab"
