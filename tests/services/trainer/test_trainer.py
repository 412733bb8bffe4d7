from __future__ import annotations

import logging
import subprocess
import sys
import threading
import time
from contextlib import closing

import pytest

from perdure.errors import StoreBusy, UsageError
from perdure.memory import open_memory
from perdure.turn import TurnResult
from perdure_services.trainer import trainer as trainer_module
from perdure_services.trainer.inbox import Inbox
from perdure_services.trainer.trainer import Trainer
from perdure_services.trainer.turn_process import Outcome, TurnProcess

DONE = Outcome("done", 0, result=TurnResult(1, None, "v1", gate={"learn": 2}), seconds=1.5)
FAILED = Outcome("failed", 1, "exit code 1: perdure: the disk is full")
BUSY = Outcome("busy", 3, "held by process 7")


class Turns(TurnProcess):
    """Ends as it is told, last outcome for ever; a done one takes what waits out of memory, as the loop does."""

    def __init__(self, settings, absorb, *outcomes):
        super().__init__(settings)
        self._absorb = absorb
        self.outcomes = list(outcomes) or [DONE]
        self.begun = []
        self.running = 0
        self.most = 0
        self.gate = threading.Event()
        self.gate.set()

    def run(self, term=0):
        self.begun.append(time.monotonic())
        self.running += 1
        self.most = max(self.most, self.running)
        self.gate.wait(10)
        outcome = self.outcomes.pop(0) if len(self.outcomes) > 1 else self.outcomes[0]
        if outcome.ending == "done":
            with open_memory(self._settings) as memory:
                memory.freeze(champion=None, promotion=1)
                self._absorb(memory)
                memory.finish("{}")
        self.running -= 1
        return outcome

    def stop(self):
        self.gate.set()


@pytest.fixture
def started(settings_in, absorb):
    made = []

    def start(*outcomes, gate=True, run=True, **values):
        settings = settings_in(
            **{
                "trainer__poll_seconds": 0.05,
                "trainer__interval_seconds": 1000,
                "trainer__min_new_labels": 3,
                **values,
            }
        )
        turns = Turns(settings, absorb, *outcomes)
        if not gate:
            turns.gate.clear()
        trainer = Trainer(settings, turns)
        made.append(trainer)
        if run:
            trainer.start()
        return trainer, turns, settings

    yield start
    for trainer in made:
        trainer.stop()


def test_enough_new_labels_start_a_turn_before_its_time(started, arrive, until):
    _, turns, settings = started()
    arrive(settings, "a", "b")
    time.sleep(0.4)
    assert turns.begun == []
    arrive(settings, "c")
    until(lambda: turns.begun)
    time.sleep(0.3)
    assert len(turns.begun) == 1


def test_fewer_wait_for_the_interval(started, arrive, until):
    begun = time.monotonic()
    _, turns, settings = started(trainer__interval_seconds=0.6)
    arrive(settings, "a")
    until(lambda: turns.begun)
    assert turns.begun[0] - begun > 0.5


def test_with_0_only_the_schedule_counts(started, arrive):
    _, turns, settings = started(trainer__min_new_labels=0)
    arrive(settings, *"abcdefgh")
    time.sleep(0.4)
    assert turns.begun == []


def test_no_process_is_started_when_nothing_waits(started, arrive, until):
    _, turns, settings = started(trainer__interval_seconds=0.1)
    time.sleep(0.5)
    assert turns.begun == []
    arrive(settings, "a")
    until(lambda: turns.begun)
    time.sleep(0.4)
    assert len(turns.begun) == 1


def test_a_turn_that_was_interrupted_goes_on_at_once(started, arrive, until):
    trainer, turns, settings = started(run=False)
    arrive(settings, "a")
    with closing(Inbox(settings, threading.Event())) as inbox:
        inbox.read()
    with open_memory(settings) as memory:
        memory.freeze(champion=None, promotion=1)
    trainer.start()
    until(lambda: turns.begun)


def test_what_comes_during_a_turn_is_left_alone_until_it_ends(started, arrive, until):
    trainer, turns, settings = started(gate=False)
    arrive(settings, "a", "b", "c")
    until(lambda: turns.begun)
    begun = time.monotonic()
    trainer.poll()
    assert time.monotonic() - begun < 2
    arrive(settings, "d", "e", "f", "g")
    with open_memory(settings) as memory:
        # The turn's process has the memory now: polls must not come between.
        offset = dict(memory.offset())
        time.sleep(0.4)
        assert dict(memory.offset()) == offset
    assert turns.most == 1
    turns.gate.set()
    until(lambda: len(turns.begun) == 2)
    assert turns.most == 1


def test_a_turn_that_failed_is_not_tried_again_any_sooner(started, arrive, until, monkeypatch):
    """By whoever calls for one: a poll may have looked just before it failed."""
    monkeypatch.setattr(trainer_module, "FIRST_RETRY_SECONDS", 1.0)
    trainer, turns, settings = started(FAILED, DONE)
    arrive(settings, "a", "b", "c")
    until(lambda: trainer._not_before > 0)
    trainer.turn()
    trainer.turn()
    assert len(turns.begun) == 1
    until(lambda: len(turns.begun) == 2)
    assert turns.begun[1] - turns.begun[0] > 0.95


def test_a_turn_that_failed_is_tried_again_ever_later(started, arrive, until, monkeypatch, caplog):
    monkeypatch.setattr(trainer_module, "FIRST_RETRY_SECONDS", 0.3)
    _, turns, settings = started(FAILED, FAILED, FAILED, DONE)
    with caplog.at_level(logging.INFO):
        arrive(settings, "a", "b", "c")
        until(lambda: len(turns.begun) == 4)
        until(lambda: "turn 1: learn 2" in caplog.text)
    gaps = [after - before for before, after in zip(turns.begun, turns.begun[1:], strict=False)]
    assert 0.28 < gaps[0] < 1.5
    assert 0.58 < gaps[1] < 2.5
    assert 1.18 < gaps[2] < 4
    errors = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert any("the disk is full" in error for error in errors)
    assert any("0.3 s" in error or "in 0 s" in error for error in errors)


def test_a_good_turn_forgives_earlier_failures(started, arrive, until, monkeypatch):
    monkeypatch.setattr(trainer_module, "FIRST_RETRY_SECONDS", 0.4)
    _, turns, settings = started(FAILED, FAILED, DONE, FAILED, DONE)
    arrive(settings, "a", "b", "c")
    until(lambda: len(turns.begun) == 3)
    arrive(settings, "d", "e", "f")
    until(lambda: len(turns.begun) == 5)
    assert 0.38 < turns.begun[4] - turns.begun[3] < 1.4


def test_backing_off_has_an_end(started, arrive, until, monkeypatch):
    monkeypatch.setattr(trainer_module, "FIRST_RETRY_SECONDS", 0.1)
    monkeypatch.setattr(trainer_module, "MAX_RETRY_SECONDS", 0.2)
    _, turns, settings = started(FAILED)
    arrive(settings, "a", "b", "c")
    until(lambda: len(turns.begun) == 7)
    assert 0.18 < turns.begun[6] - turns.begun[5] < 2


def test_a_busy_memory_is_no_failure(started, arrive, until, monkeypatch, caplog):
    monkeypatch.setattr(trainer_module, "BUSY_SECONDS", 0.3)
    _, turns, settings = started(BUSY, BUSY, BUSY, DONE)
    arrive(settings, "a", "b", "c")
    until(lambda: len(turns.begun) == 4)
    gaps = [after - before for before, after in zip(turns.begun, turns.begun[1:], strict=False)]
    assert all(0.28 < gap < 1.5 for gap in gaps)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_while_somebody_else_has_the_memory_polls_say_so_once(started, arrive, until, caplog):
    with caplog.at_level(logging.INFO):
        trainer, turns, settings = started(run=False)
        arrive(settings, "a", "b", "c")
        with open_memory(settings):
            trainer.start()
            time.sleep(0.5)
            assert turns.begun == []
        until(lambda: turns.begun)
    said = [record.getMessage() for record in caplog.records]
    assert sum("cannot be read into memory now" in one for one in said) == 1
    assert sum("can be read again" in one for one in said) == 1


def test_stopping_ends_the_turn_that_runs(settings_in, arrive, until, tmp_path, gone):
    settings = settings_in(trainer__poll_seconds=0.05, trainer__min_new_labels=1)
    code = f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    trainer = Trainer(settings, TurnProcess(settings, lambda config: [sys.executable, "-S", "-c", code]))
    trainer.start()
    arrive(settings, "a")
    until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
    begun = time.monotonic()
    trainer.stop()
    assert time.monotonic() - begun < 4
    gone(int((tmp_path / "pid").read_text()))


@pytest.mark.parametrize(
    ("outcome", "code"),
    [(DONE, 0), (BUSY, 3), (FAILED, 1), (Outcome("failed", 2, "x"), 2), (Outcome("failed", -9, "x"), 1)],
)
def test_once_ends_as_the_turn_did(started, arrive, outcome, code):
    trainer, turns, settings = started(outcome, run=False)
    arrive(settings, "a")
    assert trainer.once() == code
    assert len(turns.begun) == 1


def test_once_with_nothing_new_runs_no_turn(started):
    trainer, turns, _ = started(run=False)
    assert trainer.once() == 0
    assert turns.begun == []


def test_once_says_when_the_memory_is_taken_or_cannot_be(started, settings_in, tmp_path):
    trainer, _, settings = started(run=False)
    with open_memory(settings), pytest.raises(StoreBusy):
        trainer.once()
    trainer.stop()
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError):
        Trainer(settings_in(memory__path=str(tmp_path / "file" / "memory"))).once()


def test_torch_stays_out_of_this_process(settings_in, arrive, tmp_path):
    settings = settings_in()
    arrive(settings, "a")
    code = f"""
import sys, time
from perdure.config import Settings
from perdure_services.trainer import command
from perdure_services.trainer.trainer import Trainer
settings = Settings.model_validate({settings.model_dump()!r})
trainer = Trainer(settings)
trainer.start()
while not trainer._leadership.leads:
    time.sleep(0.01)
trainer.poll()
assert trainer._inbox._waiting.labels == 1
print([name for name in ("torch", "transformers", "faiss", "scipy", "pandas", "evidently") if name in sys.modules])
"""
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"
