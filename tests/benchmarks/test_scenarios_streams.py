from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from contestants.base import Order
from contestants.orders import dealt
from perdure.backtest.arrivals import arrivals_of
from perdure.dataset import DataRow, read_rows
from perdure.errors import UsageError
from scenario.streams import Recorded, delayed, first_labels, noisy, recorded, with_history

LABELS, EACH = 12, 40


@pytest.fixture(scope="module")
def order() -> Order:
    """Four sessions of three labels."""
    stream = [
        DataRow(text=f"row {row} of label {label}", label=f"label-{label:02}", session=label // 3)
        for row in range(EACH)
        for label in range(LABELS)
    ]
    evaluation = [
        DataRow(text=f"held {row} of {label}", label=f"label-{label:02}", session=label // 3)
        for row in range(3)
        for label in range(LABELS)
    ]
    return dealt("10x15", 0, stream, evaluation)


@pytest.fixture(scope="module")
def clean(order: Order) -> Recorded:
    return recorded(order)


def test_a_recorded_order_comes_back_from_its_files(clean: Recorded, tmp_path: Path) -> None:
    late = delayed(clean, 0.3, 1, seed=0)
    stream, evaluation = late.write(tmp_path)
    assert read_rows(stream) == late.stream
    assert read_rows(evaluation) == clean.evaluation
    assert [row.session for row in clean.evaluation] == sorted(row.session for row in clean.evaluation)


@pytest.mark.parametrize(("labels", "sessions"), [(1, 1), (3, 1), (4, 2), (12, 4), (99, 4)])
def test_sessions_are_taken_up_to_the_one_with_the_last_label(order: Order, labels: int, sessions: int) -> None:
    taken = first_labels(order, labels)
    assert taken.sessions == order.sessions[:sessions]
    assert taken.evaluation == order.evaluation[:sessions]


# ── wrong labels ──
def test_a_fifth_of_the_labels_is_replaced_by_others_that_have_come(clean: Recorded) -> None:
    wrong = noisy(clean, 0.2, seed=3)
    assert wrong.evaluation == clean.evaluation
    changed = [(new, old) for new, old in zip(wrong.stream, clean.stream, strict=True) if new != old]
    assert len(changed) == round(0.2 * LABELS * EACH)
    for new, old in changed:
        assert new.label != old.label
        assert (new.text, new.session) == (old.text, old.session)
        assert int(new.label[-2:]) // 3 <= old.session, "a label from the future"
    early = {new.label for new, old in changed if old.session == 3}
    assert len(early) > 9, "labels of every session so far"
    assert wrong == noisy(clean, 0.2, seed=3)
    assert wrong != noisy(clean, 0.2, seed=4)


def test_the_only_label_cannot_be_replaced() -> None:
    rows = tuple(DataRow(text=f"{row}", label="only" if row < 5 else "other", session=row // 5) for row in range(10))
    wrong = noisy(Recorded(rows, rows), 1.0, seed=0)
    assert [row.label for row in wrong.stream] == ["only"] * 5 + ["only"] * 5


# ── late labels ──
def test_a_third_of_the_rows_is_labelled_and_a_session_late(clean: Recorded) -> None:
    late = delayed(clean, 0.3, 1, seed=3)
    assert [(row.text, row.label) for row in late.stream] == [(row.text, row.label) for row in clean.stream]
    told = [row for row in late.stream if row.labelled]
    assert len(told) == round(0.3 * LABELS * EACH)
    assert all(row.label_session == row.session + 1 for row in told)
    assert late == delayed(clean, 0.3, 1, seed=3)
    assert late != delayed(clean, 0.3, 1, seed=4)
    sessions = arrivals_of(late.stream)
    assert [one.session for one in sessions] == [0, 1, 2, 3, 4]
    assert [len(one.rows) for one in sessions] == [120, 120, 120, 120, 0]
    assert len(sessions[0].late) == 0
    assert sum(len(one.late) for one in sessions) == len(told)
    assert not any(one.told(row) for one in sessions for row in one.rows)


def test_labels_arrive_in_the_next_session_that_there_is() -> None:
    rows = tuple(DataRow(text=f"{number}", label="a", session=number) for number in (2, 5, 9))
    late = delayed(Recorded(rows, rows), 1.0, 2, seed=0)
    assert [row.label_session for row in late.stream] == [9, 10, 11]


# ── history ──
def test_histories_end_with_the_same_update_and_repeat_no_text(order: Order) -> None:
    short, long = (with_history(order, history=5, last=10, times=times, seed=0) for times in (1, 10))
    for one, times in ((short, 1), (long, 10)):
        before = [row for row in one.stream if row.session == 0]
        assert Counter(row.label for row in before) == dict.fromkeys(order.labels, 5 * times)
        assert len({row.text for row in one.stream}) == len(one.stream)
        # Labels come mixed.
        assert len({row.label for row in before[:20]}) > 5
    update = [row for row in short.stream if row.session == 1]
    assert update == [row for row in long.stream if row.session == 1]
    assert Counter(row.label for row in update) == dict.fromkeys(order.labels, 10)
    originals = {row.text: row.label for row in recorded(order).stream}
    assert all(originals[row.text] == row.label for row in update)
    words = {
        label: {word for text, of in originals.items() if of == label for word in text.split()}
        for label in order.labels
    }
    changed = [row for row in long.stream if row.text not in originals]
    assert changed
    assert all(set(row.text.split()) <= words[row.label] for row in changed), "words from elsewhere"
    assert short.evaluation == long.evaluation
    assert Counter(row.session for row in short.evaluation) == {0: LABELS, 1: LABELS}
    assert long == with_history(order, history=5, last=10, times=10, seed=0)


def test_a_history_of_one_word_can_be_told_without_end() -> None:
    stream = [DataRow(text=text, label="a") for text in ("yes", "no", "yes sir")]
    held = [DataRow(text=f"held {row}", label="a") for row in range(2)]
    found = with_history(dealt("10x15", 0, stream, held), history=10, last=1, times=1, seed=0)
    assert len({row.text for row in found.stream}) == 11


def test_a_history_needs_rows_beside_its_update(order: Order) -> None:
    with pytest.raises(UsageError, match="has 40 rows, but a last session of 40 of each needs more"):
        with_history(order, history=5, last=EACH, times=1, seed=0)
