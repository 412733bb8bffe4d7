"""The stream: where live events wait, in order, until memory has read them."""

from perdure.stream.base import Entry, Offset, Page, Stream
from perdure.stream.memory import MemoryStream
from perdure.stream.open import open_stream
from perdure.stream.sqlite import SqliteStream

__all__ = ["Entry", "MemoryStream", "Offset", "Page", "SqliteStream", "Stream", "open_stream"]
