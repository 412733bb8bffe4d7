"""What a log line looks like: text for people, or one JSON object for whatever collects logs.

Lines carry what was bound where they were logged, above all the id of the request. They never carry what a client
sent: within a request the messages of exceptions that are not ours are withheld, since a tokenizer or a parser likes
to quote what it choked on; their types and places stay.

The standard library's logging is enough for this, and what a formatter from a package would save is the dozen lines
that call `json.dumps`; what takes thought here (withholding, what is bound) it would not have.
"""

from __future__ import annotations

import json
import logging
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, Literal

from perdure.errors import PerdureError

LogFormat = Literal["text", "json"]

FIELDS = "fields"
"""Name of the `extra` whose mapping becomes members of a JSON line."""

WITHHELD = "(withheld: it may quote what a client sent)"

_NOTHING: Mapping[str, str] = MappingProxyType({})
_TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"

_bound: ContextVar[Mapping[str, str]] = ContextVar("perdure_log_fields", default=_NOTHING)


def bind(**fields: str) -> None:
    """Puts `fields`, and no others, on every line logged from now on in this task or thread, and in tasks of it."""
    _bound.set(fields)


def bound() -> Mapping[str, str]:
    """The fields of lines that are logged here."""
    return _bound.get()


class TextFormatter(logging.Formatter):
    """Time, level, logger and message; the request's id behind them.

    Args:
        redact: takes what must not be shown out of a whole line.
    """

    def __init__(self, redact: Callable[[str], str] = str) -> None:
        super().__init__(_TEXT)
        self._redact = redact

    def format(self, record: logging.LogRecord) -> str:
        record.message = record.getMessage()
        record.asctime = self.formatTime(record)
        line = self.formatMessage(record)
        if id := bound().get("request_id"):
            line += f" (request {id})"
        if record.exc_info:
            # Not by way of `record.exc_text`, where another handler may have left all that the exception says.
            line += f"\n{_told(record.exc_info[1])}"
        return self._redact(line)


class JsonFormatter(logging.Formatter):
    """One JSON object a line, in ASCII: `time` (RFC 3339, UTC), `level`, `logger`, `message`, what is bound, the
    mapping in `extra={"fields": ...}`, and `exception`.

    Args:
        redact: takes what must not be shown out of a whole line.
    """

    def __init__(self, redact: Callable[[str], str] = str) -> None:
        super().__init__()
        self._redact = redact

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")[:-6] + "Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **bound(),
            **getattr(record, FIELDS, _NOTHING),
        }
        if record.exc_info:
            line["exception"] = _told(record.exc_info[1])
        return self._redact(json.dumps(line, default=str))


def begin(level: int) -> None:
    """Logs to standard error, as text; does nothing where somebody has set logging up already."""
    root = logging.getLogger()
    if root.handlers:
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(TextFormatter())
    root.addHandler(handler)
    root.setLevel(level)


def use(format: LogFormat, redact: Callable[[str], str] = str) -> None:
    """Changes the format of what `begin` has set up; handlers of others keep theirs."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler.formatter, TextFormatter | JsonFormatter):
            handler.setFormatter(JsonFormatter(redact) if format == "json" else TextFormatter(redact))


def _told(error: BaseException | None) -> str:
    """The traceback of `error` and of what led to it, oldest first."""
    # The thread that works for many requests binds nothing, and runs what it logs of one in that one's context.
    within = "request_id" in bound()
    parts = [f"{_frames(link)}{_name(link)}: {_message(link, withhold=within)}" for link in _links(error)]
    return "\n\nwhich led to\n\n".join(reversed(parts))


def _links(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _frames(error: BaseException) -> str:
    return "".join(["Traceback (most recent call last):\n", *traceback.format_tb(error.__traceback__)])


def _name(error: BaseException) -> str:
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _message(error: BaseException, *, withhold: bool) -> str:
    # What the system says (a full disk, no memory) quotes nobody.
    ours = isinstance(error, PerdureError | OSError | MemoryError)
    return WITHHELD if withhold and not ours else str(error)
