"""A proxy between a client and an S3 server that does what networks and stores do on bad days."""

from __future__ import annotations

import asyncio
import re
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Self

HOST = "127.0.0.1"


@dataclass(frozen=True)
class Request:
    """What a client asks."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]

    @property
    def lists(self) -> bool:
        return self.method == "GET" and "list-type=2" in self.target

    @property
    def writes(self) -> bool:
        return self.method in ("PUT", "POST")

    @property
    def creates(self) -> bool:
        return self.headers.get("if-none-match") == "*"


@dataclass(frozen=True)
class Refused:
    """The store does not do it, and says so."""

    status: int
    code: str
    headers: tuple[str, ...] = ()


@dataclass(frozen=True)
class CutUpload:
    """The connection breaks when the server has so many bytes of the body."""

    after: int


@dataclass(frozen=True)
class CutDownload:
    """The connection breaks when the client has so many bytes of the answer's body."""

    after: int


@dataclass(frozen=True)
class AnswerLost:
    """The server has done it, and the connection breaks before the client hears of it."""


@dataclass(frozen=True)
class AnswerReplaced:
    """The server has done it, and somebody in between says that something went wrong."""

    status: int = 503
    code: str = "ServiceUnavailable"


@dataclass(frozen=True)
class Slow:
    """Both ways so many bytes at a time, with a pause between."""

    size: int
    seconds: float


@dataclass(frozen=True)
class Silent:
    """Nobody answers."""


Fault = Refused | CutUpload | CutDownload | AnswerLost | AnswerReplaced | Slow | Silent


@dataclass
class FaultProxy:
    """Passes requests on to a server at `port`, and does to some what `fault` says; a context.

    Listings lack what is younger than `late` seconds, and all times of the server are `ahead` by so many seconds.
    """

    port: int
    fault: Callable[[Request], Fault | None] = lambda request: None
    late: float = 0.0
    ahead: float = 0.0
    tls: ssl.SSLContext | None = None
    upload: float = float("inf")
    """Bytes a second that clients are rid of."""
    seen: list[Request] = field(default_factory=list)
    """All requests, in the order in which they came."""

    def __enter__(self) -> Self:
        self._loop = asyncio.new_event_loop()
        started = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(started,))
        self._thread.start()
        assert started.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(30)
        assert not self._thread.is_alive()

    @property
    def endpoint(self) -> str:
        return f"{'https' if self.tls else 'http'}://{HOST}:{self._listens_at}"

    def _run(self, started: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._serve(started))
        finally:
            self._loop.close()

    async def _serve(self, started: threading.Event) -> None:
        self._over = asyncio.Event()
        self._under_way: set[asyncio.Task[None]] = set()
        server = await asyncio.start_server(self._connected, HOST, 0, ssl=self.tls)
        self._listens_at = server.sockets[0].getsockname()[1]
        started.set()
        await self._over.wait()
        server.close()
        for task in self._under_way:
            task.cancel()
        await asyncio.gather(*self._under_way, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._under_way.add(task)
        try:
            while await self._pass_on(reader, writer):
                pass
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            # A client or a server that went away, or the end of the test.
            pass
        finally:
            self._under_way.discard(task)
            writer.transport.abort()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request and its answer; whether the connection goes on."""
        head = await reader.readuntil(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").strip().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        body = await self._taken(reader, int(headers.get("content-length", 0)))
        method, target, _ = first.split(" ")
        request = Request(method, target, headers, body)
        self.seen.append(request)
        fault = self.fault(request)
        match fault:
            case Refused(status, code, more):
                writer.write(_refusal(status, code, more))
                await writer.drain()
                return True
            case Silent():
                await self._over.wait()
                return False
        from_server, to_server = await asyncio.open_connection(HOST, self.port)
        try:
            if isinstance(fault, CutUpload):
                to_server.write(head + body[: fault.after])
                await to_server.drain()
                await asyncio.sleep(0.02)
                return False
            await _send(to_server, head + body, fault)
            answer_head, answer = await self._answer(from_server, request)
        finally:
            to_server.transport.abort()
        match fault:
            case AnswerLost():
                return False
            case AnswerReplaced(status, code):
                writer.write(_refusal(status, code, ()))
                await writer.drain()
                return True
            case CutDownload(after) if len(answer) > after:
                writer.write(answer_head + answer[:after])
                await writer.drain()
                return False
        await _send(writer, answer_head + answer, fault)
        return True

    async def _taken(self, reader: asyncio.StreamReader, size: int) -> bytes:
        body = bytearray()
        while left := size - len(body):
            body += await reader.readexactly(min(left, 100_000))
            await asyncio.sleep(min(left, 100_000) / self.upload)
        return bytes(body)

    async def _answer(self, reader: asyncio.StreamReader, request: Request) -> tuple[bytes, bytes]:
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
        empty = request.method == "HEAD" or b" 204 " in head[:20]
        body = b"" if empty else await reader.readexactly(int(length[1])) if length else await reader.read()
        if request.lists and (self.late or self.ahead):
            body = self._listed(body)
            head = re.sub(rb"(?i)\r\ncontent-length: *\d+", b"\r\nContent-Length: %d" % len(body), head)
        return head, body

    def _listed(self, body: bytes) -> bytes:
        def told(entry: re.Match[bytes]) -> bytes:
            found = re.search(rb"<LastModified>([^<]+)</LastModified>", entry[0])
            assert found is not None
            at = datetime.fromisoformat(found[1].decode())
            if (datetime.now(UTC) - at).total_seconds() < self.late:
                return b""
            shifted = (at + timedelta(seconds=self.ahead)).strftime("%Y-%m-%dT%H:%M:%S.000Z").encode()
            return entry[0].replace(found[1], shifted)

        return re.sub(rb"<Contents>.*?</Contents>", told, body, flags=re.DOTALL)


async def _send(writer: asyncio.StreamWriter, data: bytes, fault: Fault | None) -> None:
    size = fault.size if isinstance(fault, Slow) else max(len(data), 1)
    for start in range(0, len(data), size):
        writer.write(data[start : start + size])
        await writer.drain()
        if isinstance(fault, Slow):
            await asyncio.sleep(fault.seconds)


def _refusal(status: int, code: str, more: tuple[str, ...]) -> bytes:
    body = f'<?xml version="1.0"?>\n<Error><Code>{code}</Code><Message>no</Message><Secret>hunter2</Secret></Error>'
    lines = [f"HTTP/1.1 {status} No", f"Content-Length: {len(body)}", "Content-Type: application/xml", *more, "", body]
    return "\r\n".join(lines).encode()
