"""Rows of a recorded stream, as they arrive session by session."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from perdure.dataset import DataRow, event_id
from perdure.model.classifier import AnalyticClassifier
from perdure.records import Feedback, Interaction, Record
from perdure.stream import Stream
from perdure.stream.partition import FIRST

ROW_SECONDS = 1.0
"""Event time between two rows that have none of their own."""


@dataclass(frozen=True, slots=True)
class ArrivingRow:
    """A row with the name and the event time (s) under which it is recorded."""

    row: DataRow
    id: str
    time: float

    def feedback(self, time: float) -> Feedback:
        """Its label, told at `time` (s)."""
        return Feedback(time=time, interaction=self.id, label=self.row.label, source="backtest")


@dataclass(frozen=True, slots=True)
class SessionArrivals:
    """What arrives before one turn: labels of earlier rows, then rows, most of them with their labels."""

    session: int
    late: tuple[ArrivingRow, ...]
    """Rows of earlier sessions whose labels arrive now."""
    rows: tuple[ArrivingRow, ...]
    time: float
    """Event time (s) of the last row before this session: when late labels are told."""

    def told(self, one: ArrivingRow) -> bool:
        """The label of a row of this session arrives with it."""
        return one.row.labelled and one.row.label_session in (None, self.session)

    def __len__(self) -> int:
        """Records that this makes."""
        return len(self.late) + len(self.rows) + sum(self.told(one) for one in self.rows)


def arrivals_of(rows: Sequence[DataRow]) -> tuple[SessionArrivals, ...]:
    """What arrives in each session, in the order of the sessions.

    A session may bring nothing but labels: those of rows whose `label_session` no row has for its session.
    """
    ordered = sorted(rows, key=lambda row: row.session)
    arriving = [
        ArrivingRow(row, row.id or event_id("backtest", index), index * ROW_SECONDS if row.time is None else row.time)
        for index, row in enumerate(ordered)
    ]
    waiting = [one for one in arriving if one.row.labelled and (one.row.label_session or 0) > one.row.session]
    numbers = {row.session for row in rows} | {one.row.label_session or 0 for one in waiting}
    return tuple(
        SessionArrivals(
            session=number,
            late=tuple(one for one in waiting if one.row.label_session == number),
            rows=tuple(one for one in arriving if one.row.session == number),
            time=max((one.time for one in arriving if one.row.session < number), default=0.0),
        )
        for number in sorted(numbers)
    )


class Recording:
    """Records what arrives as production would: rows predicted by the champion of then.

    Args:
        stream: where records go.
        champion: gives the version that is served now; None before there is one.
    """

    def __init__(self, stream: Stream, champion: Callable[[], AnalyticClassifier | None]) -> None:
        self._stream = stream
        self._champion = champion
        self._records = 0
        """Of the sessions up to now."""

    def pass_over(self, arrivals: SessionArrivals) -> None:
        """Counts what arrived in an earlier process."""
        self._records += len(arrivals)

    def record(self, arrivals: SessionArrivals) -> None:
        """Records what the next session brings: all or none, and once, however often this is tried."""
        before = self._records
        self.pass_over(arrivals)
        if sum(self._stream.end().values()) - FIRST > before:
            # It was recorded by a process that was killed afterwards.
            return
        self._stream.append([*(one.feedback(arrivals.time) for one in arrivals.late), *self._predicted(arrivals)])

    def _predicted(self, arrivals: SessionArrivals) -> Iterator[Record]:
        champion = self._champion() if arrivals.rows else None
        scores = champion.scores([one.row.text for one in arrivals.rows]) if champion else None
        answers = scores.predictions() if scores else (None,) * len(arrivals.rows)
        for one, answer in zip(arrivals.rows, answers, strict=True):
            yield Interaction(
                time=one.time,
                id=one.id,
                text=one.row.text,
                label=answer.label if answer else None,
                confidence=min(answer.confidence, 1.0) if answer else 0.0,
                version=champion.version if champion else None,
                subject=one.row.subject,
            )
            if arrivals.told(one):
                yield one.feedback(one.time)
