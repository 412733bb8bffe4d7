"""What status an answer gets, for those who count or trace it."""

from __future__ import annotations

from starlette.types import Message, Send


class WatchedSend:
    """Sends an answer on, and remembers its status.

    One that never begins counts as 500: the application outside of all middleware answers so in its place.
    """

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status = 500

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        await self._send(message)
