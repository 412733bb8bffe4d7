"""What the demo sends: requests in waves, and what it evaluates on."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path

from perdure.dataset import DataRow, file_digest, read_rows
from perdure.errors import UsageError
from perdure.records import Label

FOLDER = Path("examples/support_desk")
STREAM_FILE = "stream.jsonl"
EVAL_FILE = "eval.jsonl"


class Request(DataRow):
    """One request of a customer."""

    told: Label | None = None
    """The wrong label that is given as feedback instead of `label`, where somebody errs."""

    @property
    def said(self) -> str | None:
        """What the feedback says; None where nobody gives any."""
        return (self.told or self.label) if self.labelled else None

    @property
    def wrong(self) -> bool:
        """The feedback is not the truth."""
        return self.said not in (None, self.label)


@dataclass(frozen=True)
class Wave:
    """Requests that arrive one after the other, with the intents that nobody had asked about before."""

    number: int
    first: int
    """Number of its first request, counted over all waves."""
    requests: tuple[Request, ...]
    new_labels: tuple[str, ...]

    @property
    def end(self) -> int:
        """Number behind its last request."""
        return self.first + len(self.requests)


@dataclass(frozen=True)
class Scenario:
    """All of it."""

    opening: tuple[Request, ...]
    """What version 1 is fitted from."""
    waves: tuple[Wave, ...]
    evaluation: tuple[DataRow, ...]
    """Never sent; each row counts from the wave of its session on."""
    digest: str
    """Of both files."""

    @cached_property
    def requests(self) -> tuple[Request, ...]:
        """Those of all waves, by their numbers."""
        return tuple(request for wave in self.waves for request in wave.requests)

    def wave_of(self, number: int) -> Wave:
        """The wave of request `number`; the last one for what lies behind it."""
        return next((wave for wave in self.waves if number < wave.end), self.waves[-1])


def find_data(given: Path | None, start: Path | None = None) -> Path:
    """The folder with the data: the one given, or the examples beside or above `start`, or of the source checkout.

    Raises:
        UsageError: there is none.
    """
    if given is not None:
        return _complete(given)
    start = (start or Path.cwd()).resolve()
    checkout = Path(__file__).resolve().parents[3]
    for folder in (start, *start.parents, checkout):
        if (folder / FOLDER / STREAM_FILE).is_file():
            return _complete(folder / FOLDER)
    raise UsageError(
        f"the demo's data is neither in {start / FOLDER} nor above it: run it inside a checkout of Perdure's source, "
        f"or give --data DIR with a {STREAM_FILE} and an {EVAL_FILE}"
    )


def read_scenario(folder: Path, waves: int | None = None) -> Scenario:
    """The scenario in `folder`, its first `waves` waves or all.

    Raises:
        UsageError: a file cannot be read or is empty, or there is no opening or no wave.
        DataError: a row is broken; with its line number.
    """
    stream, evaluation = folder / STREAM_FILE, folder / EVAL_FILE
    requests = _requests(stream)
    opening = tuple(request for request in requests if request.session == 0)
    numbers = sorted({request.session for request in requests} - {0})
    if not opening or not numbers:
        raise UsageError(f"{stream} needs rows of session 0, which version 1 is fitted from, and of sessions after it")
    if waves is not None and waves > len(numbers):
        raise UsageError(f"--waves cannot be {waves}: {stream} has {len(numbers)}")
    chosen = numbers[:waves]
    of = {number: tuple(one for one in requests if one.session == number) for number in chosen}
    starts = (0, *accumulate(len(of[number]) for number in chosen))
    known = {request.label for request in opening}
    made = []
    for number, first in zip(chosen, starts, strict=False):
        new = tuple(dict.fromkeys(one.label for one in of[number] if one.label not in known))
        known.update(new)
        made.append(Wave(number, first, of[number], new))
    return Scenario(opening, tuple(made), read_rows(evaluation), file_digest(stream) + file_digest(evaluation))


def _requests(path: Path) -> tuple[Request, ...]:
    # Everything that can be wrong with a row is said there, with its line.
    read_rows(path)
    lines = (line for line in path.read_text(encoding="utf-8").split("\n") if line.strip())
    return tuple(Request.model_validate(json.loads(line)) for line in lines)


def _complete(folder: Path) -> Path:
    for name in (STREAM_FILE, EVAL_FILE):
        if not (folder / name).is_file():
            raise UsageError(f"{folder} has no {name}: --data needs a folder with {STREAM_FILE} and {EVAL_FILE}")
    return folder
