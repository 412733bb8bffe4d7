"""How far the demo has come: a journal that the next start goes on from."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Self

from perdure.errors import UsageError
from perdure.turn import TurnResult

FILE = "progress.jsonl"


@dataclass(frozen=True, slots=True)
class Answer:
    """What the API said to one request."""

    number: int
    """Of the request, counted over all waves."""
    id: str
    label: str
    confidence: float
    version: str
    recorded: bool
    seconds: float


@dataclass(frozen=True, slots=True)
class Score:
    """Accuracy on the evaluation rows whose session had come, at one moment."""

    seconds: float
    """Of the demo's own time."""
    sent: int
    """Requests answered by then."""
    wave: int
    version: str
    """What served."""
    accuracy: float
    first: float
    """Of version 1, which never learned again, on the same rows."""
    promotion: bool
    """`version` had just been promoted."""


@dataclass(frozen=True, slots=True)
class SeenTurn:
    """A turn of the trainer, and when it was seen to be finished."""

    wave: int
    sent: int
    result: TurnResult


class Progress:
    """What has happened so far, in memory and in a file of JSON Lines, one line for each thing.

    A line is handed to the system before the next thing happens: whatever kills this process, the next one knows all
    but the requests that were under way.

    Args:
        folder: of the demo.
        identity: what the demo is of; one with another identity cannot go on from here.

    Raises:
        UsageError: the folder holds a demo of something else, or cannot be written.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        self.answers: dict[int, Answer] = {}
        self.told: set[int] = set()
        """Requests whose feedback was taken."""
        self.scores: list[Score] = []
        self.turns: list[SeenTurn] = []
        self.ended: dict[int, float] = {}
        """Waves that are over, and how many seconds the trainer was waited for after the last request."""
        self.promotions = 0
        """Number of the last promotion that was seen."""
        self.first: str | None = None
        """Version 1: what was fitted at the start."""
        self.first_right: dict[int, tuple[bool, ...]] = {}
        """For each request of a wave, whether version 1 would have got it right."""
        self.failed = 0
        """Requests that failed; each was sent again."""
        self.runs = 0
        self._before = 0.0
        self._begun = time.monotonic()
        path = folder / FILE
        lines = _lines(path)
        for line in lines:
            self._take(line)
        theirs = lines[0].get("identity") if lines else identity
        if theirs != json.loads(json.dumps(identity)):
            raise UsageError(
                f"{folder} holds a demo with other data or settings: add --fresh to start anew, or give another --out"
            )
        try:
            # What a killed process left half-written goes.
            kept = "".join(json.dumps(line) + "\n" for line in lines)
            draft = path.with_suffix(".part")
            draft.write_text(kept, encoding="utf-8")
            draft.replace(path)
            self._file: IO[str] = path.open("a", encoding="utf-8")
        except OSError as error:
            raise UsageError(f"cannot write to {folder}: {error.strerror or error}; give another --out") from error
        self._identity = dict(identity)

    def begin(self) -> None:
        """A start that does something, not one that only shows what came of earlier ones."""
        self.runs += 1
        self._note("run", identity=self._identity)

    @property
    def seconds(self) -> float:
        """How long the demo has run, all starts together."""
        return self._before + time.monotonic() - self._begun

    @property
    def sent(self) -> int:
        """Requests answered."""
        return len(self.answers)

    def fitted(self, version: str, promotions: int) -> None:
        """Version 1 is there."""
        self.first, self.promotions = version, promotions
        self._note("fitted", version=version, promotions=promotions)

    def answered(self, answer: Answer) -> None:
        self.answers[answer.number] = answer
        self._note("answer", **asdict(answer))

    def taught(self, number: int) -> None:
        """The feedback on request `number` was taken."""
        self.told.add(number)
        self._note("told", number=number)

    def failure(self, number: int, why: str) -> None:
        self.failed += 1
        self._note("failed", number=number, why=why)

    def scored(self, score: Score, promotions: int) -> None:
        """`promotions` is the number of the last promotion seen by then."""
        self.scores.append(score)
        self.promotions = max(self.promotions, promotions)
        self._note("score", promotions=promotions, **asdict(score))

    def turned(self, turn: SeenTurn) -> None:
        self.turns.append(turn)
        self._note("turn", wave=turn.wave, sent=turn.sent, result=turn.result.to_json())

    def compared(self, wave: int, right: Sequence[bool]) -> None:
        """Version 1 has been asked about the requests of a wave."""
        self.first_right[wave] = tuple(right)
        self._note("first", wave=wave, right=[int(one) for one in right])

    def wave_ended(self, wave: int, waited: float) -> None:
        self.ended[wave] = waited
        self._note("wave", wave=wave, waited=waited)

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _note(self, kind: str, **fields: Any) -> None:
        self._file.write(json.dumps({"kind": kind, "at": round(self.seconds, 3), **fields}) + "\n")
        self._file.flush()

    def _take(self, line: dict[str, Any]) -> None:
        fields = dict(line)
        kind, self._before = fields.pop("kind"), float(fields.pop("at"))
        if kind == "answer":
            self.answers[fields["number"]] = Answer(**fields)
        elif kind == "told":
            self.told.add(fields["number"])
        elif kind == "failed":
            self.failed += 1
        elif kind == "score":
            self.promotions = max(self.promotions, fields.pop("promotions"))
            self.scores.append(Score(**fields))
        elif kind == "turn":
            self.turns.append(SeenTurn(fields["wave"], fields["sent"], TurnResult.decode(json.dumps(fields["result"]))))
        elif kind == "first":
            self.first_right[fields["wave"]] = tuple(bool(one) for one in fields["right"])
        elif kind == "wave":
            self.ended[fields["wave"]] = fields["waited"]
        elif kind == "fitted":
            self.first, self.promotions = fields["version"], fields["promotions"]
        else:
            self.runs += 1


def _lines(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    found = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            found.append(json.loads(text))
        except ValueError:
            # Half-written by a process that was killed: what it told of is done again.
            continue
    return found
