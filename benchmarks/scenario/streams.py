"""Streams for `perdure backtest`, derived from an order of the data. The same seed gives the same stream."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from contestants.base import Order
from perdure.dataset import DataRow
from perdure.errors import UsageError


@dataclass(frozen=True, slots=True)
class Recorded:
    """A stream, and the rows that it is evaluated on; rows of a session stand together, sessions in order."""

    stream: tuple[DataRow, ...]
    evaluation: tuple[DataRow, ...]

    def write(self, folder: Path) -> tuple[Path, Path]:
        """Writes both as files that `perdure backtest` reads: the stream and the evaluation rows."""
        folder.mkdir(parents=True, exist_ok=True)
        paths = folder / "stream.jsonl", folder / "eval.jsonl"
        for path, rows in zip(paths, (self.stream, self.evaluation), strict=True):
            lines = [json.dumps(row.model_dump(exclude_defaults=True), ensure_ascii=False) + "\n" for row in rows]
            path.write_text("".join(lines), encoding="utf-8")
        return paths


def recorded(order: Order) -> Recorded:
    """The order as it is."""

    def rows(parts: Sequence[tuple[int, Sequence[str], Sequence[str]]]) -> tuple[DataRow, ...]:
        return tuple(
            DataRow(text=text, label=label, session=number)
            for number, texts, labels in parts
            for text, label in zip(texts, labels, strict=True)
        )

    numbers = [session.number for session in order.sessions]
    return Recorded(
        rows([(one.number, one.rows.texts, one.rows.labels) for one in order.sessions]),
        rows([(number, part.texts, part.labels) for number, part in zip(numbers, order.evaluation, strict=True)]),
    )


def first_labels(order: Order, labels: int) -> Order:
    """The first sessions of the order, up to the one that brings its `labels`-th label."""
    kept, seen = 0, set[str]()
    for session in order.sessions:
        if len(seen) >= labels:
            break
        seen.update(session.rows.labels)
        kept += 1
    return replace(order, sessions=order.sessions[:kept], evaluation=order.evaluation[:kept])


def noisy(clean: Recorded, share: float, seed: int) -> Recorded:
    """A `share` of the stream's labels replaced, each by any other label of those that have come by its session.

    Evaluation rows stay as they are. A row that comes while there is only one label keeps it.
    """
    rng = np.random.default_rng(seed)
    wrong = frozenset(int(row) for row in rng.choice(len(clean.stream), round(share * len(clean.stream)), False))
    labels_by: dict[int, list[str]] = {}
    come: set[str] = set()
    for number in sorted({row.session for row in clean.stream}):
        come |= {row.label for row in clean.stream if row.session == number}
        labels_by[number] = sorted(come)
    stream = []
    for place, row in enumerate(clean.stream):
        others = [label for label in labels_by[row.session] if label != row.label]
        if place in wrong and others:
            stream.append(row.model_copy(update={"label": others[int(rng.integers(len(others)))]}))
        else:
            stream.append(row)
    return replace(clean, stream=tuple(stream))


def delayed(clean: Recorded, labelled: float, sessions: int, seed: int) -> Recorded:
    """Only a share `labelled` of the rows is ever labelled, and each of those labels arrives `sessions` late.

    Labels of the last sessions arrive in sessions that have no rows.
    """
    rng = np.random.default_rng(seed)
    told = frozenset(int(row) for row in rng.choice(len(clean.stream), round(labelled * len(clean.stream)), False))
    numbers = sorted({row.session for row in clean.stream})
    later = [*numbers[sessions:], *range(numbers[-1] + 1, numbers[-1] + 1 + sessions)]
    arrival = dict(zip(numbers, later, strict=True))
    stream = [
        row.model_copy(update={"label_session": arrival[row.session]} if place in told else {"labelled": False})
        for place, row in enumerate(clean.stream)
    ]
    return replace(clean, stream=tuple(stream))


def with_history(order: Order, *, history: int, last: int, times: int, seed: int) -> Recorded:
    """Two sessions of the same labels: `times` · `history` rows of each label, then `last` of each.

    The last session is the same whatever `times` is. The rows before it are drawn with replacement from the other rows
    of their label, and changed by words until no two are the same.

    Raises:
        UsageError: a label has too few rows, here or to be evaluated on.
    """
    clean = recorded(order)
    by_label: dict[str, list[str]] = {}
    for row in clean.stream:
        by_label.setdefault(row.label, []).append(row.text)
    short = sorted(label for label, texts in by_label.items() if len(texts) <= last)
    if short:
        raise UsageError(
            f"label {short[0]!r} has {len(by_label[short[0]])} rows, but a last session of {last} of each needs more: "
            "give more rows, or a smaller last session"
        )
    update = [(text, label) for label, texts in by_label.items() for text in texts[:last]]
    rng = np.random.default_rng([seed, times])
    seen = {text for text, _ in update}
    before = [
        (_changed(texts[last + int(rng.integers(len(texts) - last))], seen, rng), label)
        for label, texts in by_label.items()
        for _ in range(times * history)
    ]
    stream = [
        DataRow(text=part[int(row)][0], label=part[int(row)][1], session=number)
        for number, part in enumerate((before, update))
        for row in np.random.default_rng([seed, number]).permutation(len(part))
    ]
    return Recorded(tuple(stream), _one_each(clean.evaluation))


def _changed(text: str, seen: set[str], rng: np.random.Generator) -> str:
    """`text` with words left out, said twice or in another order, until it is in `seen` no more; then it is added."""
    words = text.split()
    while (made := " ".join(words)) in seen:
        at = int(rng.integers(len(words)))
        change = int(rng.integers(3)) if len(words) > 2 else 0
        if change == 0:
            words.insert(at, words[at])
        elif change == 1:
            del words[at]
        else:
            other = int(rng.integers(len(words)))
            words[at], words[other] = words[other], words[at]
    seen.add(made)
    return made


def _one_each(evaluation: Sequence[DataRow]) -> tuple[DataRow, ...]:
    """One row of each label for the first session, the next of each for the second."""
    taken: Counter[str] = Counter()
    parts: tuple[list[DataRow], list[DataRow]] = ([], [])
    for row in evaluation:
        if taken[row.label] < len(parts):
            parts[taken[row.label]].append(row.model_copy(update={"session": taken[row.label]}))
        taken[row.label] += 1
    if not all(parts):
        raise UsageError("a history needs two evaluation rows of some label: give more rows to be evaluated on")
    return tuple(parts[0] + parts[1])
