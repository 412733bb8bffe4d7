from __future__ import annotations

import os
import time

import pytest

from perdure.errors import UsageError
from perdure_services.demo.progress import FILE, Answer, Progress, Score, SeenTurn

ANSWER = Answer(3, "id-3", "order", 0.75, "v1", True, 0.01)
SCORE = Score(60.0, 4, 1, "v2", 0.8, 0.5, True)


@pytest.fixture
def filled(progress_in, turn_result):
    """A journal with everything in it."""
    progress = progress_in()
    progress.fitted("v1", 2)
    progress.answered(ANSWER)
    progress.taught(3)
    progress.failure(5, "ConnectError: refused")
    progress.scored(SCORE, 4)
    progress.turned(SeenTurn(1, 4, turn_result()))
    progress.compared(1, [True, False])
    progress.wave_ended(1, 12.5)
    return progress


def test_the_next_start_knows_everything(filled, progress_in, turn_result):
    again = progress_in()
    assert again.first == "v1"
    assert again.answers == {3: ANSWER}
    assert again.told == {3}
    assert again.failed == 1
    assert again.scores == [SCORE]
    assert again.promotions == 4
    assert again.turns == [SeenTurn(1, 4, turn_result())]
    assert again.first_right == {1: (True, False)}
    assert again.ended == {1: 12.5}
    assert again.sent == 1
    assert (filled.runs, again.runs) == (1, 2)


def test_what_was_promoted_before_the_fit_was_seen_is_known(progress_in):
    progress_in().fitted("v1", 2)
    assert progress_in().promotions == 2


@pytest.mark.parametrize("cut", [1, 20])
def test_a_half_written_line_is_left_out(filled, progress_in, tmp_path, cut):
    filled.close()
    path = tmp_path / FILE
    path.write_bytes(path.read_bytes()[:-cut])
    again = progress_in()
    assert again.ended == {} if cut > 1 else {1: 12.5}
    again.answered(Answer(4, "id-4", "refund", 0.5, "v1", False, 0.1))
    third = progress_in()
    assert set(third.answers) == {3, 4}
    assert third.first_right == {1: (True, False)}


def test_time_goes_on_where_it_was(progress_in):
    first = progress_in()
    time.sleep(0.15)
    first.taught(1)
    first.close()
    time.sleep(0.3)
    again = progress_in()
    assert 0.15 <= again.seconds < 0.4
    time.sleep(0.1)
    assert again.seconds >= 0.25


def test_every_line_is_with_the_system_at_once(progress_in, tmp_path):
    progress_in().answered(ANSWER)
    assert b'"id-3"' in (tmp_path / FILE).read_bytes()


def test_another_demo_cannot_go_on_from_here(filled, progress_in):
    with pytest.raises(UsageError, match="--fresh"):
        progress_in("other")
    assert progress_in().answers == {3: ANSWER}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written(tmp_path, progress_in):
    tmp_path.chmod(0o500)
    with pytest.raises(UsageError, match="--out"):
        progress_in()
    tmp_path.chmod(0o700)


def test_a_full_disk_is_told(progress_in, tmp_path):
    (tmp_path / "progress.part").mkdir()
    with pytest.raises(UsageError, match="cannot write to"):
        progress_in()


def test_looking_again_is_no_start(filled, tmp_path):
    filled.close()
    for _ in range(2):
        with Progress(tmp_path, {"data": "mine"}) as looked:
            assert looked.runs == 1


def test_a_line_that_cannot_be_read_hides_no_other(filled, progress_in, tmp_path):
    filled.close()
    lines = (tmp_path / FILE).read_text().split("\n")
    (tmp_path / FILE).write_text("\n".join([*lines[:2], '{"kind": "ans', *lines[2:]]))
    again = progress_in()
    assert again.answers == {3: ANSWER}
    assert again.ended == {1: 12.5}
