from __future__ import annotations

from collections.abc import Iterator

import pytest

from perdure.backtest.arrivals import Recording, SessionArrivals, arrivals_of
from perdure.dataset import DataRow, event_id
from perdure.records import Feedback, Interaction
from perdure.stream import MemoryStream


def row(text: str, session: int, **more: object) -> DataRow:
    return DataRow.model_validate({"text": text, "label": text.upper(), "session": session, **more})


ROWS = (
    row("b", 1, label_session=3),
    row("a", 0, label_session=1),
    row("c", 1),
    row("d", 1, labelled=False),
    row("e", 3, label_session=3),
    row("f", 1, label_session=4, id="own", time=90.0),
)


def texts(arrivals: SessionArrivals) -> tuple[str, str]:
    return "".join(one.row.text for one in arrivals.late), "".join(one.row.text for one in arrivals.rows)


def test_labels_arrive_in_their_session_and_before_its_rows() -> None:
    found = arrivals_of(ROWS)
    assert [(one.session, *texts(one)) for one in found] == [
        (0, "", "a"),
        (1, "a", "bcdf"),
        (3, "b", "e"),
        (4, "f", ""),
    ]
    assert [len(one) for one in found] == [1, 1 + 4 + 1, 1 + 1 + 1, 1]
    assert [one.time for one in found] == [0.0, 0.0, 90.0, 90.0]


def test_a_row_is_named_and_timed_by_its_place_among_all() -> None:
    (only, *_), several = (one.rows for one in arrivals_of(ROWS)[:2])
    assert (only.id, only.time) == (event_id("backtest", 0), 0.0)
    assert [(one.id, one.time) for one in several] == [
        (event_id("backtest", 1), 1.0),
        (event_id("backtest", 2), 2.0),
        (event_id("backtest", 3), 3.0),
        ("own", 90.0),
    ]


@pytest.fixture
def stream() -> Iterator[MemoryStream]:
    with MemoryStream() as stream:
        yield stream


def told(stream: MemoryStream) -> list[str]:
    """A row as its text; a label in brackets, with the time at which it came."""
    records = [entry.record() for entry in stream.read({}, 100).entries]
    names = {one.id: one.text for one in records if isinstance(one, Interaction)}
    return [
        one.text if isinstance(one, Interaction) else f"{names[one.interaction]}({one.label} {one.time:g})"
        for one in records
        if isinstance(one, Interaction | Feedback)
    ]


def test_what_arrives_is_recorded_once_however_often_it_is_tried(stream: MemoryStream) -> None:
    expected = ["a", "a(A 0)", "b", "c", "c(C 2)", "d", "f", "b(B 90)", "e", "e(E 5)", "f(F 90)"]
    sessions = arrivals_of(ROWS)
    whole = Recording(stream, lambda: None)
    for one in sessions:
        whole.record(one)
    assert told(stream) == expected
    for start in range(len(sessions)):
        again = Recording(stream, lambda: None)
        for one in sessions[:start]:
            again.pass_over(one)
        for one in sessions[start:]:
            again.record(one)
    assert told(stream) == expected


@pytest.mark.parametrize("done", range(4))
def test_recording_goes_on_where_another_process_ended(stream: MemoryStream, done: int) -> None:
    sessions = arrivals_of(ROWS)
    first = Recording(stream, lambda: None)
    for one in sessions[:done]:
        first.record(one)
    before = told(stream)
    second = Recording(stream, lambda: None)
    for one in sessions[:done]:
        second.pass_over(one)
    for one in sessions[done:]:
        second.record(one)
    assert told(stream)[: len(before)] == before
    assert len(told(stream)) == 11
