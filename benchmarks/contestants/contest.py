"""One run: a contestant, an order, a seed, a budget."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from contestants.base import Contestant, Order, Rows, Session, joined
from contestants.features import FrozenFeatures
from contestants.figures import Answers, Figures, SessionFigures, accuracies, figures
from perdure.errors import PerdureError


class Unavailable(PerdureError):
    """A contestant cannot be had here; the message is the reason."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a contestant did on one order."""

    sessions: tuple[SessionFigures, ...]
    answers: tuple[Answers, ...]
    """After each session; none where the contestant does not tell them."""
    bytes_kept: int
    samples_kept: int
    note: str = ""
    """What a reader of its figures must know."""

    def figures(self) -> Figures:
        return figures(self.sessions, self.answers, bytes_kept=self.bytes_kept, samples_kept=self.samples_kept)


@dataclass(frozen=True, slots=True)
class Given:
    """What a run is named by, and what else its figures depend on."""

    contestant: str
    order: str
    seed: int
    memory: int
    evaluation: str
    settings: Mapping[str, Any]
    """JSON: the parts of the recipe that it uses, the data, the encoder, what was left out."""

    @property
    def name(self) -> str:
        return f"{self.contestant}-{self.order}-{self.seed}-m{self.memory}-{self.evaluation}"


@dataclass(frozen=True, slots=True)
class Run:
    """A finished run, or the reason why there is none."""

    given: Given
    figures: Figures | None
    sessions: tuple[SessionFigures, ...] = ()
    right: str | None = None
    """After the last session, 1 for each evaluation row that was right and 0 for the others."""
    note: str = ""
    missing: str | None = None


def whole(order: Order) -> Order:
    """The order as one session with all rows, evaluated on all: for who is to be asked only at the end."""
    last = order.sessions[-1].number
    rows = joined([session.rows for session in order.sessions])
    return Order(order.name, order.seed, (Session(last, rows),), order.evaluation)


def contend(
    contestant: Contestant,
    order: Order,
    features: FrozenFeatures,
    *,
    memory: int | None,
    told: Callable[[SessionFigures], None] = lambda _one: None,
) -> Outcome:
    """Lets `contestant` learn session by session and asks it after each.

    Args:
        contestant: that has learned nothing yet.
        order: with fewer sessions than evaluation parts, the first session brings several parts at once.
        features: where the contestant has embeddings from, which are charged to it.
        memory: most samples of a class that it may keep; None for as many as it likes.
        told: called after each session.
    """
    sessions: list[SessionFigures] = []
    answers: list[Answers] = []
    ahead = len(order.evaluation) - len(order.sessions)
    for index, session in enumerate(order.sessions):
        charged, cpu, wall = features.charged, time.process_time(), time.perf_counter()
        contestant.learn(session)
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        kept = contestant.kept()
        most = max(kept.values(), default=0)
        assert memory is None or most <= memory, f"{most} samples of a class are kept, more than {memory}"
        seen = order.evaluation[: index + 1 + ahead]
        answer = answered(contestant, joined(seen))
        shares = accuracies(answer.right, [len(part) for part in seen])
        sessions.append(
            SessionFigures(
                session=session.number,
                acc_seen=float(answer.right.mean()),
                accuracies=shares,
                cpu_seconds=cpu + features.charged - charged,
                wall_seconds=wall,
            )
        )
        answers.append(answer)
        told(sessions[-1])
    return Outcome(tuple(sessions), tuple(answers), contestant.bytes_kept(), sum(contestant.kept().values()))


def answered(contestant: Contestant, rows: Rows) -> Answers:
    """What the contestant answers to `rows`."""
    probabilities = contestant.probabilities(rows.texts)
    labels = contestant.labels
    chosen = [labels[column] for column in probabilities.argmax(axis=1)]
    right = np.asarray([mine == true for mine, true in zip(chosen, rows.labels, strict=True)], dtype=bool)
    return Answers(right, probabilities.max(axis=1))


def finished(given: Given, outcome: Outcome) -> Run:
    """The run that `outcome` makes."""
    right = "".join("1" if one else "0" for one in outcome.answers[-1].right) if outcome.answers else None
    return Run(given, outcome.figures(), outcome.sessions, right, outcome.note)


def write_run(run: Run, folder: Path) -> None:
    """Writes `NAME.json`, at once or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{run.given.name}.json"
    part = path.with_suffix(".part")
    part.write_text(json.dumps(asdict(run), indent=1) + "\n", encoding="utf-8")
    part.replace(path)


def read_run(given: Given, folder: Path) -> Run | None:
    """The finished run of that name with these settings; None where there is none, or only the reason for none."""
    path = folder / f"{given.name}.json"
    if not path.exists():
        return None
    fields = json.loads(path.read_text(encoding="utf-8"))
    if fields["given"] != json.loads(json.dumps(asdict(given))) or fields["missing"] is not None:
        return None
    sessions = tuple(SessionFigures(**{**one, "accuracies": tuple(one["accuracies"])}) for one in fields["sessions"])
    return Run(given, Figures(**fields["figures"]), sessions, fields["right"], fields["note"])
