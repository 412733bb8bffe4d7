"""The data, and the orders in which its classes come."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from contestants.base import Order, Rows, Session
from perdure.dataset import DataRow, read_rows
from perdure.errors import UsageError

STREAM = "stream_10x15.jsonl"
ORDERS: Mapping[str, int | None] = {"10x15": None, "10x15s": 10, "15x10s": 15}
"""For each order the number of sessions that shuffled classes are dealt into; None takes the sessions of the file."""


def load_order(name: str, seed: int, folder: Path, evaluation: str) -> Order:
    """The stream in `folder` in the order `name`, with the rows of `evaluation` (val or test) beside it.

    The same seed gives the same order; without shuffling the seed is not used here.

    Raises:
        UsageError: there is no such order, or a file cannot be read.
    """
    if name not in ORDERS:
        raise UsageError(f"no order {name!r}: choose among {', '.join(ORDERS)}")
    return dealt(name, seed, read_rows(folder / STREAM), read_rows(folder / f"{evaluation}.jsonl"))


def dealt(name: str, seed: int, stream: Sequence[DataRow], evaluation: Sequence[DataRow]) -> Order:
    """`stream` and `evaluation` as sessions in the order `name`."""
    sessions = ORDERS[name]
    if sessions is None:
        rows = [(row, row.session) for row in stream]
        session_of = {row.label: row.session for row in evaluation}
    else:
        rng = np.random.default_rng(seed)
        labels = sorted({row.label for row in stream})
        if len(labels) < sessions:
            raise UsageError(f"order {name!r} deals classes into {sessions} sessions, but the data has {len(labels)}")
        groups = np.array_split(rng.permutation(len(labels)), sessions)
        session_of = {labels[index]: number for number, group in enumerate(groups) for index in group}
        rows = [(stream[index], session_of[stream[index].label]) for index in rng.permutation(len(stream))]
    numbers = sorted({number for _, number in rows})
    return Order(
        name,
        seed,
        tuple(Session(number, _rows([row for row, of in rows if of == number])) for number in numbers),
        tuple(_rows([row for row in evaluation if session_of.get(row.label) == number]) for number in numbers),
    )


def reduced(order: Order, *, stream: int, evaluation: int) -> Order:
    """The first `stream` rows of every class to learn from, and the first `evaluation` to be evaluated on."""
    return Order(
        order.name,
        order.seed,
        tuple(Session(session.number, _first(session.rows, stream)) for session in order.sessions),
        tuple(_first(rows, evaluation) for rows in order.evaluation),
    )


def write_order(order: Order, folder: Path) -> tuple[Path, Path]:
    """The order as two files that `perdure backtest` reads: the stream and the evaluation rows."""
    folder.mkdir(parents=True, exist_ok=True)
    stream, evaluation = folder / "stream.jsonl", folder / "eval.jsonl"
    for path, parts in ((stream, [session.rows for session in order.sessions]), (evaluation, order.evaluation)):
        lines = [
            json.dumps({"text": text, "label": label, "session": session.number}, ensure_ascii=False) + "\n"
            for session, rows in zip(order.sessions, parts, strict=True)
            for text, label in zip(rows.texts, rows.labels, strict=True)
        ]
        path.write_text("".join(lines), encoding="utf-8")
    return stream, evaluation


def _rows(rows: Sequence[DataRow]) -> Rows:
    return Rows(tuple(row.text for row in rows), tuple(row.label for row in rows))


def _first(rows: Rows, count: int) -> Rows:
    taken: dict[str, int] = {}
    chosen = []
    for index, label in enumerate(rows.labels):
        taken[label] = taken.get(label, 0) + 1
        if taken[label] <= count:
            chosen.append(index)
    return Rows(tuple(rows.texts[index] for index in chosen), tuple(rows.labels[index] for index in chosen))
