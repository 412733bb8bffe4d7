"""One call, as what answers it sees it."""

from __future__ import annotations

import asyncio
import time
from functools import cached_property
from typing import Any, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message

from perdure_services.keys import KeyScope
from perdure_services.serving.access import Access
from perdure_services.serving.deadline import deadline_in
from perdure_services.serving.refusal import Refusal
from perdure_services.serving.request_id import id_of

Asked = TypeVar("Asked", bound=Message)

Context = grpc.aio.ServicerContext[Any, Any]


class Call:
    """What came with a call, and, once it is read, its message.

    Args:
        context: gRPC's.
        access: who may ask.
    """

    def __init__(self, context: Context, access: Access) -> None:
        metadata = context.invocation_metadata() or ()
        self.headers = tuple(
            (name.encode("utf-8"), value.encode("utf-8") if isinstance(value, str) else value)
            for name, value in metadata
        )
        """Metadata, with names in lower case."""
        self.key: str | None = None
        """The name of the key that it came with, once that is admitted; None where none is asked for."""
        self._context = context
        self._access = access

    @cached_property
    def id(self) -> str:
        """The id by which it is found again."""
        return id_of(self.headers)

    def deadline(self, most: float) -> float:
        """When the answer must be there, in monotonic seconds: in `most` seconds, or sooner where the client says so.

        Raises:
            Refusal: 422 a header with a time in it cannot be read.
        """
        until = deadline_in(self.headers, most)
        left = self._context.time_remaining()
        return until if left is None else min(until, time.monotonic() + left)

    def admit(self, needed: KeyScope) -> None:
        """Asks for a key with the scope `needed`.

        Raises:
            Refusal: as `Access.admit`.
        """
        self.key = self._access.admit(self.headers, needed)

    async def message(self, kind: type[Asked], until: float) -> Asked:
        """Its message, which must be there by `until` (monotonic seconds).

        Raises:
            Refusal: 400 it is none of this kind; 408 it does not come in time.
        """
        try:
            async with asyncio.timeout(until - time.monotonic()):
                raw = await self._context.read()
        except TimeoutError as error:
            raise Refusal(
                408, "the message did not come in time", do="send the request again, faster or with fewer texts"
            ) from error
        name = kind.DESCRIPTOR.full_name
        if not isinstance(raw, bytes):
            raise Refusal(400, f"the call ended without a message of the type {name}", do="send one")
        try:
            return kind.FromString(raw)
        except DecodeError as error:
            do = "send one that is encoded by the protocol's own definition, with strings in UTF-8"
            raise Refusal(400, f"the message cannot be read as one of the type {name}", do=do) from error
