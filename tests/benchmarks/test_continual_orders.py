from __future__ import annotations

import json
from pathlib import Path

import pytest

from contestants.base import Order
from contestants.orders import dealt, load_order, reduced, write_order
from perdure.dataset import DataRow, read_rows
from perdure.errors import UsageError

STREAM = [
    DataRow(text=f"text {row} {label}", label=f"label-{label:02}", session=label // 5)
    for row in range(6)
    for label in range(20)
]
EVALUATION = [DataRow(text=f"held {label}", label=f"label-{label:02}", session=label // 5) for label in range(20)]


def labels_of(order: Order) -> list[set[str]]:
    return [set(session.rows.labels) for session in order.sessions]


def test_the_order_of_the_file_is_the_file() -> None:
    order = dealt("10x15", 0, STREAM, EVALUATION)
    assert [session.number for session in order.sessions] == [0, 1, 2, 3]
    assert order.sessions[1].rows.texts == tuple(row.text for row in STREAM if row.session == 1)
    assert dealt("10x15", 5, STREAM, EVALUATION).sessions == order.sessions


@pytest.mark.parametrize(("name", "sessions"), [("10x15s", 10), ("15x10s", 15)])
def test_shuffled_orders_deal_every_class_into_one_session(name: str, sessions: int) -> None:
    order = dealt(name, 0, STREAM, EVALUATION)
    assert len(order.sessions) == len(order.evaluation) == sessions
    groups = labels_of(order)
    assert sum(map(len, groups)) == 20
    assert set.union(*groups) == {row.label for row in STREAM}
    assert max(map(len, groups)) - min(map(len, groups)) <= 1
    assert [set(part.labels) for part in order.evaluation] == groups
    assert sorted(text for one in order.sessions for text in one.rows.texts) == sorted(row.text for row in STREAM)


def test_orders_follow_their_seed() -> None:
    assert dealt("10x15s", 1, STREAM, EVALUATION) == dealt("10x15s", 1, STREAM, EVALUATION)
    assert labels_of(dealt("10x15s", 1, STREAM, EVALUATION)) != labels_of(dealt("10x15s", 2, STREAM, EVALUATION))


def test_rows_within_a_shuffled_session_are_mixed() -> None:
    labels = dealt("10x15s", 0, STREAM, EVALUATION).sessions[0].rows.labels
    assert list(labels) != sorted(labels)


def test_a_reduced_order_has_the_first_rows_of_every_class() -> None:
    order = reduced(dealt("10x15", 0, STREAM, EVALUATION), stream=2, evaluation=1)
    for session in order.sessions:
        assert sorted(session.rows.labels) == sorted([*set(session.rows.labels)] * 2)
        assert all(text.startswith(("text 0", "text 1")) for text in session.rows.texts)


def test_an_order_as_files_is_what_perdure_reads(tmp_path: Path) -> None:
    order = dealt("10x15s", 3, STREAM, EVALUATION)
    stream, evaluation = write_order(order, tmp_path / "new")
    again = dealt("10x15", 3, read_rows(stream), read_rows(evaluation))
    assert (again.sessions, again.evaluation) == (order.sessions, order.evaluation)


def test_an_order_that_is_not_known_or_too_long_is_refused(data: Path) -> None:
    with pytest.raises(UsageError, match="choose among 10x15, 10x15s, 15x10s"):
        load_order("3x3", 0, data, "val")
    with pytest.raises(UsageError, match="15 sessions, but the data has 4"):
        load_order("15x10s", 0, data, "val")


def test_data_is_read_from_the_files_of_the_folder(data: Path) -> None:
    order = load_order("10x15", 0, data, "test")
    lines = (data / "stream_10x15.jsonl").read_text(encoding="utf-8").splitlines()
    assert sum(len(session.rows) for session in order.sessions) == len(lines)
    assert order.sessions[0].rows.texts[0] == json.loads(lines[0])["text"]
    assert order.labels == ("card", "login", "parcel", "refund")
