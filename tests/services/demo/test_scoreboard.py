from __future__ import annotations

import pytest

from perdure.memory import Quarantined
from perdure_services.demo.progress import Answer, Score, SeenTurn
from perdure_services.demo.scoreboard import Scoreboard, WrongLabels


@pytest.fixture
def board(scenario, progress):
    return Scoreboard(scenario, progress)


@pytest.fixture
def answer(progress):
    def say(number, label, confidence=0.5, version="v1", recorded=True):
        progress.answered(Answer(number, f"id-{number}", label, confidence, version, recorded, 0.01))

    return say


def test_nothing_is_known_at_the_start(board):
    assert (board.live(), board.first_live(), board.confidence()) == (None, None, None)
    assert board.waves() == ()
    assert board.moving() == ([], [], [])


def test_live_accuracy_is_that_of_the_last_answers(board, answer, progress):
    answer(0, "order", 0.9)
    answer(1, "order", 0.5)
    answer(2, "refund", 0.1)
    assert board.live() == pytest.approx(2 / 3)
    assert board.live(2) == pytest.approx(1 / 2)
    assert board.confidence(2) == pytest.approx(0.3)
    assert board.first_live() is None
    progress.compared(1, [False, False, True, True])
    assert board.first_live() == pytest.approx(1 / 3)
    assert board.first_live(1) == 1


def test_truth_counts_not_what_was_told(board, answer):
    answer(2, "order")
    assert board.live() == 0


def test_version_1_is_compared_only_where_it_was_asked(board, answer, progress):
    progress.compared(1, [True, True, True, False])
    answer(3, "password")
    answer(4, "order")
    assert board.first_live() == 0


def test_a_wave_in_figures(board, answer, progress, turn_result):
    answer(0, "order", 0.6, "v1")
    answer(1, "refund", 0.8, "v2")
    (wave,) = board.waves()
    assert (wave.wave, wave.requests, wave.live, wave.confidence) == (1, 2, 0.5, pytest.approx(0.7))
    assert (wave.accuracy, wave.first, wave.version, wave.first_live) == (None, None, None, None)
    progress.compared(1, [False, False, True, True])
    progress.scored(Score(60.0, 1, 1, "v2", 0.7, 0.4, True), 2)
    progress.turned(SeenTurn(1, 2, turn_result(outcome="keep")))
    progress.turned(SeenTurn(2, 2, turn_result(outcome="promote")))
    progress.scored(Score(90.0, 2, 1, "v3", 0.9, 0.4, False), 2)
    assert board.waves()[0].accuracy is None
    progress.wave_ended(1, 1.0)
    (wave,) = board.waves()
    assert (wave.accuracy, wave.first, wave.version, wave.first_live) == (0.9, 0.4, "v3", 0.0)
    assert wave.versions == ("v1", "v2")
    assert wave.verdicts == ("v2 keep",)


def test_wrong_labels_that_were_told(board, answer, progress):
    for number in range(4):
        answer(number, "order")
        progress.taught(number)

    def doubt(*numbers):
        return [Quarantined(f"id-{number}", "why", "text", "label", 0.0) for number in numbers]

    assert board.wrong_labels(doubt()) == WrongLabels(1, 0, 0)
    assert board.wrong_labels(doubt(2, 1, 99)) == WrongLabels(1, 1, 1)


def test_moving_figures(board, answer, progress, scenario, monkeypatch):
    monkeypatch.setattr("perdure_services.demo.scoreboard.WINDOW", 2)
    for number, request in enumerate(scenario.requests):
        answer(number, request.label if number else "wrong", 0.5)
    progress.compared(1, [True, False, True, True])
    live, first, confidence = board.moving()
    assert live == [(2.0, 0.5)]
    assert first == [(2.0, 0.5)]
    assert confidence == [(2.0, 0.5)]


def test_what_was_not_recorded_and_who_answered(board, answer):
    answer(0, "order", version="v2")
    answer(1, "order", version="v1", recorded=False)
    answer(2, "order", version="v2")
    assert board.unrecorded() == 1
    assert board.versions() == ("v2", "v1")


def test_the_exam_goes_in_steps(board, progress, scenario):
    assert board.exam() == ([], [])
    assert board.minutes(scenario.waves[0]) is None
    progress.scored(Score(60.0, 0, 1, "v1", 0.6, 0.6, False), 1)
    progress.scored(Score(120.0, 3, 1, "v2", 0.9, 0.6, True), 2)
    progress.scored(Score(180.0, 4, 1, "v2", 0.9, 0.6, False), 2)
    progress.scored(Score(180.0, 4, 2, "v2", 0.7, 0.4, False), 2)
    learning, frozen = board.exam()
    assert learning == [(1, 0.6), (2, 0.6), (2, 0.9), (3, 0.9), (3, 0.9), (3, 0.9), (3, 0.7)]
    assert frozen[-1] == (3, 0.4)
    assert board.minutes(scenario.waves[0]) == (1, 3)
